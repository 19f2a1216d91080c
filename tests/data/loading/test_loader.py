"""The loader: arrays equal to the shards, read from the cache if possible, and batches made ahead of their use."""

import itertools
import multiprocessing
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.decode import prepare
from stylegan.data.index import read_manifest, read_samples
from stylegan.data.loading import loader
from stylegan.data.loading.lazy_images import Images
from stylegan.data.loading.loader import ImageTable, LoaderSettings, batches, load_images, prefetch
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Give each test its own cache folder, because equal data sets have equal fingerprints."""
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(source: Path, root: Path | str, **changes: object) -> ShardSet:
    data = DataConfig(**({"source": str(source), "resolution": 16, "images_per_shard": 5} | changes))
    return write_shards(open_source(data), data, str(root))


def test_arrays_hold_the_images_of_the_shards(image_folder, tmp_path):
    """Every pixel and label is that of the source image, in the order of samples.parquet, with the channels first."""
    shards = make(image_folder, tmp_path)
    table = load_images(shards, 16)
    assert table.images.shape == (12, 3, 16, 16)
    assert table.images.dtype == np.uint8
    assert table.labels.dtype == np.int64
    samples = read_samples(shards.uri, read_manifest(shards.uri)).to_pylist()
    assert table.labels.tolist() == [sample["label"] for sample in samples]
    data = DataConfig(source=str(image_folder), resolution=16)
    for number in range(12):
        original = prepare((image_folder / samples[number]["path"]).read_bytes(), data).levels[16]
        assert (table.images[number] == original.transpose(2, 0, 1)).all()
    assert load_images(shards, 4).images.shape == (12, 3, 4, 4)


@pytest.mark.parametrize("resolution", [16, 128])  # raw pixels and PNG
def test_grey_and_unlabelled(image_folder, tmp_path, resolution):
    """Grey images have one channel; unlabelled images have the label -1."""
    table = load_images(make(image_folder, tmp_path, channels=1, labels="none", resolution=resolution), resolution)
    assert table.images.shape == (12, 1, resolution, resolution)
    assert table.labels.tolist() == [-1] * 12
    assert len(np.unique(table.images.sum(axis=(1, 2, 3)))) > 1


def test_decoded_once(image_folder, tmp_path, cache):
    """A second call maps the same file, without the shards, and its images are read-only."""
    shards = make(image_folder, tmp_path)
    first = load_images(shards, 16)
    storage.delete(shards.uri)
    second = load_images(shards, 16)
    assert (first.images == second.images).all()
    assert (first.labels == second.labels).all()
    assert np.shares_memory(second.images, second.images[:])
    with pytest.raises(ValueError, match="read-only"):
        second.images[0] = 0
    assert [path.stem for path in (cache / "images").iterdir()] == [f"{shards.fingerprint}-r0016"]


def test_broken_cache_is_made_again(image_folder, tmp_path, cache):
    """A cached file that was cut short is replaced."""
    shards = make(image_folder, tmp_path)
    expected = np.array(load_images(shards, 16).images)
    (file,) = (cache / "images").glob(f"{shards.fingerprint}-r0016.*/images.npy")
    file.write_bytes(file.read_bytes()[:500])
    assert (load_images(shards, 16).images == expected).all()


def test_large_tables_are_decoded_when_asked_for(image_folder, tmp_path, monkeypatch):
    """They are used like small ones, and are plain arrays once all of their images were requested."""
    shards = make(image_folder, tmp_path)
    expected = np.array(load_images(shards, 8).images)
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(loader, "AT_ONCE", 0)
    table = load_images(shards, 8)
    assert isinstance(table.images, Images)
    assert (table.images.shape, table.images.dtype, len(table.images)) == (expected.shape, expected.dtype, 12)
    assert (table.images[3] == expected[3]).all()
    assert (table.images[[7, 2, 7, -1]] == expected[[7, 2, 7, -1]]).all()
    assert (table.images[4:9] == expected[4:9]).all()
    assert table.ahead > 1
    assert (torch.tensor(np.asarray(table.images)).numpy() == expected).all()
    assert table.ahead == 1
    assert isinstance(load_images(shards, 8).images, np.ndarray)
    with pytest.raises(IndexError, match="12"):
        table.images[[0, 12]]


def test_shards_in_a_bucket(image_folder, tmp_path, s3_server):
    """S3 gives the same arrays; a lost object is named."""
    expected = load_images(make(image_folder, tmp_path), 8)
    found = make(image_folder, s3_server())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache2"))
        table = load_images(found, 8)
        assert (table.images == expected.images).all()
        assert table.labels.tolist() == expected.labels.tolist()
        storage.delete(f"{found.uri}/r0004/train-000001.tar")
        with pytest.raises(StepError, match=r"r0004/train-000001\.tar: missing; delete s3://"):
            load_images(found, 4)


def test_attributes(image_folder, tmp_path):
    """A set with attribute vectors has no classes; a finished cache returns both."""
    names = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png"))
    rows = {name: [number % 2, int(number > 3)] for number, name in enumerate(names)}
    (image_folder / "dataset.json").write_text(str({"labels": list(map(list, rows.items()))}).replace("'", '"'))
    shards = make(image_folder, tmp_path)
    for _ in range(2):
        table = load_images(shards, 8)
        assert table.attributes.shape == (12, 2)
        assert sorted(map(tuple, table.attributes.tolist())) == sorted(map(tuple, rows.values()))
        assert table.labels.tolist() == [-1] * 12


def test_missing_shard_manifest_and_resolution(image_folder, tmp_path):
    """For each of them, the message names in one line what is missing."""
    shards = make(image_folder, tmp_path)
    with pytest.raises(StepError, match=r"no shards at resolution 32; there are \[4, 8, 16\]"):
        load_images(shards, 32)
    Path(shards.uri, "r0008", "train-000000.tar").unlink()
    with pytest.raises(StepError, match=r"r0008/train-000000\.tar: missing"):
        load_images(shards, 8)
    Path(shards.uri, "manifest.json").unlink()
    with pytest.raises(StepError, match=r"manifest\.json: missing"):
        load_images(shards, 8)


def test_cache_that_cannot_be_written(image_folder, tmp_path, monkeypatch):
    """If the cache path is below a regular file, the message names the variable to set."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StepError, match="STYLEGAN_CACHE"):
        load_images(make(image_folder, tmp_path), 4)


def test_cache_of_no_size(image_folder, tmp_path, cache):
    """With a limit of zero every image is decoded each time, and none is kept."""
    shards = make(image_folder, tmp_path)
    table = load_images(shards, 16, settings=LoaderSettings(cache_gb=0))
    for _ in range(2):
        assert (table.images[2:9] == load_images(shards, 16).images[2:9]).all()
    assert table.ahead > 1


def _sum_of_images(shards: ShardSet, resolution: int) -> int:
    return int(np.asarray(load_images(shards, resolution).images).astype(int).sum())


def test_processes_share_the_work(image_folder, tmp_path, cache):
    """Eight calls from four processes at the same time give the same arrays and one entry of the cache."""
    shards = make(image_folder, tmp_path)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        sums = pool.starmap(_sum_of_images, [(shards, 16)] * 8, chunksize=1)
    assert sums == [load_images(shards, 16).images.astype(int).sum()] * 8
    assert [path.stem for path in (cache / "images").iterdir()] == [f"{shards.fingerprint}-r0016"]


def some_table() -> ImageTable:
    return ImageTable(np.arange(12 * 3 * 4, dtype=np.uint8).reshape(12, 3, 2, 2), np.arange(12))


CPU = torch.device("cpu")


def test_batches_come_in_order_and_one_ahead():
    """There are the images and labels of each array of indices; of an endless source exactly one batch more than
    requested is made.
    """
    asked = []

    def order():
        for start in itertools.count():
            asked.append(start)
            yield np.array([start, 11])

    with prefetch(batches(some_table(), order()), CPU) as source:
        for start in range(5):
            images, labels = next(source)
            assert torch.equal(images, torch.from_numpy(some_table().images[[start, 11]]))
            assert labels.tolist() == [start, 11]
        while len(asked) < 6:
            time.sleep(0.001)
        time.sleep(0.05)
    assert asked == list(range(6))


def test_more_batches_ahead():
    """At most `ahead` batches are made before they are requested."""
    asked = []

    def order():
        for start in itertools.count():
            asked.append(start)
            yield np.array([start % 12])

    with prefetch(batches(some_table(), order()), CPU, ahead=4) as source:
        for start in range(3):
            assert next(source)[1].tolist() == [start]
    assert asked == list(range(len(asked)))
    assert len(asked) <= 7


def test_batches_end_with_their_order():
    with prefetch(batches(some_table(), [np.array([1]), np.array([2])]), CPU) as source:
        assert [labels.tolist() for _, labels in source] == [[1], [2]]


def test_prefetch_raises_where_the_batch_is_asked_for_and_leaves_no_thread():
    """A wrong index fails its own batch, not the one before. The thread ends, also if the block fails."""

    def use_one_and_fail():
        with prefetch(batches(some_table(), itertools.repeat(np.array([1]))), CPU) as source:
            next(source)
            raise ZeroDivisionError

    before = threading.active_count()
    with prefetch(batches(some_table(), [np.array([1]), np.array([99])]), CPU) as source:
        assert next(source)[1].tolist() == [1]
        with pytest.raises(IndexError, match="99"):
            next(source)
    with pytest.raises(ZeroDivisionError):
        use_one_and_fail()
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_come_to_a_gpu_without_waiting_for_it():
    """Neither the copy nor the use of a batch synchronises the host. Memory of a used batch does not change under it."""
    device = torch.device("cuda:0")
    order = (np.array([start % 12, 11]) for start in range(40))
    expected = [torch.from_numpy(some_table().images[[start % 12, 11]]) for start in range(40)]
    found = []
    with prefetch(batches(some_table(), order), device) as source:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for images, labels in source:
                assert (images.device, labels.device) == (device, device)
                torch.cuda._sleep(1_000_000)  # the GPU is still busy when the next batches arrive
                found.append(images + 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one.cpu(), other) for one, other in zip(found, expected, strict=True))
