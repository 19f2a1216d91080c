"""The loader: arrays equal to the tars, damage found, and an order that is a pure function of numbers."""

import itertools
import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stylegan import storage
from stylegan.config import DataConfig
from stylegan.data.decode import fit
from stylegan.data.loader import ImageTable, batches, load_images, prefetch, sample_indices
from stylegan.data.shards import ShardSet, write_shards
from stylegan.data.sources import open_source
from stylegan.errors import StepError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder for each test: equal data sets have equal fingerprints."""
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(source: Path, root: Path | str, **changes: object) -> ShardSet:
    data = DataConfig(**({"source": str(source), "resolution": 16, "images_per_shard": 5} | changes))
    return write_shards(open_source(data), data, str(root))


def test_arrays_hold_the_images_of_the_shards(image_folder, tmp_path):
    """Every pixel and label is that of the source image, in the order of samples.jsonl, planes first."""
    shards = make(image_folder, tmp_path)
    table = load_images(shards, 16)
    assert table.images.shape == (12, 3, 16, 16)
    assert table.images.dtype == np.uint8
    assert table.labels.dtype == np.int64
    samples = [json.loads(line) for line in Path(shards.uri, "samples.jsonl").read_text().splitlines()]
    assert table.labels.tolist() == [sample["label"] for sample in samples]
    for number in (0, 4, 5, 11):
        original = fit(Image.open(image_folder / samples[number]["path"]), 16, "lanczos")
        assert (table.images[number] == np.asarray(original).transpose(2, 0, 1)).all()
    assert load_images(shards, 4).images.shape == (12, 3, 4, 4)


def test_grey_and_unlabelled(image_folder, tmp_path):
    """Grey images have one plane, unlabelled ones the label -1."""
    table = load_images(make(image_folder, tmp_path, channels=1, labels="none"), 8)
    assert table.images.shape == (12, 1, 8, 8)
    assert table.labels.tolist() == [-1] * 12


def test_decoded_once(image_folder, tmp_path, cache):
    """A second call maps the same file, without the shards, and its images cannot be changed."""
    shards = make(image_folder, tmp_path)
    first = load_images(shards, 16)
    storage.delete(shards.uri)
    second = load_images(shards, 16)
    assert (first.images == second.images).all()
    assert isinstance(second.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        second.images[0] = 0
    assert [path.name for path in (cache / "images").iterdir()] == [f"{shards.fingerprint}-r0016"]


def test_broken_cache_is_made_again(image_folder, tmp_path, cache):
    """A cached file that was cut short is not believed."""
    shards = make(image_folder, tmp_path)
    expected = np.array(load_images(shards, 16).images)
    file = cache / "images" / f"{shards.fingerprint}-r0016" / "images.npy"
    file.write_bytes(file.read_bytes()[:500])
    assert (load_images(shards, 16).images == expected).all()


def test_shards_in_a_bucket(image_folder, tmp_path, s3_server):
    """From s3 come the same arrays; a lost or changed object is told by name."""
    expected = load_images(make(image_folder, tmp_path), 16)
    shards = make(image_folder, s3_server())
    table = load_images(shards, 8)
    assert table.labels.tolist() == expected.labels.tolist()
    storage.delete(f"{shards.uri}/r0004/train-000001.tar")
    with pytest.raises(StepError, match=r"r0004/train-000001\.tar: missing; delete the folder s3://"):
        load_images(shards, 4)


def test_damaged_shard_is_named(image_folder, tmp_path, cache):
    """One flipped bit in a tar is found; the error names tar and cure, and no cache is left."""
    shards = make(image_folder, tmp_path)
    tar = Path(shards.uri, "r0016", "train-000002.tar")
    os.chmod(tar, 0o644)
    content = bytearray(tar.read_bytes())
    content[1500] ^= 1
    tar.write_bytes(content)
    with pytest.raises(StepError, match=r"train-000002\.tar: damaged: .*delete the folder .* and run `stylegan shard` again"):
        load_images(shards, 16)
    assert list((cache / "images").iterdir()) == []


def test_missing_shard_manifest_and_resolution(image_folder, tmp_path):
    """Each of them is one line that says what is not there."""
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
    """A cache path below a regular file is one line that names the variable to set."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StepError, match="STYLEGAN_CACHE"):
        load_images(make(image_folder, tmp_path), 4)


def _sum_of_images(shards: ShardSet, resolution: int) -> int:
    return int(load_images(shards, resolution).images.astype(int).sum())


def test_several_processes_at_once(image_folder, tmp_path, cache):
    """Processes that start together share one file and read the same pixels."""
    shards = make(image_folder, tmp_path)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        sums = pool.starmap(_sum_of_images, [(shards, 16)] * 8, chunksize=1)
    assert sums == [load_images(shards, 16).images.astype(int).sum()] * 8
    assert [path.name for path in (cache / "images").iterdir()] == [f"{shards.fingerprint}-r0016"]


order = {"num_images": st.integers(1, 50), "seed": st.integers(0, 2**32), "stage": st.sampled_from([4, 8, 256])}


@given(**order, epoch=st.integers(0, 1000))
def test_every_epoch_shows_every_image_once(num_images, seed, stage, epoch):
    """N samples from an epoch's start are a permutation of all N images."""
    indices = sample_indices(num_images, seed=seed, stage=stage, start=epoch * num_images, count=num_images)
    assert indices.dtype == np.int64
    assert sorted(indices.tolist()) == list(range(num_images))


@given(**order, start=st.integers(0, 300), sizes=st.lists(st.integers(0, 70), max_size=5))
def test_pieces_join_without_a_seam(num_images, seed, stage, start, sizes):
    """However the order is cut into calls, across epochs too, it is the same order."""
    position, pieces = start, []
    for size in sizes:
        pieces += sample_indices(num_images, seed=seed, stage=stage, start=position, count=size).tolist()
        position += size
    assert sample_indices(num_images, seed=seed, stage=stage, start=start, count=sum(sizes)).tolist() == pieces


def test_order_differs_by_seed_stage_and_epoch():
    """Epochs, stages and seeds have orders of their own."""

    def shown(**changes: int) -> tuple[int, ...]:
        return tuple(sample_indices(40, **({"seed": 1, "stage": 8, "start": 0, "count": 40} | changes)))

    assert len({shown(), shown(seed=2), shown(stage=16), shown(start=40), shown(start=80)}) == 5


def test_order_is_fixed_for_ever():
    """These numbers must not change: a resumed run relies on them."""
    assert sample_indices(10, seed=3, stage=16, start=7, count=8).tolist() == [9, 6, 2, 3, 0, 2, 8, 1]


def test_result_may_be_changed():
    """The caller owns the array: writing to it does not change what comes next."""
    first = sample_indices(10, seed=0, stage=4, start=0, count=10)
    expected = first.copy()
    first[:] = -1
    assert (sample_indices(10, seed=0, stage=4, start=0, count=10) == expected).all()


def some_table() -> ImageTable:
    return ImageTable(np.arange(12 * 3 * 4, dtype=np.uint8).reshape(12, 3, 2, 2), np.arange(12))


CPU = torch.device("cpu")


def test_batches_come_in_order_and_one_ahead():
    """Images and labels of each array of indices; of the endless source exactly one more than was asked for is made."""
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
    assert asked == list(range(6))


def test_batches_end_with_their_order():
    with prefetch(batches(some_table(), [np.array([1]), np.array([2])]), CPU) as source:
        assert [labels.tolist() for _, labels in source] == [[1], [2]]


def test_prefetch_raises_where_the_batch_is_asked_for_and_leaves_no_thread():
    """An index that does not exist fails its own batch, not the one before; the thread is gone, too when it is the user who fails."""

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
