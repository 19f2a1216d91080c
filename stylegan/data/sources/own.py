"""List and read sets of shards with a manifest: the sets of this program, at their highest resolution, and other wids indexes.

The manifest of a set of this program is a wids index (the shard index of webdataset) with more keys.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from stylegan import storage
from stylegan.data.index import LevelIndex, read_level, read_manifest, read_samples
from stylegan.data.payload import decode
from stylegan.data.shardset import MANIFEST, ShardSet
from stylegan.data.sources import tar
from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import COPY_BELOW, Packed, ReadRange, open_ranges
from stylegan.data.sources.access.uris import file_token
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage
from stylegan.errors import DamagedError, StepError
from stylegan.records import check

_KIND = "wids-shard-index-v1"
_CURE = "make the shards again"


def is_set(files: Files) -> bool:
    """Return True if a folder has the manifest of a set of shards at its top."""
    if MANIFEST not in files.tokens:
        return False
    has_shards = any(name.startswith("r0004/") for name in files.tokens)
    try:
        index = storage.read_json(files.uri(MANIFEST), Any, cure=_CURE)
    except DamagedError:
        if has_shards:
            raise
        return False  # a file of something else that has this name
    if isinstance(index, dict) and index.get("__kind__") == _KIND:
        return True
    if has_shards:  # shards whose manifest was overwritten
        raise DamagedError(f"{files.uri(MANIFEST)}: is damaged (it is not a manifest of the shards beside it); {_CURE}")
    return False


def list_images(files: Files) -> Listing:
    """List the images of a set.

    Images of a set of this program keep the paths of their originals, and the SHA-256 of their pixels is their token.
    Images of any other set are those of the tars in its index.

    Raises:
        StepError: the manifest, the table or a tar is damaged, or the index lists a file outside its folder.
    """
    index = storage.read_json(files.uri(MANIFEST), dict[str, Any], cure=_CURE)
    return _list_own(files) if "table" in index else _list_foreign(files, index)


class _Tar(TypedDict):
    """An entry of a wids index."""

    url: str


def _list_foreign(files: Files, manifest: dict[str, Any]) -> Listing:
    """List the images of the tars that a wids index names."""
    entries = check(manifest.get("shardlist", []), list[_Tar], origin=files.uri(MANIFEST), cure=_CURE)
    urls = [entry["url"] for entry in entries]
    refused = next((url for url in urls if not _is_tar_below(url)), None)
    if refused is not None or not urls:
        raise StepError(
            f"data.source={files.source}: {MANIFEST} must list tars below its folder; it lists {refused or 'none'}"
        )
    tokens = {url: files.tokens.get(url) or file_token(files.uri(url)) for url in urls}
    return tar.list_images(files._replace(tokens=tokens))


def _is_tar_below(url: str) -> bool:
    """Return True if a relative URL names a tar, and does not lead out of its folder."""
    return bool(tar.NAMES.fullmatch(url)) and not url.startswith("/") and ".." not in url.split("/")


def _list_own(files: Files) -> Listing:
    """List the images of a set that this program wrote, from its table of samples."""
    # Read manifest and table.
    manifest = read_manifest(files.root)
    shards = ShardSet.from_manifest(files.root, manifest)
    level = read_level(shards, shards.resolutions[-1])
    rows = read_samples(files.root, manifest, ["path", "sha256"])

    # Note for each image where its payload is stored.
    locator, images = Locator(4), []
    for number, (path, sha256) in enumerate(zip(rows["path"].to_pylist(), rows["sha256"].to_pylist(), strict=True)):
        locator.add(path, *(int(column[number]) for column in (level.tar, level.offset, level.size, level.crc)))
        images.append(SourceImage(path, _label_of(level, number), sha256.hex()))

    tars = tuple(Packed(known.uri, known.sha256) for known in level.tars)
    copy = int(level.size.sum()) < COPY_BELOW * len(images)
    opener = partial(_open_payloads, tars, locator.seal(), level.suffix, copy)
    return Listing(images, opener, reader="own", label_names=shards.label_names, attribute_names=shards.attribute_names)


def _label_of(level: LevelIndex, number: int) -> Label:
    """Return the attributes or the class number of an image; None without either."""
    if level.attributes is not None:
        return tuple(level.attributes[number].tolist())
    return int(level.labels[number]) if level.labels[number] >= 0 else None


@contextmanager
def _open_payloads(tars: tuple[Packed, ...], locator: Locator, suffix: str, copy: bool) -> Iterator[Read]:
    """Yield a function from the path of an image to its PNG or its pixels.

    Args:
        locator: number of the tar, offset, size and CRC-32 of each payload.
        suffix: `npy` or `png`, the format of the payloads.
        copy: copy remote tars to this machine as a whole.
    """
    with open_ranges(tars, copy=copy) as read:
        yield lambda path: _read_image(read, suffix, *locator[path])


def _read_image(read: ReadRange, suffix: str, tar: int, offset: int, size: int, crc: int) -> bytes | np.ndarray:
    """Return a PNG as it is stored, or raw pixels as uint8 [r, r] or [r, r, 3]. Raise ValueError if the payload is damaged."""
    data = read(tar, offset, size)
    if zlib.crc32(data) != crc:
        raise ValueError("the sample has a wrong checksum")
    if suffix == "png":
        return data
    pixels = decode(data, suffix)  # [C, r, r]
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
