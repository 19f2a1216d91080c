"""Read the index of a set of shards: tar, offset, size and checksum of every image, so that no tar has to be parsed.

The index has a row per image, in canonical order, and is stored as `samples.parquet`. A tar may also contain samples
without a row, such as duplicates and images that were deleted since. They do not count.
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


def read_manifest(uri: str) -> dict[str, Any]:
    """Read the manifest of a set.

    Raises:
        StepError: it is missing or damaged.
    """
    manifest_uri = storage.join(uri, MANIFEST)
    try:
        manifest = storage.read_json(manifest_uri)
    except FileNotFoundError:
        raise StepError(describe_damage(uri, manifest_uri, "missing")) from None
    if not isinstance(manifest, dict) or not {"datasets", "parameters", "table", "num_images"} <= manifest.keys():
        raise StepError(describe_damage(uri, manifest_uri, "not a manifest of shards"))
    return manifest


def read_samples(uri: str, manifest: dict[str, Any], columns: list[str] | None = None) -> pa.Table:
    """Read the rows of all images, with all columns or some of them.

    Raises:
        StepError: the table is missing, damaged, or does not match the manifest.
    """
    table_uri = storage.join(uri, manifest["table"]["url"])
    try:
        with storage.open_read(table_uri) as file:
            table = pq.read_table(pa.PythonFile(file, mode="r"), columns=columns, page_checksum_verification=True)
    except FileNotFoundError:
        raise StepError(describe_damage(uri, table_uri, "missing")) from None
    except (pa.ArrowException, OSError) as error:
        raise StepError(describe_damage(uri, table_uri, f"damaged ({one_line(error, 200)})")) from error
    if table.num_rows != manifest["num_images"]:
        problem = f"has {table.num_rows} rows, its manifest promises {manifest['num_images']}"
        raise StepError(describe_damage(uri, table_uri, problem))
    return table


def attribute_array(table: pa.Table) -> np.ndarray:
    """Return the column `attributes` as uint8 [N, A]."""
    column = table["attributes"].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.uint8)
    return values.reshape(len(column), -1) if len(column) else values[:, None]


def describe_damage(shards_uri: str, uri: str, problem: str) -> str:
    """Return the one-line message about a file of a set that cannot be used, with the cure.

    A tar may be stored in the folder of an older set. Then that folder must be deleted as well.
    """
    folders = [shards_uri.rstrip("/")]
    if not uri.startswith(f"{folders[0]}/"):
        folders.append(uri.rpartition("/")[0].rpartition("/")[0])
    shown = " and ".join(folders)
    return f"{uri}: {problem}; delete {shown} and run `stylegan shard` again, which makes the same shards"


def locate(uri: str, url: str) -> str:
    """Return the URI of a file that the manifest in folder `uri` names by a relative `url`.

    A `url` that starts with `../` leads to the folder of another set.
    """
    while url.startswith("../"):
        uri, url = uri.rstrip("/").rpartition("/")[0], url[3:]
    return storage.join(uri, url)
