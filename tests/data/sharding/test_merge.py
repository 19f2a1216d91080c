"""Merging: only the first of equal bytes counts, tars without a row are dropped, and the fingerprint covers content in
order.
"""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stylegan.data.sharding.merge import Fingerprint, Merged, Part, binary_array, explain_duplicates, merge
from stylegan.data.shardset import PIXEL_FIELDS

MANIFEST = {"parameters": dict.fromkeys(PIXEL_FIELDS, 1), "label_names": ["a", "b"], "attribute_names": []}


def rows(contents: str, tar: int) -> pa.Table:
    """Make a row for each letter: equal letters have equal bytes, capitals are of class 1."""
    digests = [hashlib.sha256(letter.encode()).digest() for letter in contents]
    return pa.table(
        {
            "path": pa.array([f"{tar}-{number}-{letter}" for number, letter in enumerate(contents)], pa.string()),
            "token": pa.array(["t"] * len(contents), pa.string()),
            "label": pa.array([int(letter.isupper()) for letter in contents], pa.int32()),
            "source_sha256": pa.array(digests, pa.binary(32)),
            "sha256": pa.array(digests, pa.binary(32)),
            "bytes": pa.array([9] * len(contents), pa.int64()),
            "tar": pa.array([tar] * len(contents), pa.int32()),
        }
    )


def load(table: pa.Table, columns: list[str] | None) -> pa.Table:
    return table if columns is None else table.select(columns)


def merged(folder: Path, tables: list[pa.Table], *, reject: bool = True) -> tuple[Merged, pa.Table]:
    file = folder / "samples.parquet"
    found = merge([Part(partial(load, table)) for table in tables], file, manifest=MANIFEST, reject_duplicates=reject)
    return found, pq.read_table(file)


def test_first_of_equal_bytes_lives(tmp_path):
    """Duplicates are found across parts too; a tar without a living row is not counted."""
    found, table = merged(tmp_path, [rows("abA", 0), rows("ba", 1), rows("cbB", 2)])
    assert table["path"].to_pylist() == ["0-0-a", "0-1-b", "0-2-A", "2-0-c", "2-2-B"]
    assert table["tar"].to_pylist() == [0, 0, 0, 1, 1]
    assert found.tars.tolist() == [0, 2]
    assert (found.num_images, found.labels.tolist()) == (5, [3, 2])
    assert [reject["path"] for reject in found.duplicates] == ["1-0-b", "1-1-a", "2-1-b"]
    explain_duplicates(found.duplicates, iter([table.slice(0, 1), table.slice(1)]))
    assert [reject["reason"].split()[-1] for reject in found.duplicates] == ["0-1-b", "0-0-a", "0-1-b"]
    kept, table = merged(tmp_path, [rows("abA", 0), rows("ba", 1)], reject=False)
    assert (kept.num_images, kept.duplicates, table.num_rows) == (5, [], 5)


def test_fingerprint_does_not_know_parts_or_paths(tmp_path):
    """It depends on order, pixels and labels."""
    (one, _), (two, _) = (
        merged(tmp_path, tables) for tables in ([rows("abC", 0)], [rows("a", 0), rows("", 1), rows("bC", 2)])
    )
    assert one.fingerprint == two.fingerprint
    others = [merged(tmp_path, [rows(contents, 0)])[0].fingerprint for contents in ("baC", "ab", "abd")]
    assert len({one.fingerprint, *others}) == 4


def test_fingerprint_knows_names_and_attributes():
    table = rows("ab", 0)
    vectors = [table.append_column("attributes", pa.array([[0, 1], [1, bit]], pa.list_(pa.uint8()))) for bit in (0, 1)]
    prints = set()
    for names in (["a", "b"], ["a", "c"]):
        for found in (table, *vectors):
            content = Fingerprint(MANIFEST | {"label_names": names})
            content.update(found)
            prints.add(content.hexdigest())
    assert len(prints) == 6


def test_digests_of_slices_and_pieces():
    """The result is uint8 [N, 32], also for a column that does not begin at the start of its buffer."""
    column = pa.chunked_array([rows("abcd", 0)["sha256"].chunk(0).slice(1, 2), rows("e", 0)["sha256"].chunk(0)])
    assert [row.tobytes() for row in binary_array(column)] == column.to_pylist()
    assert binary_array(rows("", 0)["sha256"]).shape == (0, 32)
    assert binary_array(column).dtype == np.uint8
