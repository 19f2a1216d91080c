"""Sets of shards with a manifest as sources: those of this program, and other wids indexes."""

import json
import os
from pathlib import Path

import pytest
import webdataset as wds

from stylegan.config.sections import DataConfig
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import DamagedError, StepError


def sharded(folder, root, **fields):
    """Shard a folder at 16x16."""
    data = DataConfig(source=str(folder), resolution=16, **fields)
    return write_shards(open_source(data), data, str(root))


def test_own_set_is_the_same_images(image_folder, tmp_path, opened, listed, contents):
    """A set has the paths, labels and pixels of its images, and sharding it again gives the same fingerprint."""
    shards = sharded(image_folder, tmp_path / "root")
    source = opened(shards.uri)
    assert listed(source) == listed(opened(image_folder))
    assert source.label_names == ("cat", "dog")
    pixels = contents(source)
    assert {picture.shape for picture in pixels.values()} == {(16, 16, 3)}
    assert sharded(shards.uri, tmp_path / "again").fingerprint == shards.fingerprint


def test_grey_set(image_folder, tmp_path, opened, contents):
    """Grey images are arrays without a third axis."""
    shards = sharded(image_folder, tmp_path / "root", channels=1)
    assert {picture.shape for picture in contents(opened(shards.uri)).values()} == {(16, 16)}


def test_own_set_in_a_bucket(image_folder, s3_server, opened, contents, tmp_path):
    """A remote set is read from copies of its tars."""
    local, remote = sharded(image_folder, tmp_path / "root"), sharded(image_folder, s3_server())
    wanted, found = contents(opened(local.uri)), contents(opened(remote.uri))
    assert all((found[path] == picture).all() for path, picture in wanted.items())


def test_deleted_images_are_in_no_source(image_folder, tmp_path, opened):
    """A set that builds on an older one lists its tars, and leaves out deleted images although their tars contain them."""
    sharded(image_folder, tmp_path / "root")
    (image_folder / "cat/0.png").unlink()
    shards = sharded(image_folder, tmp_path / "root")
    assert [image.path for image in opened(shards.uri).images][:2] == ["cat/1.png", "cat/2.png"]


def test_flipped_byte_is_that_images_fault(image_folder, tmp_path, opened):
    """The checksum in the table fails for that image only."""
    shards = sharded(image_folder, tmp_path / "root")
    source = opened(shards.uri)
    (tar,) = (tmp_path / "root").rglob("r0016/*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(b"\x93NUMPY") + 300] ^= 1
    tar.write_bytes(content)
    errors = []
    with source.open() as read:
        for image in source.images:
            try:
                assert read(image.path).shape == (16, 16, 3)
            except ValueError as error:
                errors.append(str(error))
    assert errors == ["the sample has a wrong checksum"]


def test_foreign_wids_index(tmp_path, opened, contents):
    """Only the tars in the index are used, not others in the same folder."""
    for number in range(3):
        with wds.TarWriter(str(tmp_path / f"part-{number}.tar"), encoder=False) as writer:
            writer.write({"__key__": f"{number}", "png": b"%d" % number, "cls": b"%d" % number})
    index = {"__kind__": "wids-shard-index-v1", "shardlist": [{"url": "part-0.tar"}, {"url": "part-2.tar"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(index))
    source = opened(tmp_path)
    assert contents(source) == {"part-0/0.png": b"0", "part-2/2.png": b"2"}
    assert [image.label for image in source.images] == [0, 2]


@pytest.mark.parametrize("url", ["../part-0.tar", "/etc/part-0.tar", "part-0.zip", ""])
def test_index_that_leads_out(tmp_path, opened, url):
    """An index of another program may name files of its own folder only."""
    (tmp_path / "manifest.json").write_text(
        json.dumps({"__kind__": "wids-shard-index-v1", "shardlist": [{"url": url}]})
    )
    with pytest.raises(StepError, match=r"manifest\.json must list tars below its folder"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "one\ntwo", "[" * 100_000])
def test_manifest_of_something_else(image_folder, opened, text):
    """Any program may write a manifest.json beside images."""
    before = opened(image_folder).signature
    (image_folder / "manifest.json").write_text(text)
    assert opened(image_folder).signature == before
    (image_folder / "r0004").mkdir()
    (image_folder / "r0004" / "train-000000.tar").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"manifest\.json: is damaged"):
        opened(image_folder)


def test_pipe_in_the_place_of_a_tar(image_folder, tmp_path, opened):
    """It is not read, because that may never end."""
    shards = sharded(image_folder, tmp_path / "root")
    tar = Path(shards.uri, "r0016", "train-000000.tar")
    tar.unlink()
    os.mkfifo(tar)
    writer = os.open(tar, os.O_RDWR)  # so that opening the pipe does not wait
    try:
        source = opened(shards.uri)
        with source.open() as read, pytest.raises(OSError, match="is a pipe, a socket or a device, not a file"):
            read(source.images[0].path)
    finally:
        os.close(writer)
