"""The request for a chunk, which goes to a worker, and the marker of a chunk, which the worker leaves behind.

A chunk is a part of the images of a set. It makes one tar for each resolution. Its marker, `chunks/000000.parquet`, is
written after the tars. The marker has a row for each sample; its metadata contain the tars, the rejects and a digest of
the request. A chunk is finished, and not done again, if it has the marker of the same request.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.dataset_card import Rejected
from stylegan.data.shardset import FORMAT, level_name, parameters
from stylegan.data.sources.base import Opener, SourceImage
from stylegan.errors import DamagedError, one_line
from stylegan.records import parse

KEY_BYTES = 10  # of the digest of a path, in a sample's key: 20 hex digits
UNREAD = "unread"  # kind of the rejects whose reading failed for a reason outside their bytes
_CHUNK = b"chunk"  # the entry of the marker's metadata
_CURE = "delete it and run the same command again, which does this chunk again"

logger = logging.getLogger("stylegan")

LabelKind = Literal["none", "class", "attributes"]


class Facts(TypedDict):
    """The metadata of a marker: the digest of the request, and what `FinishedChunk` says of tars and images."""

    digest: str
    tars: dict[int, tuple[str, int]]
    rejected: list[Rejected]
    touched: list[int]


@dataclass(frozen=True)
class Recipe:
    """The settings that all chunks of a set share; picklable.

    The opener of an archive may be large, so a worker should receive the recipe once and not with every chunk.

    Attributes:
        uri: folder of the set.
        open: as in `Source`.
        data: the settings.
        labels: the kind of label that the images have. If there is one, an image without a label is a reject.
        threads: number of images that a worker prepares at the same time.
    """

    uri: str
    open: Opener
    data: DataConfig
    labels: LabelKind
    threads: int


@dataclass(frozen=True)
class ChunkRequest:
    """The request for one chunk; picklable, and as large as its own part of the listing.

    Attributes:
        name: of the tars and the marker, such as `000003`.
        images: in canonical order.
        known: for each image, the sha256 of its bytes in the parent set, or None if the parent does not have it; empty
            without a parent.
    """

    name: str
    images: tuple[SourceImage, ...]
    known: tuple[bytes | None, ...] = ()

    def digest(self, recipe: Recipe) -> str:
        """Return the digest of everything that decides the tars."""
        labels = [
            image.label if image.label is None or isinstance(image.label, int) else list(image.label)
            for image in self.images
        ]
        listed = (
            [[image.path, image.token] for image in self.images],
            labels,
            [known and known.hex() for known in self.known],
        )
        return hashlib.sha256(json.dumps([FORMAT, parameters(recipe.data), recipe.labels, listed]).encode()).hexdigest()


@dataclass(frozen=True)
class FinishedChunk:
    """The results of a chunk, as its marker stores them.

    Attributes:
        rows: its samples.
        tars: sha256 and bytes of the tar of each resolution; empty if no image could be used.
        rejected: the images that could not be used.
        touched: indices in the request of the images whose bytes are still those of the parent.
    """

    rows: pa.Table
    tars: dict[int, tuple[str, int]]
    rejected: list[Rejected]
    touched: list[int]


class Sample(NamedTuple):
    """An image that can be used.

    Attributes:
        source_sha256: of the bytes of its file.
        num_bytes: of its file.
        size: width and height of the original.
        sha256: of `pixels`, uint8 [R, R] or [R, R, 3] at the final resolution.
        payloads: of all levels, the smallest first; None if they are raw and not made yet.
    """

    image: SourceImage
    source_sha256: bytes
    num_bytes: int
    size: tuple[int, int]
    sha256: bytes
    pixels: np.ndarray
    payloads: tuple[bytes, ...] | None


def marker_uri(uri: str, name: str) -> str:
    """Return the URI of the marker of a chunk."""
    return storage.join(uri, "chunks", f"{name}.parquet")


def tar_url(resolution: int, name: str) -> str:
    """Return the path of a tar of a chunk, relative to the folder of the set."""
    return f"{level_name(resolution)}/train-{name}.tar"


def read_chunk(uri: str, name: str, columns: list[str] | None = None) -> FinishedChunk:
    """Read the marker of a finished chunk, with all columns of its rows or some of them.

    Raises:
        FileNotFoundError: the chunk is not finished.
        DamagedError: the marker is not what was written there.
    """
    marker = marker_uri(uri, name)
    facts, rows = _read_marker(marker, lambda file: file.read(columns=columns).replace_schema_metadata(None))
    missing = set(columns or ()) - set(rows.column_names)
    if missing:
        raise DamagedError(f"{marker}: is damaged (it has no column {min(missing)}); {_CURE}")
    return FinishedChunk(rows, facts["tars"], facts["rejected"], facts["touched"])


def _read_marker(marker: str, read: Callable[[pq.ParquetFile], pa.Table]) -> tuple[Facts, pa.Table]:
    """Return the metadata of a marker, and what `read` returns of it. Raises as `read_chunk`."""
    content = storage.read_bytes(marker)
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            text, table = (file.schema_arrow.metadata or {}).get(_CHUNK, b""), read(file)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{marker}: is damaged ({one_line(error, 200)}); {_CURE}") from error
    return parse(text, Facts, origin=marker, cure=_CURE), table


def write_marker(recipe: Recipe, request: ChunkRequest, chunk: FinishedChunk) -> None:
    """Mark a chunk as finished. Its tars must be in their places."""
    facts = {"digest": request.digest(recipe), "tars": chunk.tars, "rejected": chunk.rejected, "touched": chunk.touched}
    table = chunk.rows.replace_schema_metadata({_CHUNK: json.dumps(facts)})
    storage.write_bytes(marker_uri(recipe.uri, request.name), _as_parquet(table))


def finished_facts(recipe: Recipe, request: ChunkRequest) -> Facts | None:
    """Return the metadata of the marker if it is that of exactly this request and its tars are there, else None.

    The rows are read as well, because a marker with a damaged one does not count. It is named in a warning.
    """
    try:
        facts, _ = _read_marker(marker_uri(recipe.uri, request.name), pq.ParquetFile.read)
        is_whole = facts["digest"] == request.digest(recipe) and _has_tars(recipe.uri, request.name, facts["tars"])
    except FileNotFoundError:  # no marker, or a tar is gone
        return None
    except DamagedError as error:
        logger.warning("%s", error)
        return None
    return facts if is_whole else None


def _has_tars(uri: str, name: str, tars: dict[int, tuple[str, int]]) -> bool:
    """Return whether local tars have the sizes that the marker gives; an object store takes whole files only."""
    return not storage.is_local(uri) or all(
        storage.size(storage.join(uri, tar_url(resolution, name))) == num_bytes
        for resolution, (_, num_bytes) in tars.items()
    )


class Rows:
    """The growing columns of a chunk's table. Add samples; then call `add_places` once per level."""

    def __init__(self, resolutions: tuple[int, ...], labels: LabelKind) -> None:
        self.resolutions, self.labels = resolutions, labels
        self.paths: list[str] = []
        self._samples: list[tuple[str, str, Any, bytes, bytes, int, int, int]] = []
        # For each level, arrays [3, n] of offsets, sizes and CRCs.
        self._places: list[list[np.ndarray]] = [[np.empty((3, 0), np.int64)] for _ in resolutions]

    def add(self, samples: Sequence[Sample], keys: Sequence[bytes]) -> None:
        """Add samples with their keys, without the places of their payloads."""
        self.paths += [sample.image.path for sample in samples]
        for key, sample in zip(keys, samples, strict=True):
            _, source_sha256, num_bytes, (width, height), sha256, _, _ = sample
            self._samples.append(
                (key.decode(), sample.image.token, sample.image.label, source_sha256, sha256, width, height, num_bytes)
            )

    def add_places(
        self, level: int, offsets: Iterable[int] | np.ndarray, payloads: Iterable[bytes | np.ndarray]
    ) -> None:
        """Add the offsets, sizes and CRCs of the payloads of those samples in the tar of one level.

        Args:
            level: the number of the level, counted from the smallest.
        """
        facts = [(len(payload), zlib.crc32(payload)) for payload in payloads]  # type: ignore[arg-type]
        sizes, crcs = zip(*facts, strict=True)
        self._places[level].append(np.array([offsets, sizes, crcs], np.int64))

    def table(self) -> pa.Table:
        """Return all samples as a table."""
        # The columns of the images.
        values = zip(*self._samples, strict=True) if self.paths else [()] * 8
        keys, tokens, labels, source_sha256, sha256, widths, heights, num_bytes = values
        columns = {"path": pa.array(self.paths, pa.string()), "token": pa.array(tokens, pa.string())}
        columns["label"] = pa.array([label if isinstance(label, int) else -1 for label in labels], pa.int32())
        if self.labels == "attributes":
            columns["attributes"] = pa.array(labels, pa.list_(pa.uint8()))
        columns |= {"source_sha256": pa.array(source_sha256, pa.binary(32)), "sha256": pa.array(sha256, pa.binary(32))}
        columns |= {"width": pa.array(widths, pa.int32()), "height": pa.array(heights, pa.int32())}
        columns |= {"bytes": pa.array(num_bytes, pa.int64()), "key": pa.array(keys, pa.string())}

        # The columns of the places, for each level.
        for resolution, places in zip(self.resolutions, self._places, strict=True):
            offsets, sizes, crcs = np.concatenate(places, axis=1)
            columns[f"offset_{resolution:04d}"] = pa.array(offsets)
            columns[f"size_{resolution:04d}"] = pa.array(sizes.astype(np.int32))
            columns[f"crc_{resolution:04d}"] = pa.array(crcs.astype(np.uint32))
        return pa.table(columns)


def _as_parquet(table: pa.Table) -> bytes:
    """Return the bytes of a Parquet file whose pages have checksums; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["label"], write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def to_read_again(reject: Rejected) -> bool:
    """Return whether a reject of an older set has no bytes, so that another set of the source reads it again.

    Version 0.1 did not tell rejects of the kind UNREAD from those whose bytes cannot be unpacked.
    """
    return reject["bytes"] is None


def duplicate(path: str, token: str, num_bytes: int, source_sha256: bytes) -> Rejected:
    """Return the reject of an image with the bytes of another. Its reason is filled in when the set is complete."""
    return {
        "path": path,
        "kind": "duplicate",
        "reason": "",
        "bytes": num_bytes,
        "token": token,
        "sha256": source_sha256.hex(),
    }


def path_digest(path: str) -> bytes:
    """Return the digest of a path, by which canonical order sorts."""
    return hashlib.sha256(path.encode()).digest()


def sample_key(path: str) -> str:
    """Return the WebDataset key of an image: the same in every set. Sorted keys are in canonical order."""
    return path_digest(path)[:KEY_BYTES].hex()
