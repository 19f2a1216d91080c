"""The index: every row leads to the payload of its image, and a missing or damaged file is reported in one line."""

import shutil
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data import payload
from stylegan.data.index import describe_damage, locate, read_level, read_manifest, read_samples
from stylegan.data.sharding.verify import verify
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError


@pytest.fixture
def shards(image_folder, tmp_path) -> ShardSet:
    data = DataConfig(source=str(image_folder), resolution=16, images_per_shard=5)
    return write_shards(open_source(data), data, str(tmp_path / "root"))


@pytest.mark.parametrize("resolution", [4, 16])
def test_rows_lead_to_payloads(shards, resolution):
    """Offset, size and checksum are those of the image's payload in its tar; labels are in the same order."""
    level = read_level(shards, resolution)
    table = read_samples(shards.uri, read_manifest(shards.uri))
    assert len(level.tars) == 3
    assert level.shape == (3, resolution, resolution)
    assert (level.tar.dtype, level.offset.dtype, level.size.dtype, level.crc.dtype) == (
        np.int32,
        np.int64,
        np.int32,
        np.uint32,
    )
    assert level.labels.tolist() == table["label"].to_pylist()
    assert (level.labels.dtype, level.attributes) == (np.int64, None)
    for row in range(12):
        tar = level.tars[level.tar[row]]
        content = Path(tar.uri).read_bytes()
        assert len(content) == tar.num_bytes
        data = content[level.offset[row] : level.offset[row] + level.size[row]]
        assert zlib.crc32(data) == level.crc[row]
        assert content[level.offset[row] - 512 :].startswith(table["key"][row].as_py().encode() + b".npy\0")
        assert payload.decode(data, level.suffix).shape == level.shape


def test_attributes_are_an_array(tmp_path, draw_images):
    """They are uint8 [N, A] in the order of the rows."""
    folder = draw_images(tmp_path / "images", [f"{number}.png" for number in range(4)])
    labels = [[f"{number}.png", [number % 2, number // 2, 1]] for number in range(4)]
    storage.write_json(str(folder / "dataset.json"), {"labels": labels})
    data = DataConfig(source=str(folder), resolution=4)
    shards = write_shards(open_source(data), data, str(tmp_path / "root"))
    level = read_level(shards, 4)
    paths = read_samples(shards.uri, read_manifest(shards.uri), ["path"])["path"].to_pylist()
    assert level.attributes.dtype == np.uint8
    assert level.attributes.tolist() == [[int(path[0]) % 2, int(path[0]) // 2, 1] for path in paths]
    assert level.labels.tolist() == [-1] * 4


def test_unknown_resolution_is_one_line(shards):
    with pytest.raises(StepError, match=r"no shards at resolution 32; there are \[4, 8, 16\]"):
        read_level(shards, 32)


def test_what_is_missing_or_damaged_is_told(shards):
    """Manifest or table may be missing, cut short, have a flipped byte, or belong to another set."""
    table = Path(shards.uri, "samples.parquet")
    content = table.read_bytes()
    flipped = bytearray(content)
    group = pq.ParquetFile(table).metadata.row_group(0)
    (column,) = (group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "crc_0004")
    flipped[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
    for wrong, problem in ((content[:-9], "damaged"), (bytes(flipped), "damaged"), (None, "missing")):
        table.unlink() if wrong is None else table.write_bytes(wrong)
        with pytest.raises(
            StepError, match=f"samples.parquet: {problem}.*delete {shards.uri} and shard its images again"
        ) as caught:
            read_level(shards, 4)
        assert "\n" not in str(caught.value)
    table.write_bytes(content)
    manifest = read_manifest(shards.uri)
    storage.write_json(storage.join(shards.uri, "manifest.json"), manifest | {"num_images": 13})
    with pytest.raises(StepError, match="its tars hold 12 samples, fewer than its 13 images"):
        read_level(shards, 4)
    storage.write_json(storage.join(shards.uri, "manifest.json"), manifest | {"num_images": 11})
    with pytest.raises(StepError, match=r"samples\.parquet: has 12 rows, its manifest promises 11"):
        read_level(shards, 4)
    storage.write_json(storage.join(shards.uri, "manifest.json"), {"other": 1})
    with pytest.raises(StepError, match=r"manifest\.json: is damaged \(format: Field required\); delete this file"):
        read_level(shards, 4)
    Path(shards.uri, "manifest.json").unlink()
    with pytest.raises(StepError, match=r"manifest.json: missing"):
        read_level(shards, 4)


def test_relative_urls_lead_to_other_sets():
    assert locate("s3://b/datasets/new", "../old/r0004/t.tar") == "s3://b/datasets/old/r0004/t.tar"
    assert locate("/a/datasets/new/", "r0004/t.tar") == "/a/datasets/new/r0004/t.tar"


def test_the_cure_never_deletes_tars_that_other_sets_list(image_folder, tmp_path, draw_images):
    """Of a set without heirs the folder goes. Of one with heirs only the records go, which brings back the same tars."""
    data = DataConfig(source=str(image_folder), resolution=8)
    old = write_shards(open_source(data), data, str(tmp_path / "root"))
    tar = f"{old.uri}/r0004/train-000000.tar"
    assert describe_damage(old.uri, tar, "missing").endswith(
        f"missing; delete {old.uri} and shard its images again, which makes the same shards"
    )
    draw_images(image_folder / "dog", ["new.png"], size=(31, 30))
    new = write_shards(open_source(data), data, str(tmp_path / "root"))
    name = new.uri.rpartition("/")[2]
    line = describe_damage(old.uri, tar, "missing")
    assert (
        f"delete {old.uri}/manifest.json and {old.uri}/chunks (not the folder: the tars in it are also those of {name})"
        in line
    )
    line = describe_damage(new.uri, tar, "missing")
    assert f"delete {new.uri} and shard its images again with --set data.incremental=false" in line
    assert line.endswith(f"without those of {old.uri}")

    # The cures.
    content = Path(tar).read_bytes()
    Path(tar).unlink()
    shutil.rmtree(new.uri)
    anew = data.model_copy(update={"incremental": False})
    assert write_shards(open_source(anew), anew, str(tmp_path / "root")) == new
    assert verify(new.uri).problems == ()
    Path(image_folder, "dog", "new.png").unlink()
    Path(old.uri, "manifest.json").unlink()
    shutil.rmtree(f"{old.uri}/chunks")
    assert write_shards(open_source(anew), anew, str(tmp_path / "root")) == old
    assert Path(tar).read_bytes() == content
