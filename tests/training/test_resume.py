"""A run that is killed anywhere and repeated ends like an undisturbed run, to the last bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from contents import assert_same, curves, pictures, training_state

from stylegan import storage
from stylegan.training.loop import train_stage
from stylegan.training.state import newest_checkpoint

SNAPSHOTS = {"probe_kimg": 0.012}  # at 12, 24, ...: together with checkpoints, between points of the curves
RESOLUTIONS = (4, 8)


def train_both_stages(job, name):
    """Train both stages as the pipeline does: a finished stage is not trained again."""
    previous = None
    for resolution in RESOLUTIONS:
        stage = job(resolution, name, previous=previous, snapshots=SNAPSHOTS)
        done = storage.exists(f"{stage.uri}/done.json")
        previous = newest_checkpoint(stage.uri) if done else train_stage(stage)
    return previous


def outcome(folder):
    """Read all that two stages left in storage, in comparable form."""
    left = {}
    for resolution in RESOLUTIONS:
        uri = str(folder / str(resolution))
        left[resolution] = {
            "training": training_state(newest_checkpoint(uri).uri),
            "generator": Path(newest_checkpoint(uri).uri, "generator.safetensors").read_bytes(),
            "curves": curves(uri),
            "pictures": pictures(uri),
            "names": storage.names(uri),
        }
    return left


def keep_every_state(monkeypatch, folder, states):
    """Copy the folder before every change of storage: each copy is what a kill at that moment would leave."""

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
    """Return how far a copy is.

    Returns:
        The resolution of the last stage that was started, the image count of its newest checkpoint, and whether another
        checkpoint was being written.
    """
    uri = str(max(path for path in state.iterdir()))
    newest, folders = newest_checkpoint(uri), [name for name in storage.names(uri) if name.startswith("checkpoint-")]
    incomplete = [name for name in folders if not storage.exists(f"{uri}/{name}/checkpoint.json")]
    return int(Path(uri).name), newest.nimg if newest else None, bool(incomplete)


def test_killed_before_any_change_of_storage_it_ends_bit_identical(job, tmp_path, monkeypatch):
    """Weights, both optimizers, average, curves, probes and grids are the same from every state of storage.

    The states cover both stages: before the first checkpoint, in the fade, at its end (where Adam is reset), between
    the two stages, right after a checkpoint, and between the files of a checkpoint that is being written.
    """
    with monkeypatch.context() as patch:
        keep_every_state(patch, tmp_path / "whole", tmp_path / "states")
        train_both_stages(job, "whole")
    expected = outcome(tmp_path / "whole")
    states = sorted((tmp_path / "states").iterdir())
    seen = {progress(state) for state in states}
    assert {(4, None, False), (4, 12, False), (4, 16, False), (8, None, True), (8, 36, True), (8, 48, False)} <= seen
    for number, state in enumerate(states):
        state.rename(tmp_path / f"torn-{number}")
        train_both_stages(job, f"torn-{number}")
        assert_same(outcome(tmp_path / f"torn-{number}"), expected, f"state {number}")


def start(folder, job, previous):
    """Start a process that trains the stage with `train_stage` alone, without Ray."""
    job = job.model_copy(update={"uri": str(folder), "previous": previous})
    command = [sys.executable, str(Path(__file__).with_name("train_alone.py")), job.model_dump_json()]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.long
def test_killed_with_sigkill_again_and_again_it_ends_bit_identical(job, tmp_path):
    """A real process gets kill -9 in the fade, near its end and after it, each time at an arbitrary line."""
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
    resumed = newest_checkpoint(str(torn))
    assert resumed.nimg == expected.nimg
    assert_same(training_state(resumed.uri), training_state(expected.uri))
    assert curves(torn) == curves(whole.uri)
    assert pictures(torn) == pictures(whole.uri)
