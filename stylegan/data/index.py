"""Where every image of a set of shards lies: tar, offset, size and checksum, for reading in any order without parsing tars.

The rows are those of `samples.parquet`, in canonical order; a tar may also hold samples without a row, which count no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stylegan import storage
from stylegan.data.shardset import MANIFEST, ShardSet
from stylegan.errors import StepError, one_line


@dataclass(frozen=True)
class Tar:
    """One tar of a level, as the manifest knows it."""

    uri: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class LevelIndex:
    """All images of one resolution; arrays have one entry for each image.

    Attributes:
        tars: those that `tar` counts.
        suffix: `npy` or `png`, what `payload.decode` asks for.
        shape: (channels, r, r) of every image.
        tar: int32 [N], index in `tars`.
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
    """The index of one resolution.

    Raises:
        StepError: no such resolution, or manifest or table is missing or damaged.
    """
    if resolution not in shards.resolutions:
        raise StepError(f"{shards.uri}: has no shards at resolution {resolution}; there are {list(shards.resolutions)}")
    manifest = read_manifest(shards.uri)
    level = next(level for level in manifest["datasets"] if level["resolution"] == resolution)
    name = f"{resolution:04d}"
    columns = ["label", "tar", f"offset_{name}", f"size_{name}", f"crc_{name}"] + ["attributes"] * bool(
        shards.attribute_names
    )
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


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of a set. Raises StepError if it is missing or damaged."""
    try:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
    except FileNotFoundError:
        raise StepError(damaged(uri, storage.join(uri, MANIFEST), "missing")) from None
    if not isinstance(manifest, dict) or not {"datasets", "parameters", "table", "num_images"} <= manifest.keys():
        raise StepError(damaged(uri, storage.join(uri, MANIFEST), "not a manifest of shards"))
    return manifest


def read_samples(uri: str, manifest: dict[str, Any], columns: list[str] | None = None) -> pa.Table:
    """The rows of all images, or some columns of them. Raises StepError if the table is missing, damaged, or another."""
    table_uri = storage.join(uri, manifest["table"]["url"])
    try:
        with storage.open_read(table_uri) as file:
            table = pq.read_table(pa.PythonFile(file, mode="r"), columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        raise StepError(damaged(uri, table_uri, "missing")) from None
    except (pa.ArrowException, OSError) as error:
        raise StepError(damaged(uri, table_uri, f"damaged ({one_line(error, 200)})")) from error
    if table.num_rows != manifest["num_images"]:
        raise StepError(
            damaged(uri, table_uri, f"has {table.num_rows} rows, its manifest promises {manifest['num_images']}")
        )
    return table


def attribute_array(table: pa.Table) -> np.ndarray:
    """uint8 [N, A] of the column `attributes`."""
    column = table["attributes"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.uint8)
    return values.reshape(len(column), -1) if len(column) else values[:, None]


def damaged(shards_uri: str, uri: str, what: str) -> str:
    """The line about a file of a set that cannot be used: a tar may lie in the folder of an older set, which then must go as well."""
    folders = [shards_uri.rstrip("/")]
    if not uri.startswith(f"{folders[0]}/"):
        folders.append(uri.rpartition("/")[0].rpartition("/")[0])
    shown = " and ".join(folders)
    return f"{uri}: {what}; delete {shown} and run `stylegan shard` again, which makes the same shards"


def locate(uri: str, url: str) -> str:
    """The URI of a file that a manifest in the folder `uri` names relative to itself (`../` leads to the folder of another set)."""
    while url.startswith("../"):
        uri, url = uri.rstrip("/").rpartition("/")[0], url[3:]
    return storage.join(uri, url)
