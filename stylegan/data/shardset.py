"""The record of a finished set of shards, and the names and settings that its writers and readers must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from typing_extensions import TypedDict

from stylegan.config.sections import DataConfig
from stylegan.records import Record, digest

FORMAT = 2  # raise it when the same source would give other shards
MANIFEST = "manifest.json"
PIXEL_FIELDS = {"resolution", "channels", "crop", "resize_filter"}  # they decide the pixels of an image
# They decide which images belong to the set, and in which tar each one is.
CHOICE_FIELDS = {"min_size", "max_pixels", "duplicates", "images_per_shard", "shard_mb"}


# --- the manifest -----------------------------------------------------------------------------------------------------


class TarEntry(TypedDict):
    """A tar of one level; `url` is relative to the folder of the set."""

    url: Annotated[str, Field(min_length=1)]
    nsamples: PositiveInt
    filesize: PositiveInt
    sha256: str


class LevelEntry(TypedDict):
    """One level: its tars, the same number and in the same order as at all other levels."""

    name: str
    resolution: PositiveInt
    suffix: Literal["npy", "png"]
    shardlist: Annotated[list[TarEntry], Field(min_length=1)]


class Parameters(TypedDict):
    """The settings that a reader of the set needs."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    resolution: PositiveInt
    channels: Literal[1, 3]
    crop: str
    resize_filter: str


class TableEntry(TypedDict):
    """The file of the table of samples."""

    url: Annotated[str, Field(min_length=1)]
    filesize: PositiveInt
    sha256: str


class Manifest(TypedDict):
    """The manifest of a finished set. It is also a wids index, whose entries are extra here."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    format: Literal[2]
    parameters: Parameters
    label_names: list[str]
    attribute_names: list[str]
    resolutions: list[PositiveInt]
    parent: NotRequired[str | None]
    fingerprint: Annotated[str, Field(min_length=1)]
    images_fingerprint: NotRequired[str]
    num_images: PositiveInt
    num_rejected: NonNegativeInt
    rejected: dict[str, NonNegativeInt]
    label_counts: dict[str, NonNegativeInt]
    datasets: list[LevelEntry]
    shardlist: list[TarEntry]
    table: TableEntry


def contradiction(manifest: Manifest) -> str | None:
    """Return what the entries of a manifest say against each other, None if they agree."""
    wanted = _levels_up_to(manifest["parameters"]["resolution"])
    found = tuple(level["resolution"] for level in manifest["datasets"])
    if found != wanted or tuple(manifest["resolutions"]) != wanted:
        return f"its levels are {list(found)}, those of the resolution {manifest['parameters']['resolution']} are {list(wanted)}"
    last = manifest["datasets"][-1]
    if manifest["shardlist"] != last["shardlist"]:
        return f"its `shardlist` is not that of level {last['name']}"
    counts = [entry["nsamples"] for entry in last["shardlist"]]
    for level in manifest["datasets"]:
        if level["name"] != level_name(level["resolution"]):
            return f"the level of resolution {level['resolution']} is called {level['name']}"
        if [entry["nsamples"] for entry in level["shardlist"]] != counts:
            return f"its level {level['name']} lists other tars or samples than {last['name']}"
        if len({entry["url"] for entry in level["shardlist"]}) != len(counts):
            return f"its level {level['name']} lists a tar twice"
    if sum(counts) < manifest["num_images"]:
        return f"its tars hold {sum(counts)} samples, fewer than its {manifest['num_images']} images"
    if manifest["label_names"] and manifest["attribute_names"]:
        return "it has classes and attributes"
    return None


# --- the record of a set ----------------------------------------------------------------------------------------------


class ShardSet(Record):
    """A finished set of shards: a folder with `r0004/train-000000.tar` ... and `manifest.json`.

    Attributes:
        uri: the folder.
        fingerprint: digest of the pixels, the labels and their order, and of nothing else.
        images_fingerprint: the fingerprint that the same images would have without labels: digest of the pixels and
            their order. None in a labelled set that an earlier version made.
        num_images: images that count; duplicates and other rejects do not.
        resolutions: 4, 8, ... up to the final one.
        label_names: names of the classes; empty without class numbers.
        attribute_names: names of the entries of the attribute vectors; empty without them. A set never has both.
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
    images_fingerprint: str | None = None

    @classmethod
    def from_manifest(cls, uri: str, manifest: Manifest) -> ShardSet:
        """Return the record of the set in a folder, from its manifest as `index.read_manifest` checks it."""
        given = {name: value for name, value in manifest.items() if name in cls.model_fields}
        return cls.model_validate(given | {"uri": uri})

    def up_to(self, resolution: int) -> ShardSet:
        """Return the same images without the resolutions above `resolution`: the view of a stage below the last one."""
        return self.model_copy(update={"resolutions": tuple(r for r in self.resolutions if r <= resolution)})


def level_name(resolution: int) -> str:
    """Return the name of the folder of one resolution, such as `r0064`."""
    return f"r{resolution:04d}"


def levels(data: DataConfig) -> tuple[int, ...]:
    """Return the resolutions of a set: 4, 8, ... up to `data.resolution`."""
    return _levels_up_to(data.resolution)


def _levels_up_to(resolution: int) -> tuple[int, ...]:
    return tuple(2**level for level in range(2, resolution.bit_length()))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes, all different: those that an earlier class has already get their number, from 0."""
    found: dict[str, None] = {}
    for number, name in enumerate(names):
        while name in found:
            name = f"{name} ({number})"
        found[name] = None
    return tuple(found)


def parameters(data: DataConfig) -> dict[str, Any]:
    """Return the settings that decide the shards of a given listing."""
    return data.model_dump(include=PIXEL_FIELDS | CHOICE_FIELDS)


def settings_key(data: DataConfig) -> str:
    """Return the digest of `parameters` and of the format."""
    return digest({"format": FORMAT, "parameters": parameters(data)})


def shard_size(data: DataConfig) -> int:
    """Return the largest number of images in one tar.

    Two limits apply: `data.images_per_shard`, and `data.shard_mb` of raw pixels. The result is at least 1.
    """
    return max(min(data.images_per_shard, data.shard_mb * 10**6 // (data.resolution**2 * data.channels)), 1)
