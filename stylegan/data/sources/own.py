"""Sets of shards with a manifest: those that this program wrote, at their highest resolution, or any wids index of tars."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from stylegan import storage
from stylegan.data.index import read_level, read_samples
from stylegan.data.payload import decode
from stylegan.data.shardset import MANIFEST, ShardSet
from stylegan.data.sources import tar
from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import COPY_BELOW, Packed, ReadRange, open_ranges
from stylegan.data.sources.access.uris import file_token
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage
from stylegan.errors import StepError, one_line

_KIND = "wids-shard-index-v1"


def is_set(files: Files) -> bool:
    """Whether a folder has the manifest of a set of shards at its top."""
    if MANIFEST not in files.tokens:
        return False
    manifest = storage.read_json(files.uri(MANIFEST))
    return isinstance(manifest, dict) and manifest.get("__kind__") == _KIND


def list_images(files: Files) -> Listing:
    """The images under the paths that they were made from; the token is the checksum of their pixels."""
    manifest = storage.read_json(files.uri(MANIFEST))
    return _list_own(files, manifest) if "table" in manifest else _list_foreign(files, manifest)


def _list_foreign(files: Files, manifest: dict[str, Any]) -> Listing:
    tars = [entry.get("url", "") for entry in manifest.get("shardlist", [])]
    outside = next(
        (url for url in tars if not tar.NAMES.fullmatch(url) or url.startswith("/") or ".." in url.split("/")), None
    )
    if outside is not None or not tars:
        raise StepError(
            f"data.source={files.source}: {MANIFEST} must list tars below its folder; it lists {outside or 'none'}"
        )
    return tar.list_images(
        files._replace(tokens={url: files.tokens.get(url) or file_token(files.uri(url)) for url in tars})
    )


def _list_own(files: Files, manifest: dict[str, Any]) -> Listing:
    try:
        shards = ShardSet(uri=files.root, **{name: manifest[name] for name in ShardSet.model_fields if name != "uri"})
    except (KeyError, ValueError) as error:
        raise StepError(
            f"data.source={files.source}: {MANIFEST} is damaged ({one_line(error)}); make the shards again"
        ) from error
    level = read_level(shards, shards.resolutions[-1])
    rows = read_samples(files.root, manifest, ["path", "sha256"])
    locator, images = Locator(4), []
    for number, (path, sha256) in enumerate(zip(rows["path"].to_pylist(), rows["sha256"].to_pylist(), strict=True)):
        locator.add(path, *(int(column[number]) for column in (level.tar, level.offset, level.size, level.crc)))
        images.append(SourceImage(path, _label(level.labels, level.attributes, number), sha256.hex()))
    tars = tuple(Packed(known.uri, known.sha256) for known in level.tars)
    opener = partial(_open, tars, locator.seal(), level.suffix, int(level.size.sum()) < COPY_BELOW * len(images))
    return Listing(images, opener, reader="own", label_names=shards.label_names, attribute_names=shards.attribute_names)


def _label(labels: np.ndarray, attributes: np.ndarray | None, number: int) -> Label:
    if attributes is not None:
        return tuple(attributes[number].tolist())
    return int(labels[number]) if labels[number] >= 0 else None


@contextmanager
def _open(tars: tuple[Packed, ...], locator: Locator, suffix: str, copy: bool) -> Iterator[Read]:
    with open_ranges(tars, copy=copy) as read:
        yield lambda path: _image(read, suffix, *locator[path])


def _image(read: ReadRange, suffix: str, tar: int, offset: int, size: int, crc: int) -> bytes | np.ndarray:
    """Raises ValueError if it is damaged."""
    data = read(tar, offset, size)
    if zlib.crc32(data) != crc:
        raise ValueError("the sample has a wrong checksum")
    if suffix == "png":
        return data
    pixels = decode(data, suffix)  # [C, r, r]
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
