"""Read the index of a set of shards: tar, offset, size and checksum of every image, so that no tar has to be parsed.

The index has a row per image, in canonical order, and is stored as `samples.parquet`. A tar may also contain samples
without a row, such as duplicates and images that were deleted since. They do not count.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict
from typing_extensions import TypedDict

from stylegan import storage
from stylegan.data.shardset import FORMAT, MANIFEST, Manifest, ShardSet, contradiction
from stylegan.errors import DamagedError, StepError, one_line
from stylegan.records import parse


@dataclass(frozen=True)
class Tar:
    """One tar of a level, with the size and checksum that the manifest gives."""

    uri: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class LevelIndex:
    """The index of all images of one resolution; each array has one entry per image.

    Attributes:
        tars: the tars, in the order of the numbers in `tar`.
        suffix: `npy` or `png`, as `payload.decode` takes it.
        shape: (channels, r, r) of every image.
        tar: int32 [N], position in `tars`.
        offset: int64 [N], first byte of the payload in its tar.
        size: int32 [N], bytes of the payload.
        crc: uint32 [N], `zlib.crc32` of the payload.
        labels: int64 [N], class numbers; -1 without labels.
        attributes: uint8 [N, A] of 0 and 1, or None in a set without attributes.
    """

    tars: tuple[Tar, ...]
    suffix: str
    shape: tuple[int, int, int]
    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray | None


def read_level(shards: ShardSet, resolution: int) -> LevelIndex:
    """Read the index of one resolution.

    Raises:
        StepError: no such resolution, or the manifest or the table is missing or damaged.
    """
    if resolution not in shards.resolutions:
        raise StepError(f"{shards.uri}: has no shards at resolution {resolution}; there are {list(shards.resolutions)}")
    manifest = read_manifest(shards.uri)
    level = next(level for level in manifest["datasets"] if level["resolution"] == resolution)
    name = f"{resolution:04d}"
    columns = ["label", "tar", f"offset_{name}", f"size_{name}", f"crc_{name}"]
    if shards.attribute_names:
        columns.append("attributes")
    table = read_samples(shards.uri, manifest, columns)
    return LevelIndex(
        tars=tuple(
            Tar(locate(shards.uri, entry["url"]), entry["sha256"], entry["filesize"]) for entry in level["shardlist"]
        ),
        suffix=level["suffix"],
        shape=(manifest["parameters"]["channels"], resolution, resolution),
        tar=table["tar"].to_numpy(),
        offset=table[f"offset_{name}"].to_numpy(),
        size=table[f"size_{name}"].to_numpy(),
        crc=table[f"crc_{name}"].to_numpy(),
        labels=table["label"].to_numpy().astype(np.int64),
        attributes=attribute_array(table) if shards.attribute_names else None,
    )


def image_shape(shards: ShardSet) -> tuple[int, int, int]:
    """Return (channels, r, r) of the images at the largest resolution. Raises StepError as `read_manifest`."""
    resolution = max(shards.resolutions)
    return read_manifest(shards.uri)["parameters"]["channels"], resolution, resolution


class _AnyFormat(TypedDict):
    """What manifests of all formats have."""

    __pydantic_config__ = ConfigDict(extra="ignore")  # type: ignore[misc]

    format: int


def find_manifest(uri: str) -> Manifest | None:
    """Read the manifest of a finished set; None if the folder has none, or one of another format.

    Raises:
        DamagedError: it is not what was written there. Such a set counts neither as finished nor as missing.
        StepError: the store does not answer.
    """
    try:
        return read_manifest(uri)
    except _NoSetError:
        return None


def read_manifest(uri: str) -> Manifest:
    """Read the manifest of a set.

    Raises:
        DamagedError: it is not what was written there.
        StepError: it is missing or of another format, or the store does not answer.
    """
    manifest_uri = storage.join(uri, MANIFEST)
    # The images are not prepared again for it, because the chunks keep their own markers.
    cure = "delete this file and shard its images again, which makes the same shards"
    try:
        content = storage.read_bytes(manifest_uri)
    except FileNotFoundError:
        raise _NoSetError(f"{manifest_uri}: missing; shard its images again, which makes the same shards") from None
    found = parse(content, _AnyFormat, origin=manifest_uri, cure=cure)["format"]
    if found != FORMAT:
        raise _NoSetError(f"{manifest_uri}: is of format {found}, only {FORMAT} is known; shard again")
    manifest = parse(content, Manifest, origin=manifest_uri, cure=cure)
    problem = contradiction(manifest)
    if problem:
        raise DamagedError(f"{manifest_uri}: is damaged ({problem}); {cure}")
    return manifest


class _NoSetError(StepError):
    """Raised where a folder has no manifest, or one of another format."""


def read_samples(uri: str, manifest: Manifest, columns: list[str] | None = None) -> pa.Table:
    """Read the rows of all images, with all columns or some of them.

    Raises:
        DamagedError: the table is missing, damaged, or does not match the manifest.
        StepError: the store does not answer.
    """
    table_uri = storage.join(uri, manifest["table"]["url"])
    try:
        with storage.open_read(table_uri) as file:
            table = pq.read_table(pa.PythonFile(file, mode="r"), columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        raise DamagedError(describe_damage(uri, table_uri, "missing")) from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(describe_damage(uri, table_uri, f"damaged ({one_line(error, 200)})")) from error
    problem = _table_problem(table, manifest, columns)
    if problem:
        raise DamagedError(describe_damage(uri, table_uri, problem))
    return table


def _table_problem(table: pa.Table, manifest: Manifest, columns: list[str] | None) -> str | None:
    """Return why a table cannot be that of the manifest; None if it can."""
    for name in column_names(manifest) if columns is None else columns:
        if name not in table.column_names:
            return f"damaged (it has no column {name})"
        column = table[name]
        if column.null_count:
            return f"damaged (its column {name} has rows without a value)"
        if not _COLUMN_TYPES.get(name, pa.types.is_integer)(column.type):
            return f"damaged (its column {name} is of type {column.type})"
    if table.num_rows != manifest["num_images"]:
        return f"has {table.num_rows} rows, its manifest promises {manifest['num_images']}"
    limits = {"tar": (0, len(manifest["shardlist"])), "label": (-1, len(manifest["label_names"]))}
    for name, (low, high) in limits.items():
        if name in table.column_names:
            values = table[name].to_numpy()
            if values.min() < low or values.max() >= max(high, low + 1):
                return (
                    f"damaged (its column {name} goes from {values.min()} to {values.max()}, which its manifest lacks)"
                )
    if "attributes" in table.column_names:
        lengths = pc.unique(pc.list_value_length(table["attributes"])).to_pylist()
        if lengths != [len(manifest["attribute_names"])]:
            return f"damaged (its rows have {lengths} attributes, its manifest has {len(manifest['attribute_names'])})"
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


# All other columns are of integers.
_COLUMN_TYPES = {
    "key": _is_text,
    "path": _is_text,
    "token": _is_text,
    "source_sha256": pa.types.is_fixed_size_binary,
    "sha256": pa.types.is_fixed_size_binary,
    "attributes": pa.types.is_list,
}


def column_names(manifest: Manifest) -> list[str]:
    """Return the names of all columns of a set's table."""
    names = ["key", "path", "token", "label", "source_sha256", "sha256", "width", "height", "bytes", "tar"]
    if manifest["attribute_names"]:
        names.append("attributes")
    return names + [f"{name}_{side:04d}" for side in manifest["resolutions"] for name in ("offset", "size", "crc")]


def attribute_array(table: pa.Table) -> np.ndarray:
    """Return the column `attributes` as uint8 [N, A]."""
    column = table["attributes"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.uint8)
    return values.reshape(len(column), -1) if len(column) else values[:, None]


def describe_damage(shards_uri: str, uri: str, problem: str) -> str:
    """Return the one-line message about a file of a set that cannot be used, with the cure.

    A tar may be stored in the folder of an older set, and newer sets may use the tars of this one. The cure never
    deletes a tar that another set lists.
    """
    folder, owner = shards_uri.rstrip("/"), _owner(shards_uri, uri)
    others = _sets_built_on(folder)
    delete = f"delete {folder}"
    if others:
        named = ", ".join(others)
        kept = f"not the folder: the tars in it are also those of {named}"
        delete = f"delete {storage.join(folder, MANIFEST)} and {storage.join(folder, 'chunks')} ({kept})"
    if not others and owner == folder:
        return f"{uri}: {problem}; {delete} and shard its images again, which makes the same shards"
    anew = "its images again with --set data.incremental=false"
    where = "" if owner == folder else f", without those of {owner}"
    return f"{uri}: {problem}; {delete} and shard {anew}, which makes the same shards{where}"


def _owner(shards_uri: str, uri: str) -> str:
    """Return the folder of the set that a file belongs to."""
    folder = shards_uri.rstrip("/")
    return folder if uri.startswith(f"{folder}/") else uri.rpartition("/")[0].rpartition("/")[0]


def _sets_built_on(folder: str) -> list[str]:
    """Return the names of the sets that list tars in the folder of another one, as far as they can be read."""
    parent, _, name = folder.rpartition("/")
    found = []
    with suppress(StepError):
        for other in storage.names(parent):
            with suppress(StepError):
                manifest = None if other == name else find_manifest(storage.join(parent, other))
                if manifest and any(entry["url"].startswith(f"../{name}/") for entry in manifest["shardlist"]):
                    found.append(other)
    return found


def locate(uri: str, url: str) -> str:
    """Return the URI of a file that the manifest in folder `uri` names by a relative `url`.

    A `url` that starts with `../` leads to the folder of another set.
    """
    while url.startswith("../"):
        uri, url = uri.rstrip("/").rpartition("/")[0], url[3:]
    return storage.join(uri, url)
