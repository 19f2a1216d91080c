"""Merge the rows of finished chunks into the table of a set, and compute its fingerprint.

The table has no duplicates and is in canonical order. The rows of a set without a parent are read chunk by chunk, so
that memory does not grow with the columns of all images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stylegan.data.dataset_card import Rejected
from stylegan.data.index import attribute_array
from stylegan.data.sharding.chunks import duplicate
from stylegan.data.shardset import FORMAT, PIXEL_FIELDS

_ROWS = 65_536  # of a row group of the table, at least


@dataclass(frozen=True)
class Part:
    """A contiguous run of rows, loaded on demand: those of one chunk, or all of them.

    Attributes:
        load: takes the names of the columns, or None for all, and returns the rows. `tar` is one of the columns.
    """

    load: Callable[[list[str] | None], pa.Table]


@dataclass(frozen=True)
class Merged:
    """The facts about the table that were collected while it was written. A row is alive unless it is a duplicate.

    Attributes:
        num_images: rows of the table.
        fingerprint: of pixels and labels.
        images_fingerprint: of the pixels alone.
        labels: int64 [num_classes], number of images of each class.
        tars: int64, numbers of the tars that contain a living sample. The column `tar` of the table counts only these.
        duplicates: the rejects among the rows.
    """

    num_images: int
    fingerprint: str
    images_fingerprint: str
    labels: np.ndarray
    tars: np.ndarray
    duplicates: list[Rejected]


def merge(parts: Sequence[Part], file: Path, *, manifest: Mapping[str, Any], reject_duplicates: bool) -> Merged:
    """Write the table of a set.

    Args:
        parts: in canonical order, one after the other.
        file: the Parquet file to write.
        manifest: gives parameters, label_names and attribute_names.
        reject_duplicates: whether only the first of several images with the same bytes counts.
    """
    # Decide which rows and tars count.
    alive, duplicates = _find_duplicates(parts) if reject_duplicates else (None, [])
    tars = _living_tars(parts, alive)

    # Write the living rows with the new numbers of their tars.
    content, images = Fingerprint(manifest), Fingerprint(manifest, labelled=False)
    labels = np.zeros(len(manifest["label_names"]), np.int64)
    count = 0
    with _TableFile(file) as out:
        for table in _living(parts, alive, None):
            numbers = np.searchsorted(tars, table["tar"].to_numpy()).astype(np.int32)
            table = table.set_column(table.column_names.index("tar"), "tar", pa.array(numbers))
            content.update(table)
            images.update(table)
            if len(labels):
                labels += np.bincount(table["label"].to_numpy(), minlength=len(labels))
            count += table.num_rows
            out.write(table)
    return Merged(count, content.hexdigest(), images.hexdigest(), labels, tars, duplicates)


def _find_duplicates(parts: Sequence[Part]) -> tuple[np.ndarray, list[Rejected]]:
    """Return which rows of all parts together are alive, bool, and the rejects of the others.

    The first of several images with the same bytes is alive.
    """
    hashes = [binary_array(part.load(["source_sha256"])["source_sha256"]) for part in parts]
    words = np.concatenate(hashes) if hashes else np.empty((0, 32), np.uint8)
    _, firsts = np.unique(words.view("S32")[:, 0], return_index=True)
    alive = np.zeros(len(words), bool)
    alive[firsts] = True
    return alive, [] if alive.all() else _rejects(parts, alive)


def _rejects(parts: Sequence[Part], alive: np.ndarray) -> list[Rejected]:
    columns = ["path", "token", "bytes", "source_sha256"]
    rows = (row for table in _living(parts, ~alive, columns) for row in table.to_pylist())
    return [duplicate(row["path"], row["token"], row["bytes"], row["source_sha256"]) for row in rows]


def _living(parts: Sequence[Part], alive: np.ndarray | None, columns: list[str] | None) -> Iterator[pa.Table]:
    """Yield the rows of each part that are alive; all of them if `alive` is None."""
    start = 0
    for part in parts:
        table = part.load(columns)
        rows = alive[start : start + table.num_rows] if alive is not None else None
        start += table.num_rows
        yield table if rows is None or rows.all() else table.filter(pa.array(rows))


def _living_tars(parts: Sequence[Part], alive: np.ndarray | None) -> np.ndarray:
    found = [np.unique(table["tar"].to_numpy()) for table in _living(parts, alive, ["tar"])]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


class _TableFile:
    """A Parquet file with checksums, written in row groups of at least `_ROWS` rows (except the last one)."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> _TableFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        if sum(table.num_rows for table in self._waiting) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="zstd", write_page_checksum=True)
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._waiting.clear()


class Fingerprint:
    """The digest of the pixels and labels in canonical order, and of the settings and names that decide their meaning.

    It does not depend on paths, tars or the history of a set. With `labelled=False` it is the digest that the same rows
    would have without labels.
    """

    def __init__(self, manifest: Mapping[str, Any], *, labelled: bool = True) -> None:
        settings = {name: manifest["parameters"][name] for name in sorted(PIXEL_FIELDS)}
        names = [list(manifest[key]) if labelled else [] for key in ("label_names", "attribute_names")]
        self._labelled = labelled
        self._digest = hashlib.sha256(json.dumps([FORMAT, settings, *names]).encode())

    def update(self, table: pa.Table) -> None:
        """Add rows, with the columns label, attributes (if the set has them) and sha256."""
        labels = table["label"].to_numpy() if self._labelled else np.full(table.num_rows, -1)
        columns = [labels.astype("<i4")[:, None].view(np.uint8)]
        if self._labelled and "attributes" in table.column_names:
            columns.append(attribute_array(table))
        columns.append(binary_array(table["sha256"]))
        self._digest.update(np.concatenate(columns, axis=1).tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()[:16]


def binary_array(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of digests as uint8 [N, 32]."""
    arrays = [chunk for chunk in column.chunks if len(chunk)]
    parts = [
        np.frombuffer(array.buffers()[1], np.uint8).reshape(-1, 32)[array.offset : array.offset + len(array)]
        for array in arrays
    ]
    return np.concatenate(parts) if parts else np.empty((0, 32), np.uint8)


def explain_duplicates(rejected: Iterable[Rejected], tables: Iterator[pa.Table]) -> None:
    """Write into the reason of each duplicate which image it repeats.

    Args:
        rejected: all rejects; the duplicates among them are changed in place.
        tables: the columns path and source_sha256 of the living rows.
    """
    wanted: dict[bytes, list[Rejected]] = {}
    for reject in rejected:
        if reject["kind"] == "duplicate":
            wanted.setdefault(bytes.fromhex(reject["sha256"] or ""), []).append(reject)
    if not wanted:
        return

    # Search the digest of every living row among the sorted digests of the duplicates.
    keys = np.sort(np.array(list(wanted), "S32"))
    for table in tables:
        hashes = binary_array(table["source_sha256"]).view("S32")[:, 0]
        positions = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
        for row in np.flatnonzero(keys[positions] == hashes).tolist():
            for reject in wanted[table["source_sha256"][row].as_py()]:
                reject["reason"] = f"the same bytes as {table['path'][row].as_py()}"
