"""The record of a finished set of shards, and the names and numbers that all who write or read one agree on."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from stylegan.config.sections import DataConfig
from stylegan.records import Record, digest

FORMAT = 2  # raise it when the same source would give other shards
MANIFEST = "manifest.json"
PIXEL_FIELDS = {"resolution", "channels", "crop", "resize_filter"}  # decide the pixels of an image
CHOICE_FIELDS = {
    "min_size",
    "max_pixels",
    "duplicates",
    "images_per_shard",
    "shard_mb",
}  # which images there are, and in which tar


class ShardSet(Record):
    """A finished set of shards: a folder with `r0004/train-000000.tar` ... and `manifest.json`.

    Attributes:
        uri: the folder.
        fingerprint: digest of pixels, labels and their order, and of nothing else.
        num_images: those that count; duplicates and other rejects do not.
        label_names: of the classes; empty without class numbers.
        attribute_names: of the attribute vectors; empty without them. Never both.
        num_rejected: lines of `rejected.jsonl`.
    """

    model_config = ConfigDict(extra="forbid")

    uri: str
    fingerprint: str
    num_images: int
    resolutions: tuple[int, ...]
    label_names: tuple[str, ...]
    attribute_names: tuple[str, ...] = ()
    num_rejected: int

    def up_to(self, resolution: int) -> ShardSet:
        """The same images without the resolutions above one, as a stage below the last one knows them."""
        return self.model_copy(update={"resolutions": tuple(r for r in self.resolutions if r <= resolution)})


def level_name(resolution: int) -> str:
    """The folder of one resolution, such as `r0064`."""
    return f"r{resolution:04d}"


def levels(data: DataConfig) -> tuple[int, ...]:
    """The resolutions that are kept: 4, 8, ... up to `data.resolution`."""
    return tuple(2**level for level in range(2, data.resolution.bit_length()))


def parameters(data: DataConfig) -> dict[str, Any]:
    """Those settings that decide the shards of a listing."""
    return data.model_dump(include=PIXEL_FIELDS | CHOICE_FIELDS)


def settings_key(data: DataConfig) -> str:
    """Digest of `parameters` and of the format."""
    return digest({"format": FORMAT, "parameters": parameters(data)})


def shard_size(data: DataConfig) -> int:
    """Images in one tar, at most: by number, and by the bytes of their pixels."""
    return max(min(data.images_per_shard, data.shard_mb * 10**6 // (data.resolution**2 * data.channels)), 1)
