"""Verify a set of shards: read every byte of every tar again and compare it with the manifest and the table."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stylegan import storage
from stylegan.data.dataset_card import REJECTED, read_rejected
from stylegan.data.index import locate, read_manifest, read_samples
from stylegan.data.payload import decode
from stylegan.data.sharding.merge import Fingerprint
from stylegan.data.sharding.tar_writer import BLOCK, header, label_members, member_name
from stylegan.data.shardset import MANIFEST, LevelEntry, Manifest
from stylegan.errors import DamagedError, StepError

SHOWN = 20  # problems that are listed for one tar, at most


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Attributes:
        num_tars: tars that were read.
        num_images: images of the set.
        problems: one line for each problem; empty if nothing is damaged.
    """

    num_tars: int
    num_images: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class TarRequest:
    """One tar and its rows, for a worker.

    Attributes:
        uri: of the tar.
        sha256: of the tar, by the manifest.
        num_bytes: of the tar, by the manifest.
        num_samples: in the tar, by the manifest; some may have no row.
        suffix: `npy` or `png`, of the payloads.
        shape: (channels, r, r) of the pixels.
        rows: the columns key, path, label, attributes, offset, size, crc, and sha256 if the pixels are to be compared.
    """

    uri: str
    sha256: str
    num_bytes: int
    num_samples: int
    suffix: str
    shape: tuple[int, int, int]
    rows: pa.Table


Pmap = Callable[[Callable[[TarRequest], list[str]], Iterable[TarRequest]], Iterator[list[str]]]


def verify(uri: str, *, pmap: Pmap = map, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Read a finished set again, wherever its tars are, and list what is damaged.

    Checked are the checksums of tars and samples, the pixels, labels, counts, rows and the fingerprint.

    Args:
        uri: folder of the set.
        pmap: called like `map`; may work on the tars in any order and in any process.
        progress: called with the number of tars done and of all tars.

    Raises:
        StepError: the manifest or the table is missing or damaged, so that nothing can be compared, or the store does
            not answer.
    """
    uri = storage.absolute(uri)
    _check_place(uri)
    manifest = read_manifest(uri)

    # Check the table and the list of rejects.
    table = read_samples(uri, manifest)
    problems = [*_check_table_file(uri, manifest), *_check_counts(uri, manifest, table)]

    # Check every tar.
    requests = [(level, number) for level in manifest["datasets"] for number in range(len(level["shardlist"]))]
    rows = _rows_by_tar(table)
    results = pmap(check_tar, (_request(uri, manifest, rows(number), level, number) for level, number in requests))
    for done, found in enumerate(results, start=1):
        problems += found
        if progress is not None:
            progress(done, len(requests))
    return Verification(len(requests), table.num_rows, tuple(problems))


def _check_place(uri: str) -> None:
    """Raise StepError if a folder cannot be a set, before anybody is told to delete something in it."""
    names = storage.names(uri)
    if "chunks" in names and MANIFEST not in names:
        raise StepError(
            f"{storage.join(uri, MANIFEST)}: missing; the set is not finished: shard its images again, which goes on"
        )
    if "chunks" in names or any(name.startswith("samples") for name in names):
        return
    if not names:
        what = "there is no such folder, or it is empty"
    else:
        what = f"it has {MANIFEST}, but neither chunks/ nor a table" if MANIFEST in names else f"{MANIFEST}: missing"
    datasets = storage.join(uri, "datasets")
    sets = [name for name in storage.names(datasets) if not name.endswith(".json")]
    example = storage.join(datasets, sets[0]) if sets else "{storage.root}/datasets/KEY"
    raise StepError(f"{uri}: is no set of shards ({what}); give the folder of a set, such as {example}")


def _check_table_file(uri: str, manifest: Manifest) -> list[str]:
    table_uri = storage.join(uri, manifest["table"]["url"])
    content = storage.read_bytes(table_uri)
    if len(content) != manifest["table"]["filesize"]:
        return [f"{table_uri}: has {len(content)} bytes, the manifest says {manifest['table']['filesize']}"]
    found = hashlib.sha256(content).hexdigest()
    if found == manifest["table"]["sha256"]:
        return []
    return [f"{table_uri}: its SHA-256 is {found[:12]}..., not what the manifest says"]


def _check_counts(uri: str, manifest: Manifest, table: pa.Table) -> list[str]:
    """Compare the table and `rejected.jsonl` with the manifest."""
    problems = []

    # Fingerprints, order and labels of the rows. Sets of earlier versions have one fingerprint only.
    said: Mapping[str, Any] = manifest
    for name, labelled in (("fingerprint", True), ("images_fingerprint", False)):
        content = Fingerprint(manifest, labelled=labelled)
        content.update(table)
        if said.get(name, content.hexdigest()) != content.hexdigest():
            problems.append(f"{uri}: the {name} of its rows is {content.hexdigest()}, its manifest says {said[name]}")
    keys = table["key"].to_numpy(zero_copy_only=False)
    if not (keys[:-1] < keys[1:]).all():
        problems.append(f"{uri}: its rows are not in canonical order")
    labels = Counter(table["label"].to_pylist())
    if manifest["label_counts"] != {name: labels[number] for number, name in enumerate(manifest["label_names"])}:
        problems.append(f"{uri}: its rows have not the labels that its manifest counts")

    # The list of rejects. `read_rejected` skips a last line without its end, which is damage here.
    rejected_uri = storage.join(uri, REJECTED)
    try:
        rejected = Counter(reject["kind"] for reject in read_rejected(uri))
        is_whole = storage.read_bytes(rejected_uri)[-1:] in (b"", b"\n")
    except (FileNotFoundError, DamagedError):
        is_whole = False
    if not is_whole:
        problems.append(f"{rejected_uri}: missing or damaged")
    elif rejected != Counter(manifest["rejected"]):
        problems.append(f"{rejected_uri}: has not the lines that the manifest counts")
    elif rejected.total() != manifest["num_rejected"]:
        problems.append(f"{rejected_uri}: has {rejected.total()} lines, its manifest says {manifest['num_rejected']}")
    return problems


def _rows_by_tar(table: pa.Table) -> Callable[[int], pa.Table]:
    """Return a function that maps the number of a tar to its rows."""
    tars = table["tar"].to_numpy()
    order = np.argsort(tars, kind="stable")
    tars = tars[order]

    def rows(number: int) -> pa.Table:
        start, stop = np.searchsorted(tars, number), np.searchsorted(tars, number, side="right")
        return table.take(pa.array(order[start:stop]))

    return rows


def _request(uri: str, manifest: Manifest, rows: pa.Table, level: LevelEntry, number: int) -> TarRequest:
    """Return the request for one tar of a level; the table has the sha256 of the pixels of the highest level only."""
    resolution, entry = level["resolution"], level["shardlist"][number]
    columns = {"offset": f"offset_{resolution:04d}", "size": f"size_{resolution:04d}", "crc": f"crc_{resolution:04d}"}
    columns |= {name: name for name in ("key", "path", "label", "attributes") if name in rows.column_names}
    if resolution == manifest["resolutions"][-1]:
        columns["sha256"] = "sha256"
    return TarRequest(
        uri=locate(uri, entry["url"]),
        sha256=entry["sha256"],
        num_bytes=entry["filesize"],
        num_samples=entry["nsamples"],
        suffix=level["suffix"],
        shape=(manifest["parameters"]["channels"], resolution, resolution),
        rows=pa.table({name: rows[column] for name, column in columns.items()}),
    )


def check_tar(request: TarRequest) -> list[str]:
    """Return the problems of one tar, as lines that name it and its damaged samples."""
    try:
        content = memoryview(storage.read_bytes(request.uri))
    except FileNotFoundError:
        return [f"{request.uri}: missing"]

    # Check every sample that has a row.
    problems = []
    for row in request.rows.to_pylist():
        if wrong := _check_sample(content, row, request):
            problems.append(f"{request.uri}: sample {row['key']} ({row['path']}): {wrong}")
    if len(problems) > SHOWN:
        problems[SHOWN:] = [f"{request.uri}: {len(problems) - SHOWN} more samples are damaged"]

    # Check the tar as a whole.
    if len(content) != request.num_bytes:
        problems.append(f"{request.uri}: has {len(content)} bytes, the manifest says {request.num_bytes}")
    found = hashlib.sha256(content).hexdigest()
    if found != request.sha256:
        where = "" if problems else ", though every sample of the table is whole: the damage is in what no row names"
        problems.append(
            f"{request.uri}: its SHA-256 is {found[:12]}..., the manifest says {request.sha256[:12]}...{where}"
        )
    elif (count := _count_samples(content, request.suffix)) != request.num_samples:
        problems.append(f"{request.uri}: has {count} samples, the manifest says {request.num_samples}")
    return problems


def _count_samples(content: memoryview, suffix: str) -> int:
    """Count the payloads in a whole tar."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return sum(member.name.endswith(f".{suffix}") for member in tar)


def _check_sample(content: memoryview, row: dict[str, Any], request: TarRequest) -> str | None:
    """Return the problem of one sample, or None: in its payload, its pixels, or the bytes around the payload."""
    # The payload.
    start, size = row["offset"], row["size"]
    payload = content[start : start + size]
    if len(payload) != size or zlib.crc32(payload) != row["crc"]:
        return f"its payload is damaged (bytes {start} to {start + size})"

    # The pixels.
    try:
        pixels = decode(payload, request.suffix)
    except ValueError as error:
        return f"its payload is {error}"
    if pixels.shape != request.shape:
        return f"has the shape {pixels.shape}, the manifest says {request.shape}"
    if "sha256" in row and hashlib.sha256(_as_stored(pixels)).digest() != row["sha256"]:
        return "its pixels are not those of the table"

    # The label and the headers before the payload, and the zeros after it.
    label = row.get("attributes")
    if label is None and row["label"] >= 0:
        label = row["label"]
    key = row["key"].encode()
    before = label_members(key, label) + header(member_name(key, request.suffix), size)
    after = bytes(-size % BLOCK)
    whole_before = content[max(start - len(before), 0) : start] == before
    whole_after = content[start + size : start + size + len(after)] == after
    if not (whole_before and whole_after):
        return "its label or a header is damaged, or not that of the table"
    return None


def _as_stored(pixels: np.ndarray) -> bytes:
    """Return the bytes of pixels [C, r, r] in the order [r, r, C]."""
    return pixels.transpose(1, 2, 0).tobytes()
