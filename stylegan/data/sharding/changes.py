"""What is to be done for a listing: everything, or what differs from the newest finished set of the same source and settings.

Known from listings alone: paths, tokens and labels now and then. Canonical order is that of the digests of paths, so the same
images stand in the same order whatever else there is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.index import attribute_array, locate, read_manifest, read_samples
from stylegan.data.sharding.chunks import KEY_BYTES, LabelKind, Rejected, path_digest, sample_key
from stylegan.data.shardset import settings_key
from stylegan.data.sources.base import Source, SourceImage
from stylegan.errors import StepError, UnavailableError
from stylegan.records import digest

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Change:
    """How a listing differs from the set that its shards can build on.

    Attributes:
        new: images to shard that the parent did not have; all of them without a parent.
        changed: images whose token or label is another. Those whose bytes turn out to be the same are only looked at.
        deleted: images of the parent that are listed no more.
        kept: images that need not be looked at.
        parent: key of the finished set, None if everything is made anew.
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
        todo: int64, indices in `Source.images` of what is to be sharded, in canonical order.
        known: for each of `todo`, sha256 of the parent's bytes if only the bytes can differ; empty without a parent.
        kept_rows: int64, rows of the parent's table that stay.
        carried: rejects of the parent that stay.
    """

    change: Change
    todo: np.ndarray
    known: Sequence[bytes | None] = ()
    manifest: dict[str, Any] = field(default_factory=dict)
    kept_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    carried: Sequence[Rejected] = ()

    def keep(self, table: pa.Table, touched: Sequence[SourceImage]) -> pa.Table:
        """The rows of the parent's table that stay, in order; those of images that were found to be as they were get their new tokens."""
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
    """What `write_shards` would have to do, without opening an image.

    Raises:
        StepError: the store does not answer.
    """
    return plan_work(source, data, root).change


def newest_uri(source: Source, data: DataConfig, root: str) -> str:
    """The file that names the newest finished set of a source with these settings.

    The key holds the reader, since unaltered images make other shards, under the name that its module had in version 0.1.
    """
    name = digest([source.uri, f"stylegan.data.sources.{source.reader}", settings_key(data)])
    return storage.join(storage.absolute(root), "datasets", f"newest-{name}.json")


def label_kind(source: Source) -> LabelKind:
    """What the images of a source carry."""
    return "class" if source.label_names else "attributes" if source.attribute_names else "none"


def plan_work(source: Source, data: DataConfig, root: str) -> Work:
    """The change in detail. Raises StepError if the store does not answer."""
    order, keys = _canonical(source.images)
    parent = _find_parent(source, data, root) if data.incremental else None
    if parent is not None:
        work = _compare(source, order, keys, parent)
        if work is not None:
            return work
    return Work(Change(new=len(order), changed=0, deleted=0, kept=0, parent=None), order)


def _canonical(images: Sequence[SourceImage]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images in canonical order, and their keys as S20 in that order."""
    digests = np.frombuffer(b"".join(path_digest(image.path) for image in images), np.uint8).reshape(-1, 32)
    words = digests.view(">u8")
    order = np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))
    keys = np.frombuffer(digests[order, :KEY_BYTES].tobytes().hex().encode(), f"S{2 * KEY_BYTES}")
    return order, keys


@dataclass(frozen=True)
class _Parent:
    key: str
    manifest: dict[str, Any]
    table: pa.Table  # key, token, label, source_sha256, attributes
    rejected: list[Rejected]


def _find_parent(source: Source, data: DataConfig, root: str) -> _Parent | None:
    """The newest set if it can be built on: same kind of labels, table whole, every tar there."""
    try:
        key = str(storage.read_json(newest_uri(source, data, root))["key"])
        uri = storage.join(storage.absolute(root), "datasets", key)
        manifest = read_manifest(uri)
        if _label_facts(manifest) != [bool(source.label_names), list(source.attribute_names)] or not _tars_there(
            uri, manifest
        ):
            return None
        columns = ["key", "token", "label", "source_sha256"] + ["attributes"] * bool(source.attribute_names)
        table = read_samples(uri, manifest, columns)
        return _Parent(key, manifest, table, read_rejected(storage.join(uri, REJECTED)))
    except FileNotFoundError:
        return None
    except UnavailableError:
        raise
    except StepError:  # damaged: everything is made anew
        return None


def _label_facts(manifest: dict[str, Any]) -> list[Any]:
    return [bool(manifest["label_names"]), manifest["attribute_names"]]


def _tars_there(uri: str, manifest: dict[str, Any]) -> bool:
    wanted: dict[str, set[str]] = {}
    for level in manifest["datasets"]:
        for entry in level["shardlist"]:
            folder, _, name = locate(uri, entry["url"]).rpartition("/")
            wanted.setdefault(folder, set()).add(name)
    return all(names <= set(storage.names(folder)) for folder, names in wanted.items())


def read_rejected(uri: str) -> list[Rejected]:
    """The rejects of a set. Raises FileNotFoundError."""
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()]


def _compare(source: Source, order: np.ndarray, keys: np.ndarray, parent: _Parent) -> Work | None:
    """What differs; None if less than half of the parent's samples would be left."""
    table = parent.table
    theirs = (
        np.array(table["key"].to_numpy(zero_copy_only=False), keys.dtype) if table.num_rows else np.empty(0, keys.dtype)
    )
    rows = np.searchsorted(theirs, keys)
    found = np.zeros(len(keys), bool)
    inside = rows < len(theirs)
    found[inside] = theirs[rows[inside]] == keys[inside]
    ours = [source.images[index] for index in order[found].tolist()]
    same_label = np.zeros(len(keys), bool)
    same_label[found] = _same_labels(ours, table, rows[found])
    same = same_label.copy()
    same[found] &= _same_tokens(ours, table, rows[found])
    if 2 * int(same.sum()) < sum(entry["nsamples"] for entry in parent.manifest["shardlist"]):
        return None
    carried, again = _carry(source, order, keys, parent, rows[same])
    done = same.copy()
    done[[at for at, _ in carried]] = True
    changed = int(np.count_nonzero(found & ~same)) + again
    todo = np.flatnonzero(~done)
    known = _known(table, rows[todo], same_label[todo])
    deleted = table.num_rows - int(found.sum()) + len(parent.rejected) - len(carried) - again
    change = Change(new=len(todo) - changed, changed=changed, deleted=deleted, kept=int(done.sum()), parent=parent.key)
    return Work(change, order[todo], known, parent.manifest, rows[same], [reject for _, reject in carried])


def _same_labels(ours: Sequence[SourceImage], table: pa.Table, rows: np.ndarray) -> np.ndarray:
    numbers = np.array([image.label if isinstance(image.label, int) else -1 for image in ours], np.int64)
    same = numbers == table["label"].to_numpy()[rows]
    if "attributes" not in table.column_names:
        return same & np.array([not isinstance(image.label, tuple) for image in ours], bool)
    theirs = attribute_array(table)[rows]
    pairs = zip(ours, theirs.tolist(), strict=True)
    return same & np.array(
        [isinstance(image.label, tuple) and list(image.label) == row for image, row in pairs], np.bool_
    )


def _same_tokens(ours: Sequence[SourceImage], table: pa.Table, rows: np.ndarray) -> np.ndarray:
    tokens = pa.array([image.token for image in ours], pa.string())
    theirs = table["token"].combine_chunks().take(pa.array(rows))
    return pc.equal(tokens, theirs).to_numpy(zero_copy_only=False).astype(bool)


def _known(table: pa.Table, rows: np.ndarray, same_label: np.ndarray) -> list[bytes | None]:
    """The parent's sha256 of images whose labels, and so all but perhaps their bytes, are as they were."""
    hashes = table["source_sha256"].combine_chunks()
    return [hashes[int(row)].as_py() if same else None for row, same in zip(rows, same_label, strict=True)]


def _carry(
    source: Source, order: np.ndarray, keys: np.ndarray, parent: _Parent, kept: np.ndarray
) -> tuple[list[tuple[int, Rejected]], int]:
    """Position and record of rejects that nothing has happened to, and the number of those to be looked at again."""
    if not parent.rejected:
        return [], 0
    labelled = label_kind(source) != "none"
    hashes = set(parent.table["source_sha256"].combine_chunks().take(pa.array(kept)).to_pylist())
    carried, again = [], 0
    for reject in parent.rejected:
        key = path_digest(reject["path"])[:KEY_BYTES].hex().encode()
        at = int(np.searchsorted(keys, key))
        if at == len(keys) or keys[at] != key:
            continue  # deleted
        image = source.images[int(order[at])]
        unlabelled = labelled and image.label is None
        stays = image.token == reject["token"] and unlabelled == (reject["kind"] == "unlabelled")
        if stays and (reject["kind"] != "duplicate" or bytes.fromhex(reject["sha256"]) in hashes):
            carried.append((at, reject))
        else:
            again += 1
    return carried, again
