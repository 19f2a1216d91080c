"""A stage in one process without Ray: what it leaves in storage, and how it ends when something is wrong."""

import json
from pathlib import Path

import pytest
import torch
from contents import assert_same, curves, training_state

from stylegan import storage
from stylegan.data.index import read_level
from stylegan.data.loading import loader
from stylegan.errors import DivergedError, StepError
from stylegan.training.curves import read_rows
from stylegan.training.loop import train_stage
from stylegan.training.state import (
    checkpoints,
    load_model,
    newest_checkpoint,
    read_checkpoint,
    resume_stage,
    start_stage,
)


def test_a_stage_leaves_one_checkpoint_curves_grids_and_its_record(job):
    first = job(4, "one")
    record = train_stage(first)
    assert (record.nimg, record.resolution, record.digest) == (16, 4, "k")
    assert checkpoints(first.uri) == [record.uri]
    assert read_checkpoint(record.uri) == record
    rows = read_rows(f"{first.uri}/stats.jsonl")
    assert [row["nimg"] for row in rows] == [8, 16]
    assert all(0 <= row["metrics"]["time/overhead"] < 1 for row in rows)
    assert all(0 <= row["metrics"]["time/data_wait"] < 1 for row in rows)
    assert {row["metrics"]["time/path"] for row in rows} == {0}  # no GPU, and training.compile is off
    assert not any("data/corrupt" in row["metrics"] for row in rows)
    assert set(storage.names(f"{first.uri}/samples")) == {"000000.png", "reals.png"}
    assert json.loads(Path(first.uri, "done.json").read_bytes())["img_per_sec"] > 0
    generator, names = load_model(record.uri)
    assert names == ("a", "b")
    assert generator.resolution == 4


def test_a_stage_goes_on_only_from_checkpoints_of_its_own_key(job):
    first = job(4, "one")
    train_stage(first)
    with pytest.raises(StepError, match=r"belongs to another config \(key k, this config gives other\)"):
        train_stage(first.model_copy(update={"key": "other"}))


def test_a_stage_starts_from_the_end_of_the_stage_below(job):
    below = train_stage(job(4, "below"))
    longer = {"stable_kimg": {4: 0.02, 8: 0.016}}
    with pytest.raises(StepError, match=r"ends 4x4 at 16 images, but stage 8x8 of this config starts at 20"):
        train_stage(job(8, "longer", previous=below, training=longer))
    assert train_stage(job(8, "second", previous=below)).nimg == 56


def test_images_on_demand_train_the_same_network(job, monkeypatch, tmp_path):
    """The network is the same bit for bit, whether images are decoded before training or during it."""
    train_stage(job(4, "one"))
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "AT_ONCE", 0)
    train_stage(job(4, "two"))
    assert_same(*(training_state(newest_checkpoint(job(4, name).uri).uri) for name in ("one", "two")))


def test_damaged_samples_are_counted(job, monkeypatch, tmp_path):
    """Training goes on with another image, and the curves count the damaged one."""
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))
    stage = job(4, "one")
    index = read_level(stage.shards, 4)
    tar = Path(index.tars[0].uri)
    tar.chmod(0o644)
    content = bytearray(tar.read_bytes())
    content[index.offset[3] + index.size[3] - 1] ^= 1
    tar.write_bytes(content)
    train_stage(stage)
    assert [row["metrics"]["data/corrupt"] for row in read_rows(f"{stage.uri}/stats.jsonl")] == [1.0, 1.0]


def test_points_beyond_the_newest_checkpoint_are_made_again_not_twice(job):
    whole = job(4, "whole")
    record = train_stage(whole)
    expected = curves(whole.uri)
    Path(whole.uri, "done.json").unlink()
    rows = read_rows(f"{whole.uri}/stats.jsonl")
    rows.append({"nimg": 999, "resolution": 4, "metrics": {}})
    Path(whole.uri, "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(record.uri, "checkpoint.json").unlink()  # as after a kill before the marker was written: the stage starts over
    assert train_stage(whole) == record
    assert curves(whole.uri) == expected


def test_stage_without_images_passes_the_weights_on(job):
    """With stable_kimg 0 for the first stage, its checkpoint contains the fresh networks."""
    empty = job(4, "empty", training={"stages": {4: {"stable_kimg": 0}}})
    record = train_stage(empty)
    assert record.nimg == 0
    fresh = start_stage(empty.config, empty.stage, num_labels=2, previous=None)
    assert_same(training_state(record.uri)["G"], dict(fresh.G.state_dict()))
    assert curves(empty.uri) == []


def test_probe_is_part_of_the_next_point_once(job):
    """Probes at 24, 36, 48 and the end of 56 images, points at every 8: the first point after a probe contains it."""
    snapshots = {"probe_kimg": 0.012, "checkpoint_kimg": 0.02}
    below = train_stage(job(4, "one", snapshots=snapshots))
    stage = job(8, "one", previous=below, snapshots=snapshots)
    train_stage(stage)
    probed = {nimg: metrics["probe/accuracy"] for nimg, metrics in curves(stage.uri) if "probe/accuracy" in metrics}
    assert list(probed) == [24, 40, 48, 56]
    assert all(0 <= value <= 1 for value in probed.values())


def test_probe_needs_no_conditional_model(job):
    """The labels of the data are enough for a probe."""
    stage = job(4, "one", snapshots={"probe_kimg": 0.008}, model={"conditional": False})
    train_stage(stage)
    assert all("probe/accuracy" in metrics for _, metrics in curves(stage.uri))


def test_learning_rate_that_blows_up_ends_the_stage_and_leaves_a_checkpoint_that_loads(job):
    """After one update of 1e30 no gradient is finite: skipped updates are counted, and the weights stay finite."""
    stage = job(4, "one", training={"stable_kimg": 4.0}, snapshots={"checkpoint_kimg": 0.02})
    stage = stage.model_copy(
        update={"stage": stage.stage.model_copy(update={"learning_rate": 1e30})}
    )  # no config allows
    with pytest.raises(DivergedError, match=r"diverged at \d+ images.*learning_rate"):
        train_stage(stage)
    nimg, metrics = curves(stage.uri)[-1]
    assert metrics["optim/skipped"] == 2  # both players, in every step
    newest = newest_checkpoint(stage.uri)
    assert newest.nimg >= 20
    assert nimg >= 96  # after 50 updates: the points up to the end are stored
    generator, _ = load_model(newest.uri)
    assert all(value.isfinite().all() for value in generator.state_dict().values())
    state = resume_stage(stage.config, stage.stage, newest, num_labels=2, key="k")
    assert state.nimg == newest.nimg
    assert all(value.isfinite().all() for value in state.D.state_dict().values())
    with pytest.raises(DivergedError):  # resumed from that checkpoint it ends the same way
        train_stage(stage)


def test_checkpoints_of_skipped_updates_hold_the_weights_before(job):
    """The logits of D overflow from a checkpoint on: until the stage ends, every later checkpoint has the same networks."""
    short = train_stage(job(4, "one"))
    saved = training_state(short.uri)
    saved["D"]["head.conv.weight"].fill_(3e38)
    torch.save(saved, Path(short.uri, "training.pt"))
    stage = job(4, "one", training={"stable_kimg": 4.0})
    with pytest.raises(DivergedError):
        train_stage(stage)
    newest = newest_checkpoint(stage.uri)
    assert newest.nimg > short.nimg
    now = training_state(newest.uri)
    assert_same({**now["G"], "w_avg": None}, {**saved["G"], "w_avg": None})
    assert_same(now["D"], saved["D"])
    assert all(count > 0 for count in now["skipped"].values())


def test_storage_that_refuses_ends_in_one_line(job, tmp_path):
    """A regular file blocks the folder of the stage."""
    (tmp_path / "one").write_text("in the way")
    with pytest.raises(StepError, match="storage: cannot"):
        train_stage(job(4, "one"))
