"""Proof of a set of shards: every byte of every tar is read again and compared with what manifest and table say."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stylegan import storage
from stylegan.data.index import locate, read_manifest, read_samples
from stylegan.data.payload import decode
from stylegan.data.sharding.changes import REJECTED, read_rejected
from stylegan.data.sharding.merge import Fingerprint
from stylegan.data.sharding.tar_writer import BLOCK, header, label_members, member_name
from stylegan.data.shardset import FORMAT, MANIFEST
from stylegan.errors import StepError

SHOWN = 20  # problems that are told of one tar


@dataclass(frozen=True)
class Verification:
    """What was read, and what is wrong; `problems` has one line for each, and is empty for a whole set."""

    num_tars: int
    num_images: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class TarRequest:
    """One tar and its rows, for a worker.

    Attributes:
        rows: key, path, label, attributes, offset, size, crc, and sha256 if the pixels are to be compared.
        shape: (channels, r, r) of the pixels.
    """

    uri: str
    sha256: str
    num_bytes: int
    suffix: str
    shape: tuple[int, int, int]
    rows: pa.Table


Pmap = Callable[[Callable[[TarRequest], list[str]], Iterable[TarRequest]], Iterator[list[str]]]


def verify(uri: str, *, pmap: Pmap = map, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Read a finished set again, wherever its tars are: checksums of tars and samples, pixels, labels, counts, rows, fingerprint.

    Args:
        uri: folder of the set.
        pmap: as `map`; may work on tars in any order and in any process.
        progress: called with the number of tars done and of all tars.

    Raises:
        StepError: there is no manifest or no whole table, so nothing can be compared, or the store does not answer.
    """
    uri = storage.absolute(uri)
    manifest = read_manifest(uri)
    if manifest.get("format") != FORMAT:
        raise StepError(
            f"{storage.join(uri, MANIFEST)}: is of format {manifest.get('format')}, only {FORMAT} is known; shard again"
        )
    table = read_samples(uri, manifest)
    problems = [*_check_table_file(uri, manifest), *_check_counts(uri, manifest, table)]
    requests = [(level, number) for level in manifest["datasets"] for number in range(len(level["shardlist"]))]
    rows = _rows_by_tar(table)
    results = pmap(check_tar, (_request(uri, manifest, rows(number), level, number) for level, number in requests))
    for done, found in enumerate(results, start=1):
        problems += found
        if progress is not None:
            progress(done, len(requests))
    return Verification(len(requests), table.num_rows, tuple(problems))


def _check_table_file(uri: str, manifest: dict[str, Any]) -> list[str]:
    table_uri = storage.join(uri, manifest["table"]["url"])
    found = hashlib.sha256(storage.read_bytes(table_uri)).hexdigest()
    return (
        []
        if found == manifest["table"]["sha256"]
        else [f"{table_uri}: its SHA-256 is {found[:12]}..., not what the manifest says"]
    )


def _check_counts(uri: str, manifest: dict[str, Any], table: pa.Table) -> list[str]:
    """What the table and `rejected.jsonl` say against what the manifest says."""
    problems = []
    content = Fingerprint(manifest)
    content.update(table)
    if content.hexdigest() != manifest["fingerprint"]:
        problems.append(
            f"{uri}: the fingerprint of its rows is {content.hexdigest()}, its manifest says {manifest['fingerprint']}"
        )
    keys = table["key"].to_numpy(zero_copy_only=False)
    if not (keys[:-1] < keys[1:]).all():
        problems.append(f"{uri}: its rows are not in canonical order")
    labels = Counter(table["label"].to_pylist())
    if manifest["label_counts"] != {name: labels[number] for number, name in enumerate(manifest["label_names"])}:
        problems.append(f"{uri}: its rows have not the labels that its manifest counts")
    try:
        rejected = Counter(reject["kind"] for reject in read_rejected(storage.join(uri, REJECTED)))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return [*problems, f"{storage.join(uri, REJECTED)}: missing or damaged"]
    if rejected != Counter(manifest["rejected"]):
        problems.append(f"{storage.join(uri, REJECTED)}: has not the lines that the manifest counts")
    return problems


def _rows_by_tar(table: pa.Table) -> Callable[[int], pa.Table]:
    """A function from the number of a tar to its rows."""
    tars = table["tar"].to_numpy()
    order = np.argsort(tars, kind="stable")
    tars = tars[order]
    return lambda number: table.take(
        pa.array(order[np.searchsorted(tars, number) : np.searchsorted(tars, number, side="right")])
    )


def _request(uri: str, manifest: dict[str, Any], rows: pa.Table, level: dict[str, Any], number: int) -> TarRequest:
    resolution, entry = level["resolution"], level["shardlist"][number]
    columns = {"offset": f"offset_{resolution:04d}", "size": f"size_{resolution:04d}", "crc": f"crc_{resolution:04d}"}
    columns |= {name: name for name in ("key", "path", "label", "attributes") if name in rows.column_names}
    if resolution == manifest["resolutions"][-1]:
        columns["sha256"] = "sha256"
    return TarRequest(
        uri=locate(uri, entry["url"]),
        sha256=entry["sha256"],
        num_bytes=entry["filesize"],
        suffix=level["suffix"],
        shape=(manifest["parameters"]["channels"], resolution, resolution),
        rows=pa.table({name: rows[column] for name, column in columns.items()}),
    )


def check_tar(request: TarRequest) -> list[str]:
    """What is wrong with one tar, in lines that name it and its samples."""
    try:
        content = memoryview(storage.read_bytes(request.uri))
    except FileNotFoundError:
        return [f"{request.uri}: missing"]
    problems = []
    for row in request.rows.to_pylist():
        if wrong := _check_sample(content, row, request):
            problems.append(f"{request.uri}: sample {row['key']} ({row['path']}): {wrong}")
    if len(problems) > SHOWN:
        problems[SHOWN:] = [f"{request.uri}: {len(problems) - SHOWN} more samples are damaged"]
    if len(content) != request.num_bytes:
        problems.append(f"{request.uri}: has {len(content)} bytes, the manifest says {request.num_bytes}")
    found = hashlib.sha256(content).hexdigest()
    if found != request.sha256:
        where = "" if problems else ", though every sample of the table is whole: the damage is in what no row names"
        problems.append(
            f"{request.uri}: its SHA-256 is {found[:12]}..., the manifest says {request.sha256[:12]}...{where}"
        )
    return problems


def _check_sample(content: memoryview, row: dict[str, Any], request: TarRequest) -> str | None:
    """What is wrong with one sample: its payload, its pixels, or what stands around the payload."""
    start, size = row["offset"], row["size"]
    payload = content[start : start + size]
    if len(payload) != size or zlib.crc32(payload) != row["crc"]:
        return f"its payload is damaged (bytes {start} to {start + size})"
    try:
        pixels = decode(payload, request.suffix)
    except ValueError as error:
        return f"its payload is {error}"
    if pixels.shape != request.shape:
        return f"has the shape {pixels.shape}, the manifest says {request.shape}"
    if "sha256" in row and hashlib.sha256(_as_stored(pixels)).digest() != row["sha256"]:
        return "its pixels are not those of the table"
    label = row["attributes"] if row.get("attributes") is not None else row["label"] if row["label"] >= 0 else None
    key = row["key"].encode()
    before = label_members(key, label) + header(member_name(key, request.suffix), size)
    after = bytes(-size % BLOCK)
    if (
        content[max(start - len(before), 0) : start] != before
        or content[start + size : start + size + len(after)] != after
    ):
        return "its label or a header is damaged, or not that of the table"
    return None


def _as_stored(pixels: np.ndarray) -> bytes:
    """The bytes of pixels [C, r, r] in the order [r, r, C]."""
    return pixels.transpose(1, 2, 0).tobytes()
