"""Tests of sharding, loading and training on an S3 store that throttles, breaks connections and has outages.

The results must have the same bytes as without faults.
"""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from stylegan import storage
from stylegan.config.file import build
from stylegan.config.sections import DataConfig
from stylegan.data.loading import loader
from stylegan.data.loading.loader import load_images
from stylegan.data.sharding.verify import verify
from stylegan.data.sharding.write_shards import find_shards, read_shards, shard_key, write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import UnavailableError
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import stages

NAMES = [f"{label}/{number:02d}.png" for label in ("cat", "dog") for number in range(30)]
SHARD = """
import sys
from stylegan.config.sections import DataConfig
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
data = DataConfig.model_validate_json(sys.argv[1])
write_shards(open_source(data), data, sys.argv[2])
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Give each test a cache of its own, so that it has to read from the store."""
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(s3_server, draw_images, tmp_path_factory) -> DataConfig:
    """Return the config of 60 images in a bucket, with seven images in each tar."""
    uri = f"{s3_server()}/images"
    folder = draw_images(tmp_path_factory.mktemp("source"), NAMES)
    fsspec.filesystem("s3").put(str(folder), uri, recursive=True)
    return DataConfig(source=uri, resolution=16, images_per_shard=7)


@pytest.fixture(scope="module")
def faultless(data, s3_server) -> ShardSet:
    """Return the shards of these images, made without faults."""
    return shard(data, f"{s3_server()}/root")


def shard(data: DataConfig, root: str) -> ShardSet:
    """Write the shards of a source."""
    return write_shards(open_source(data), data, root)


def files(uri: str) -> dict[str, str]:
    """Return the digest of every file below a URI by its path."""
    fs, path = storage.filesystem(uri)
    return {name.removeprefix(f"{path}/"): hashlib.sha256(fs.cat_file(name)).hexdigest() for name in fs.find(path)}


def pixels(shards: ShardSet) -> dict[int, np.ndarray]:
    """Return all images of a set by resolution."""
    return {resolution: np.array(load_images(shards, resolution).images[:]) for resolution in shards.resolutions}


def same_pixels(ours: ShardSet, theirs: ShardSet) -> bool:
    """Return True if two sets have the same resolutions and images."""
    a, b = pixels(ours), pixels(theirs)
    return a.keys() == b.keys() and all(np.array_equal(a[resolution], b[resolution]) for resolution in a)


def test_sharding_under_faults_gives_the_same_bytes(data, faultless, faulty_s3, s3_server):
    """All files of the set, not only the tars, have the same bytes after each kind of fault has happened."""
    root = f"{s3_server()}/root"
    with faulty_s3(seed=1, rate=0.15) as faults:
        shards = shard(data, root)
    assert faults.injected.keys() == {"slowdown", "reset", "slow", "truncated"}
    assert faults.injected.total() > 20
    assert shards.fingerprint == faultless.fingerprint
    assert (shards.num_images, shards.num_rejected) == (60, 0)
    assert files(shards.uri) == files(faultless.uri)


def test_sharding_to_a_folder_gives_the_same_tars(data, faultless, tmp_path):
    """A set in a folder has the same tars as one in a bucket. Only the tables contain what differs between stores."""
    shards = shard(data, str(tmp_path / "root"))
    ours, theirs = files(shards.uri), files(faultless.uri)
    tars = {name for name in theirs if name.endswith(".tar")}
    assert len(tars) == 3 * 9
    assert {name: ours[name] for name in tars} == {name: theirs[name] for name in tars}


@pytest.mark.parametrize("at_once", [0, loader.AT_ONCE])
def test_loading_under_faults_gives_the_same_pixels(faultless, faulty_s3, tmp_path, monkeypatch, at_once):
    """Faults do no harm, whether the images are read when the table is opened or when they are asked for."""
    expected = pixels(faultless)
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "fresh"))
    monkeypatch.setattr(loader, "AT_ONCE", at_once)
    with faulty_s3(seed=3, rate=0.3) as faults:
        for resolution in faultless.resolutions:
            table = load_images(faultless, resolution)
            order = np.random.default_rng(0).permutation(60)
            assert np.array_equal(table.images[order], expected[resolution][order])
            assert np.array_equal(np.bincount(table.labels), [30, 30])
    assert faults.injected.total() > 5


def test_verification_under_faults_finds_none(faultless, faulty_s3):
    """Verification does not take a broken connection for a broken tar."""
    with faulty_s3(seed=4, rate=0.3) as faults:
        result = verify(faultless.uri)
    assert result.problems == ()
    assert result.num_images == 60
    assert faults.injected.total() > 5


def test_a_store_that_is_down_for_a_while_pauses_sharding(data, faultless, faulty_s3, s3_server):
    """Sharding waits for the end of an outage and gives the same bytes."""
    root, seconds = f"{s3_server()}/root", 4
    with faulty_s3(rate=1, kinds=["slow"], slow_s=0.02, in_a_row=9**9) as faults:
        timer = threading.Timer(0.5, faults.down_for, [seconds])
        start = time.monotonic()
        timer.start()
        shards = shard(data, root)
        spent = time.monotonic() - start
    assert faults.injected["outage"] == 1, f"sharding ended in {spent:.1f} s, before the outage"
    assert spent > seconds
    assert files(shards.uri) == files(faultless.uri)


def test_a_store_that_is_down_for_a_while_pauses_loading(faultless, faulty_s3, monkeypatch):
    """Loading waits for the end of an outage."""
    monkeypatch.setattr(loader, "AT_ONCE", 0)
    with faulty_s3(rate=0) as faults:
        table = load_images(faultless, 16)
        faults.down_for(3)
        start = time.monotonic()
        images = np.array(table.images[:])
        spent = time.monotonic() - start
    assert images.shape == (60, 3, 16, 16)
    assert 2.5 < spent < 30


def test_patience_over_is_one_line(data, faultless, faulty_s3, s3_server, monkeypatch):
    """Sharding, loading and listing give up after $STYLEGAN_PATIENCE seconds with one line, and can be repeated."""
    monkeypatch.setenv("STYLEGAN_PATIENCE", "1.5")
    root, source = f"{s3_server()}/root", open_source(data)
    with faulty_s3(rate=0) as faults:
        faults.down_for(600)
        for act in (
            lambda: write_shards(source, data, root),
            lambda: load_images(faultless, 16),
            lambda: open_source(data),
        ):
            start = time.monotonic()
            with pytest.raises(UnavailableError) as caught:
                act()
            assert time.monotonic() - start < 60
            assert "\n" not in str(caught.value)
            assert "s3://" in str(caught.value)
    assert shard(data, root).fingerprint == faultless.fingerprint


def chunks_done(root: str, key: str) -> int:
    """Return the number of finished chunks of a set."""
    return len(storage.names(storage.join(root, "datasets", key, "chunks")))


def start_sharding(data: DataConfig, root: str) -> subprocess.Popen[bytes]:
    """Start sharding as the leader of a process group."""
    return subprocess.Popen([sys.executable, "-c", SHARD, data.model_dump_json(), root], start_new_session=True)


def kill_after_chunks(data: DataConfig, root: str, count: int) -> None:
    """Shard in another process, and kill it and its children with SIGKILL once so many chunks are finished."""
    key = shard_key(data, open_source(data))
    process = start_sharding(data, root)
    try:
        deadline = time.monotonic() + 60
        while chunks_done(root, key) < count:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "nothing happened in time"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_killed_in_the_middle_it_goes_on_where_it_was(data, faultless, faulty_s3, s3_server):
    """After a kill the set is not finished. The same command writes only the missing chunks, and the same bytes."""
    root = f"{s3_server()}/root"
    key = shard_key(data, open_source(data))

    # Kill it in the middle. A slow store leaves time for that.
    with faulty_s3(rate=1, kinds=["slow"], slow_s=0.03, in_a_row=9**9):
        kill_after_chunks(data, root, 3)
    uri = storage.join(root, "datasets", key)
    assert find_shards(open_source(data), data, root) is None
    assert read_shards(uri) is None
    done = {Path(name).stem for name in storage.names(storage.join(uri, "chunks"))}
    assert 3 <= len(done) < 9
    before = files(uri)

    # Repeat it, and record what is written.
    with faulty_s3(rate=0) as faults:
        shards = shard(data, root)
    written = {request.removeprefix("PUT ") for request in faults.passed if request.startswith("PUT ")}
    again = {
        name
        for name in written
        if any(name.endswith((f"train-{chunk}.tar", f"chunks/{chunk}.parquet")) for chunk in done)
    }
    assert again == set()
    assert written

    # Compare with the set that nobody killed.
    after = files(uri)
    assert {name: after[name] for name in before} == before
    assert after == files(faultless.uri)
    assert shards.fingerprint == faultless.fingerprint
    assert same_pixels(shards, faultless)


@pytest.mark.parametrize("chunks", [0, 5])
def test_killed_in_the_middle_of_a_local_set(data, faultless, tmp_path, chunks):
    """The same in a folder: what a killed process leaves there is not taken for a finished set."""
    root = str(tmp_path / "root")
    kill_after_chunks(data, root, chunks)
    assert find_shards(open_source(data), data, root) is None
    shards = shard(data, root)
    assert shards.fingerprint == faultless.fingerprint
    assert verify(shards.uri).problems == ()


def make_job(data: DataConfig, shards: ShardSet, uri: str) -> StageJob:
    """Return a stage of 16 steps at 8x8, with a checkpoint after every fourth step."""
    config = build(
        {
            "name": "t",
            "data": data.model_dump(),
            "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
            "training": {"start_resolution": 8, "batch": 8, "stable_kimg": 0.128},
            "snapshots": {"checkpoint_kimg": 0.032, "log_kimg": 0.032, "samples_kimg": 0.064, "grid": 2},
        }
    )
    return StageJob(config=config, stage=stages(config)[0], shards=shards, key="k", run_id="r", uri=uri, previous=None)


def test_training_on_a_faulty_store_that_goes_away_ends_with_the_same_weights(
    data, faultless, faulty_s3, s3_server, tmp_path, monkeypatch
):
    """Training with everything on the store waits for the end of an outage, and its weights are the same."""
    expected = train_stage(make_job(data, faultless, f"{s3_server()}/stage"))
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "fresh"))
    with faulty_s3(seed=5, rate=0.2) as faults:
        points: list[dict[str, float]] = []

        def go_away(point: dict[str, float]) -> None:
            points.append(point)
            if len(points) == 1:
                faults.down_for(4)

        trained = train_stage(make_job(data, faultless, f"{s3_server()}/stage"), on_checkpoint=go_away)
    assert faults.injected["outage"] == 1
    assert faults.injected.total() > 5
    assert len(points) == 4
    assert trained.nimg == expected.nimg == 128
    ours, theirs = (storage.read_bytes(storage.join(end.uri, "generator.safetensors")) for end in (trained, expected))
    assert ours == theirs
