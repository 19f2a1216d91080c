"""Plan the work for a listing: everything, or the difference to the newest set of the same source and settings.

The plan needs only the old and the new listing: their paths, tokens and labels. No image is opened. Canonical order is
the order of the digests of paths, so the same images are in the same order whatever other images a set has.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.dataset_card import REJECTED, Rejected, read_rejected
from stylegan.data.index import attribute_array, find_manifest, locate, read_samples
from stylegan.data.sharding.chunks import KEY_BYTES, LabelKind, path_digest, sample_key, to_read_again
from stylegan.data.shardset import Manifest, settings_key
from stylegan.data.sources.base import Source, SourceImage
from stylegan.errors import DamagedError
from stylegan.records import Record, digest

logger = logging.getLogger("stylegan")


@dataclass(frozen=True)
class Change:
    """The difference between a listing and the finished set that its shards can build on (the parent), in numbers.

    Attributes:
        new: images to shard that the parent does not have; all images without a parent.
        changed: images with another token or label. They are read; if the bytes are the same, they are not sharded
            again.
        deleted: images of the parent that are not listed any more.
        kept: images that need not be read.
        parent: key of the parent, None if everything is made anew.
    """

    new: int
    changed: int
    deleted: int
    kept: int
    parent: str | None


@dataclass(frozen=True)
class Work:
    """A change in detail.

    Attributes:
        todo: int64, indices in `Source.images` of the images to shard, in canonical order.
        known: for each of `todo`, the sha256 of the bytes in the parent if nothing but the bytes can differ, otherwise
            None; empty without a parent.
        manifest: of the parent; None without one.
        kept_rows: int64, rows of the parent's table that stay.
        carried: rejects of the parent that stay.
    """

    change: Change
    todo: np.ndarray
    known: Sequence[bytes | None] = ()
    manifest: Manifest | None = None
    kept_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    carried: Sequence[Rejected] = ()

    def keep(self, table: pa.Table, touched: Sequence[SourceImage]) -> pa.Table:
        """Return the rows of the parent's table that stay, in order.

        Args:
            table: the parent's table.
            touched: images of `todo` whose bytes turned out to be the same. Their rows stay and get the new tokens.
        """
        keys = [sample_key(image.path) for image in touched]
        places = pc.index_in(pa.array(keys, pa.string()), table["key"].combine_chunks()).to_numpy(zero_copy_only=False)
        rows = np.sort(np.concatenate([self.kept_rows, places.astype(np.int64)]))
        table = table.take(pa.array(rows))
        if not touched:
            return table
        tokens = table["token"].to_numpy(zero_copy_only=False).copy()
        tokens[np.searchsorted(rows, places)] = [image.token for image in touched]
        return table.set_column(table.column_names.index("token"), "token", pa.array(tokens, pa.string()))


def plan_change(source: Source, data: DataConfig, root: str) -> Change:
    """Return the work that `write_shards` would have to do, without opening an image.

    Raises:
        StepError: the store does not answer.
    """
    return plan_work(source, data, root).change


def change_since(source: Source, key: str, root: str) -> Change | None:
    """Return the difference between a listing and a finished set that was made of the same source, without opening an image.

    Args:
        source: the listing.
        key: the name of the folder of the set.

    Returns:
        The change. None if the set is gone or cannot be built on, or if less than half of it would still count: then
        every image is a new one.

    Raises:
        StepError: the store does not answer.
    """
    parent = _read_parent(source, key, root)
    work = _compare(source, *_canonical(source.images), parent) if parent else None
    return work.change if work else None


def newest_uri(source: Source, data: DataConfig, root: str) -> str:
    """Return the URI of the file that names the newest finished set of a source with these settings.

    The name of the file depends on the reader too, because unaltered images make other shards. The reader enters under
    the name that its module had in version 0.1.
    """
    name = digest([source.uri, f"stylegan.data.sources.{source.reader}", settings_key(data)])
    return storage.join(storage.absolute(root), "datasets", f"newest-{name}.json")


def shard_key(data: DataConfig, source: Source) -> str:
    """Return the digest of everything that decides the shards: the listing with its labels, and the settings.

    No image is opened for it.
    """
    return digest({"source": source.signature, "settings": settings_key(data)})


def open_uri(source: Source, data: DataConfig, root: str) -> str:
    """Return the URI of the file that names the newest open set of a listing: one that lacks images not read yet."""
    return storage.join(storage.absolute(root), "datasets", shard_key(data, source), "open.json")


def label_kind(source: Source) -> LabelKind:
    """Return the kind of label that the images of a source have."""
    if source.label_names:
        return "class"
    return "attributes" if source.attribute_names else "none"


def plan_work(source: Source, data: DataConfig, root: str) -> Work:
    """Return the change in detail.

    Raises:
        StepError: the store does not answer.
    """
    order, keys = _canonical(source.images)
    # An open set of this very listing is completed, whatever `data.incremental` says about changed listings.
    parent = _find_parent(source, open_uri(source, data, root), root)
    if parent is None and data.incremental:
        parent = _find_parent(source, newest_uri(source, data, root), root)
    if parent is not None:
        work = _compare(source, order, keys, parent)
        if work is not None:
            return work
    return Work(Change(new=len(order), changed=0, deleted=0, kept=0, parent=None), order)


def _canonical(images: Sequence[SourceImage]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images in canonical order, and their keys as S20 in that order."""
    digests = np.frombuffer(b"".join(path_digest(image.path) for image in images), np.uint8).reshape(-1, 32)
    words = digests.view(">u8")
    order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    keys = np.frombuffer(digests[order, :KEY_BYTES].tobytes().hex().encode(), f"S{2 * KEY_BYTES}")
    return order, keys


@dataclass(frozen=True)
class _Parent:
    """A finished set that the shards of a listing can build on."""

    key: str
    manifest: Manifest
    table: pa.Table  # key, token, label, source_sha256, attributes
    rejected: list[Rejected]


def _find_parent(source: Source, pointer: str, root: str) -> _Parent | None:
    """Return the set that a file names if it can be built on. Raises DamagedError if that file is damaged."""
    key = read_pointer(pointer)
    return _read_parent(source, key, root) if key is not None else None


def _read_parent(source: Source, key: str, root: str) -> _Parent | None:
    """Return a set if it can be built on: the same kind of labels, a whole table and every tar.

    A set that is damaged is named in a warning, and everything is made anew.

    Raises:
        StepError: the store does not answer.
    """
    uri = storage.join(storage.absolute(root), "datasets", key)
    try:
        manifest = find_manifest(uri)
        if manifest is None or not _same_kind_of_labels(source, manifest):
            return None
        if not _has_all_tars(uri, manifest):
            logger.warning("%s: tars that it lists are gone; all images are sharded anew", uri)
            return None
        columns = ["key", "token", "label", "source_sha256"]
        if source.attribute_names:
            columns.append("attributes")
        return _Parent(key, manifest, read_samples(uri, manifest, columns), read_rejected(uri))
    except FileNotFoundError:
        logger.warning("%s: missing; all images are sharded anew", storage.join(uri, REJECTED))
    except DamagedError as error:
        logger.warning("%s; until then all images are sharded anew", error)
    return None


class _Pointer(Record):
    """A file that leads to a set: the name of its folder."""

    key: Annotated[str, Field(pattern=r"^[\w-]{1,100}$")]


def read_pointer(uri: str) -> str | None:
    """Return the key in a file that leads to a set, None without such a file. Raises DamagedError if it holds none."""
    cure = "shard the images as they were then, which writes it anew; or delete it, and all images are sharded anew"
    try:
        return storage.read_json(uri, _Pointer, cure=cure).key
    except FileNotFoundError:
        return None


def write_pointer(uri: str, key: str) -> None:
    """Let a file lead to a set; it is written only if it does not do so already."""
    try:
        if read_pointer(uri) == key:
            return
    except DamagedError:
        logger.warning("%s: is damaged; it is written anew", uri)
    storage.write_json(uri, {"key": key})


def _same_kind_of_labels(source: Source, manifest: Manifest) -> bool:
    has_classes = bool(source.label_names) == bool(manifest["label_names"])
    return has_classes and list(source.attribute_names) == manifest["attribute_names"]


def _has_all_tars(uri: str, manifest: Manifest) -> bool:
    """Return whether every tar of a manifest exists; each folder is listed once."""
    wanted: dict[str, set[str]] = {}
    for level in manifest["datasets"]:
        for entry in level["shardlist"]:
            folder, _, name = locate(uri, entry["url"]).rpartition("/")
            wanted.setdefault(folder, set()).add(name)
    return all(names <= set(storage.names(folder)) for folder, names in wanted.items())


def _compare(source: Source, order: np.ndarray, keys: np.ndarray, parent: _Parent) -> Work | None:
    """Compare a listing with its parent.

    Args:
        order: indices of the listed images in canonical order.
        keys: their keys, in that order.

    Returns:
        The work, or None if less than half of the samples in the parent's tars would still count.
    """
    table = parent.table

    # Find the row of each listed image in the parent's table, which is sorted by keys.
    theirs = np.empty(0, keys.dtype)
    if table.num_rows:
        theirs = np.array(table["key"].to_numpy(zero_copy_only=False), keys.dtype)
    rows = np.searchsorted(theirs, keys)
    found = np.zeros(len(keys), bool)
    inside = rows < len(theirs)
    found[inside] = theirs[rows[inside]] == keys[inside]

    # Of those found, the images with the same label and token are the same images.
    ours = [source.images[index] for index in order[found].tolist()]
    same_label = np.zeros(len(keys), bool)
    same_label[found] = _same_labels(ours, table, rows[found])
    same = same_label.copy()
    same[found] &= _same_tokens(ours, table, rows[found])
    if 2 * int(same.sum()) < sum(entry["nsamples"] for entry in parent.manifest["shardlist"]):
        return None

    # Of the parent's rejects, carry those that have not changed.
    carried, again = _carry(source, order, keys, parent, rows[same])
    done = same.copy()
    done[[position for position, _ in carried]] = True

    # Everything else is to be sharded.
    todo = np.flatnonzero(~done)
    known = _known(table, rows[todo], same_label[todo])
    changed = int(np.count_nonzero(found & ~same)) + again
    deleted = table.num_rows - int(found.sum()) + len(parent.rejected) - len(carried) - again
    change = Change(new=len(todo) - changed, changed=changed, deleted=deleted, kept=int(done.sum()), parent=parent.key)
    return Work(change, order[todo], known, parent.manifest, rows[same], [reject for _, reject in carried])


def _same_labels(ours: Sequence[SourceImage], table: pa.Table, rows: np.ndarray) -> np.ndarray:
    """Return whether each image has the label of its row, bool [n]."""
    numbers = np.array([image.label if isinstance(image.label, int) else -1 for image in ours], np.int64)
    same = numbers == table["label"].to_numpy()[rows]
    if "attributes" not in table.column_names:
        return same & np.array([not isinstance(image.label, tuple) for image in ours], bool)
    pairs = zip(ours, attribute_array(table)[rows].tolist(), strict=True)
    same_vectors = [isinstance(image.label, tuple) and list(image.label) == row for image, row in pairs]
    return same & np.array(same_vectors, bool)


def _same_tokens(ours: Sequence[SourceImage], table: pa.Table, rows: np.ndarray) -> np.ndarray:
    """Return whether each image has the token of its row, bool [n]."""
    tokens = pa.array([image.token for image in ours], pa.string())
    theirs = table["token"].combine_chunks().take(pa.array(rows))
    return pc.equal(tokens, theirs).to_numpy(zero_copy_only=False).astype(bool)


def _known(table: pa.Table, rows: np.ndarray, same_label: np.ndarray) -> list[bytes | None]:
    """Return the parent's sha256 of each image with the same label, None for others: only the bytes can then differ."""
    hashes = table["source_sha256"].combine_chunks()
    return [hashes[int(row)].as_py() if same else None for row, same in zip(rows, same_label, strict=True)]


def _carry(
    source: Source, order: np.ndarray, keys: np.ndarray, parent: _Parent, kept: np.ndarray
) -> tuple[list[tuple[int, Rejected]], int]:
    """Sort the parent's rejects into those that stay and those that must be read again.

    Args:
        kept: rows of the parent's table that stay.

    Returns:
        The position in canonical order and the record of each reject that stays, and the number of those to read again.
    """
    if not parent.rejected:
        return [], 0
    labelled = label_kind(source) != "none"
    hashes = set(parent.table["source_sha256"].combine_chunks().take(pa.array(kept)).to_pylist())
    carried, again = [], 0
    for reject in parent.rejected:
        key = path_digest(reject["path"])[:KEY_BYTES].hex().encode()
        position = int(np.searchsorted(keys, key))
        if position == len(keys) or keys[position] != key:
            continue  # deleted
        image = source.images[int(order[position])]
        unlabelled = labelled and image.label is None
        stays = image.token == reject["token"] and unlabelled == (reject["kind"] == "unlabelled")
        # A duplicate stays a reject only while the image that it repeats stays. What was never read is tried again.
        repeats = reject["kind"] != "duplicate" or bytes.fromhex(reject["sha256"] or "") in hashes
        if stays and repeats and not to_read_again(reject):
            carried.append((position, reject))
        else:
            again += 1
    return carried, again
