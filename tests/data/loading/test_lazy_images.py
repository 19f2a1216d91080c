"""Images on demand: damaged samples are replaced, ranges are decoded ahead, and the limit of the cache holds."""

import logging
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.index import LevelIndex, read_level
from stylegan.data.loading import lazy_images, loader
from stylegan.data.loading.lazy_images import Images, filling
from stylegan.data.loading.loader import LoaderSettings, load_images
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError


@pytest.fixture(autouse=True)
def nothing_at_once(tmp_path, monkeypatch) -> None:
    """Let nothing be decoded when a table is opened, and give every test its own cache."""
    monkeypatch.setattr(loader, "AT_ONCE", 0)
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path) -> str:
    return request.getfixturevalue("s3_server")() + "/root" if request.param == "s3" else str(tmp_path / "root")


@pytest.fixture
def make(image_folder) -> Callable[..., ShardSet]:
    def shard(root: str, **changes: object) -> ShardSet:
        data = DataConfig(**({"source": str(image_folder), "resolution": 128, "images_per_shard": 5} | changes))
        return write_shards(open_source(data), data, root)

    return shard


def pixels_of(shards: ShardSet, resolution: int, cache: Path) -> np.ndarray:
    """Return the images of the undamaged set, through another cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLEGAN_CACHE", str(cache))
        return np.array(load_images(shards, resolution).images)


def flip(index: LevelIndex, number: int) -> None:
    """Change one bit in the middle of a sample's payload."""
    uri = index.tars[index.tar[number]].uri
    content = bytearray(storage.read_bytes(uri))
    content[index.offset[number] + index.size[number] // 2] ^= 4
    if storage.is_local(uri):
        os.chmod(uri, 0o644)
    storage.write_bytes(uri, bytes(content))


@pytest.mark.parametrize("resolution", [16, 128])
def test_damaged_samples_get_a_stand_in(make, root, resolution, tmp_path, caplog):
    """The next good image of the same label is shown, round the end of the set: on every machine the same, counted, and
    named in the log.
    """
    shards = make(root)
    good, index = pixels_of(shards, resolution, tmp_path / "good"), read_level(shards, resolution)
    same = np.flatnonzero(index.labels == index.labels[0])
    for number in same[[1, 2, -1]]:
        flip(index, int(number))
    expected = good.copy()
    expected[same[1]] = expected[same[2]] = good[same[3]]
    expected[same[-1]] = good[same[0]]
    with caplog.at_level(logging.WARNING, "stylegan"):
        table = load_images(shards, resolution)
        assert (table.images[::-1] == expected[::-1]).all()
    assert table.corrupt == 3
    assert f"image {same[3]} is shown instead of image {same[2]}" in caplog.text
    assert f"train-{index.tar[same[1]]:06d}.tar: the sample at byte {index.offset[same[1]]} is damaged" in caplog.text
    again = load_images(shards, resolution)
    assert (np.asarray(again.images) == expected).all()
    assert again.corrupt == 3
    assert (pixels_of(shards, resolution, tmp_path / "elsewhere") == expected).all()


def test_repaired_samples_come_back(make, tmp_path):
    """A finished cache drops its replacements once the tars are repaired."""
    shards = make(str(tmp_path / "root"))
    good, index = pixels_of(shards, 16, tmp_path / "good"), read_level(shards, 16)
    flip(index, 4)
    assert not (np.asarray(load_images(shards, 16).images)[4] == good[4]).all()
    flip(index, 4)
    table = load_images(shards, 16)
    assert (table.images == good).all()
    assert table.corrupt == 0


def test_tar_that_was_cut_short(make, root, tmp_path):
    """The samples beyond its end count as damaged."""
    shards = make(root)
    good, index = pixels_of(shards, 16, tmp_path / "good"), read_level(shards, 16)
    uri = index.tars[0].uri
    if storage.is_local(uri):
        os.chmod(uri, 0o644)
    content = storage.read_bytes(uri)
    last = np.flatnonzero(index.tar == 0)[-1]
    storage.write_bytes(uri, content[: index.offset[last] + 20])
    table = load_images(shards, 16)
    found = np.array(table.images)
    assert table.corrupt == 1
    assert (np.delete(found, last, 0) == np.delete(good, last, 0)).all()


def test_too_many_damaged_samples(make, tmp_path):
    """More than the config allows stop the step; the message gives their number, the place and the cure."""
    shards = make(str(tmp_path / "root"))
    index = read_level(shards, 16)
    for number in (2, 5, 7):
        flip(index, number)
    assert len(load_images(shards, 16, settings=LoaderSettings(max_corrupt=3)).images[:8]) == 8
    with pytest.raises(
        StepError, match=r"tar: the sample at byte \d+ is damaged, the last of 3 \(data.max_corrupt=2\)"
    ) as caught:
        np.asarray(load_images(shards, 16, settings=LoaderSettings(max_corrupt=2)).images)
    assert f"stylegan shard --verify {shards.uri}" in str(caught.value)


def test_no_good_image_of_the_label(make, tmp_path):
    shards = make(str(tmp_path / "root"))
    index = read_level(shards, 16)
    for number in np.flatnonzero(index.labels == 1):
        flip(index, int(number))
    with pytest.raises(StepError, match="the last of 5"):
        load_images(shards, 16).images[:]


@pytest.mark.parametrize("kept", [0, 5, 12])
def test_first_images_are_kept_within_the_limit(make, root, kept, tmp_path):
    """The cache never exceeds its limit; images beyond it, damaged ones too, are right at every access."""
    shards = make(root)
    good, index = pixels_of(shards, 128, tmp_path / "good"), read_level(shards, 128)
    flip(index, 1)
    flip(index, 10)
    image_bytes = good[0].nbytes
    limit = kept * image_bytes + 2**16 + 18 * 12 + 10_000
    table = load_images(shards, 128, settings=LoaderSettings(cache_gb=limit / 1e9))
    order = np.random.default_rng(0).permutation(12)
    same = {number: np.flatnonzero(index.labels == index.labels[number]) for number in (1, 10)}
    for number in (1, 10):
        others = same[number]
        good[number] = good[np.roll(others, -np.searchsorted(others, number, side="right"))[0]]
    for _ in range(2):
        assert (table.images[order] == good[order]).all()
    assert table.corrupt == 2
    taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*"))
    assert taken <= limit
    assert taken >= kept * image_bytes
    assert isinstance(table.images, Images)
    assert table.images.file.complete == (kept == 12)


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_ranges_are_decoded_ahead(make, root, monkeypatch):
    """The first range is decoded at once, the next when the one before it is in use, and no further one; the thread
    ends with the block.
    """
    monkeypatch.setattr(lazy_images, "BLOCK_BYTES", 2 * 128 * 128 * 3)
    shards = make(root)
    images = load_images(shards, 128).images
    flags = images.file.flags
    with filling(images, [range(6, 9), range(3), range(9, 12)]):
        assert wait_for(lambda: flags[6:9].all())
        time.sleep(0.1)
        assert flags.tolist() == [0] * 6 + [1] * 3 + [0] * 3
        images[7]
        assert wait_for(lambda: flags[0:3].all())
        time.sleep(0.1)
        assert flags.tolist() == [1] * 3 + [0] * 3 + [1] * 3 + [0] * 3
    images[0]
    time.sleep(0.1)
    assert not flags[9:].any()


def test_failure_of_the_thread_is_raised_at_the_next_access(make, tmp_path):
    shards = make(str(tmp_path / "root"))
    images = load_images(shards, 128).images
    images[np.flatnonzero(images.samples.index.tar == 0)]
    Path(shards.uri, "r0128", "train-000001.tar").unlink()
    with filling(images, [range(12)]):
        assert wait_for(lambda: images.failure is not None)
        with pytest.raises(StepError, match=r"train-000001\.tar: missing"):
            images[0]


def test_full_disk_is_one_line(make, tmp_path):
    """If the disk refuses a write, the step ends with a message, not with a signal."""
    images = load_images(make(str(tmp_path / "root")), 128).images
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(
            StepError, match=r"cannot write the cache .*File too large; free some space or set STYLEGAN_CACHE"
        ):
            images[:]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
