"""Checkpoints in the background: training goes on, one is written at a time, and a refusal ends the stage."""

import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contents import assert_same, curves, training_state

from stylegan import storage
from stylegan.errors import StepError
from stylegan.training import checkpoints as checkpoints_module
from stylegan.training.background import Background
from stylegan.training.checkpoints import CheckpointWriter
from stylegan.training.curves import read_rows
from stylegan.training.graphs import StepRunner
from stylegan.training.loop import train_stage
from stylegan.training.state import checkpoints, newest_checkpoint

SECONDS = 30  # more than any step takes


def test_training_goes_on_while_a_checkpoint_is_written(job, monkeypatch):
    """The checkpoint of 8 images is complete only after the next step: training that waited for it would hang."""
    stage = job(4, "one", snapshots={"checkpoint_kimg": 0.008})
    stepped, waited = threading.Event(), []
    write, step = storage.write_bytes, StepRunner.step

    def slow_write(uri, data):
        if uri.endswith("checkpoint-000000008/training.pt"):
            waited.append(stepped.wait(SECONDS))
        write(uri, data)

    def noticed_step(runner, *arguments):
        path = step(runner, *arguments)
        if runner.state.nimg == 8:
            stepped.set()
        return path

    monkeypatch.setattr(storage, "write_bytes", slow_write)
    monkeypatch.setattr(StepRunner, "step", noticed_step)
    train_stage(stage)
    assert waited == [True]


def test_a_checkpoint_holds_the_state_of_its_moment(job, monkeypatch):
    """A checkpoint that is written after the next step equals the checkpoint of a run that ended before that step."""
    short = train_stage(job(4, "short", training={"stable_kimg": 0.004}))
    stage = job(4, "long", snapshots={"checkpoint_kimg": 0.004})
    stepped, write, step = threading.Event(), storage.write_bytes, StepRunner.step
    stored = {}

    def slow_write(uri, data):
        if "checkpoint-000000004" in uri:
            assert stepped.wait(SECONDS)
            write(uri, data)
            stored.setdefault("state", training_state(Path(uri).parent))
        else:
            write(uri, data)

    def noticed_step(runner, *arguments):
        path = step(runner, *arguments)
        if runner.state.nimg == 4:
            stepped.set()
        return path

    monkeypatch.setattr(storage, "write_bytes", slow_write)
    monkeypatch.setattr(StepRunner, "step", noticed_step)
    train_stage(stage)
    expected = training_state(short.uri)
    for name in ("G", "D", "G_ema", "opt_G", "opt_D", "nimg"):
        assert_same(stored["state"][name], expected[name], name)


def test_one_is_written_at_a_time_and_reported_when_complete(job):
    """`on_checkpoint` is called once for each, when it is complete and before the next one. Two are kept."""
    stage, reported = job(4, "one", snapshots={"checkpoint_kimg": 0.004}), []

    def on_checkpoint(point):
        reported.append((newest_checkpoint(stage.uri).nimg, len(checkpoints(stage.uri)), point.get("progress/kimg")))

    train_stage(stage, on_checkpoint=on_checkpoint)
    assert reported == [(4, 1, None), (8, 2, 0.008), (12, 2, 0.008), (16, 2, 0.016)]
    assert len(checkpoints(stage.uri)) == 1


def test_refused_checkpoint_ends_the_stage_in_one_line_and_leaves_the_last_one(job):
    """A file blocks the folder of the second checkpoint; without it, the same command ends like an undisturbed run."""
    whole = job(4, "whole", snapshots={"checkpoint_kimg": 0.008})
    expected = train_stage(whole)
    stage = job(4, "torn", snapshots={"checkpoint_kimg": 0.008})
    obstacle = Path(stage.uri, "checkpoint-000000016")
    with pytest.raises(
        StepError, match=r"^storage: cannot write .*checkpoint-000000016/training\.pt: .*run the same command again$"
    ):
        train_stage(stage, on_checkpoint=lambda _: obstacle.write_text("in the way"))
    assert newest_checkpoint(stage.uri).nimg == 8
    assert read_rows(f"{stage.uri}/stats.jsonl")[-1]["nimg"] >= 8
    assert not Path(stage.uri, "done.json").exists()
    obstacle.unlink(missing_ok=True)
    record = train_stage(stage)
    assert_same(training_state(record.uri), training_state(expected.uri))
    assert curves(stage.uri) == curves(whole.uri)


def test_curves_on_storage_never_end_before_a_checkpoint_that_counts(job, monkeypatch):
    """Whenever a marker is written, storage already has the points up to its image count."""
    stage, seen, write = job(4, "one", snapshots={"log_kimg": 0.004, "checkpoint_kimg": 0.004}), [], storage.write_bytes

    def watched(uri, data):
        if uri.endswith("checkpoint.json"):
            seen.append((int(Path(uri).parent.name[-9:]), read_rows(f"{stage.uri}/stats.jsonl")[-1]["nimg"]))
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", watched)
    train_stage(stage)
    assert seen == [(4, 4), (8, 8), (12, 12), (16, 16)]


def wait_for_slow_storage(rank, folder):
    """Write a checkpoint on rank 0 for longer than the ranks may wait for each other."""
    seconds = 3
    limit = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=limit)
    checkpoints_module.WAIT_SECONDS = 0.5
    state = SimpleNamespace(G_ema=torch.nn.Linear(1, 1), nimg=0, device=torch.device("cpu"))
    with Background() as background:
        writer = CheckpointWriter(SimpleNamespace(), state, background, None)
        if rank == 0:
            writer._writing = background.submit(lambda: time.sleep(2 * seconds))
        writer._point, writer._shared = {}, True
        writer.wait()
        Path(folder, f"{rank}.txt").write_text(str(writer._writing is None or writer._writing.done()))
    dist.barrier()
    dist.destroy_process_group()


def test_the_other_ranks_wait_for_storage_however_long_it_takes(tmp_path):
    mp.spawn(wait_for_slow_storage, (str(tmp_path),), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["True", "True"]
