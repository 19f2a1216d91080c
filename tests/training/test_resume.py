"""A killed run that is repeated ends like one that was left alone, to the last bit, wherever it was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from contents import assert_same, curves, pictures, training_state

from stylegan import storage
from stylegan.training.loop import train_stage
from stylegan.training.state import newest_checkpoint

SNAPSHOTS = {"probe_kimg": 0.012}  # 12, 24, ...: with the checkpoints, between points of the curves
RESOLUTIONS = (4, 8)


def train(job, name):
    """Both stages as the pipeline runs them: one that is done is not begun again."""
    previous = None
    for resolution in RESOLUTIONS:
        stage = job(resolution, name, previous=previous, snapshots=SNAPSHOTS)
        done = storage.exists(f"{stage.uri}/done.json")
        previous = newest_checkpoint(stage.uri) if done else train_stage(stage)
    return previous


def outcome(folder):
    """All that two stages leave, in comparable form."""
    found = {}
    for resolution in RESOLUTIONS:
        uri = str(folder / str(resolution))
        found[resolution] = {
            "training": training_state(newest_checkpoint(uri).uri),
            "generator": Path(newest_checkpoint(uri).uri, "generator.safetensors").read_bytes(),
            "curves": curves(uri),
            "pictures": pictures(uri),
            "names": storage.names(uri),
        }
    return found


def keep_every_state(monkeypatch, folder, states):
    """Copy the folder before every change of storage: what a kill in that moment would leave."""

    def before(change):
        def changed(*arguments):
            if folder.exists():
                shutil.copytree(folder, states / f"{len(list(states.iterdir())):03d}")
            return change(*arguments)

        return changed

    states.mkdir()
    for name in ("write_bytes", "delete"):
        monkeypatch.setattr(storage, name, before(getattr(storage, name)))


def progress(state):
    """Newest checkpoint of the last stage that has been begun, and whether another one was being written."""
    uri = str(max(path for path in state.iterdir()))
    newest, folders = newest_checkpoint(uri), [name for name in storage.names(uri) if name.startswith("checkpoint-")]
    halves = [name for name in folders if not storage.exists(f"{uri}/{name}/checkpoint.json")]
    return int(Path(uri).name), newest.nimg if newest else None, bool(halves)


def test_killed_before_any_change_of_storage_it_ends_bit_identical(job, tmp_path, monkeypatch):
    """Weights, both optimizers, average, curves, probes and grids, from every state that storage was ever in.

    The states cover both stages: before the first checkpoint, in the fade, at its end (where Adam starts afresh), at the border of
    the stages, right after a checkpoint, and between the files of one that is being written.
    """
    with monkeypatch.context() as patch:
        keep_every_state(patch, tmp_path / "whole", tmp_path / "states")
        train(job, "whole")
    expected = outcome(tmp_path / "whole")
    states = sorted((tmp_path / "states").iterdir())
    seen = {progress(state) for state in states}
    assert {(4, None, False), (4, 12, False), (4, 16, False), (8, None, True), (8, 36, True), (8, 48, False)} <= seen
    for number, state in enumerate(states):
        state.rename(tmp_path / f"torn-{number}")
        train(job, f"torn-{number}")
        assert_same(outcome(tmp_path / f"torn-{number}"), expected, f"state {number}")


def start(folder, job, previous):
    """Train the stage in a process of its own, as `train_stage` alone, without Ray."""
    plain = {
        "config": job.config.model_dump(mode="json"),
        "stage": asdict(job.stage),
        "shards": job.shards.model_dump(mode="json"),
        "previous": previous.model_dump(mode="json"),
        "uri": str(folder),
    }
    script = Path(__file__).with_name("train_alone.py")
    return subprocess.Popen([sys.executable, str(script), json.dumps(plain)], env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.timeout(300)
def test_killed_with_sigkill_again_and_again_it_ends_bit_identical(job, tmp_path):
    """kill -9 of a real process: in the fade, near its end and after it, each time at whatever line it is."""
    longer = {"training": {"fade_kimg": 0.4, "stable_kimg": {4: 0.016, 8: 0.4}}}
    often = {"snapshots": {"checkpoint_kimg": 0.04, "log_kimg": 0.03, "samples_kimg": 0.1}}
    previous = train_stage(job(4, "below", **longer))
    whole = job(8, "whole", previous=previous, **longer, **often)
    expected = train_stage(whole)
    torn = tmp_path / "torn"
    for until in (100, 330, 560):
        process = start(torn, whole, previous)
        try:
            while (newest_checkpoint(str(torn)) or previous).nimg < until:
                assert process.poll() is None, "the process ended before it could be killed"
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert newest_checkpoint(str(torn)).nimg < expected.nimg
    assert start(torn, whole, previous).wait() == 0
    found = newest_checkpoint(str(torn))
    assert found.nimg == expected.nimg
    assert_same(training_state(found.uri), training_state(expected.uri))
    assert curves(torn) == curves(whole.uri)
    assert pictures(torn) == pictures(whole.uri)
