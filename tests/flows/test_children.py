"""The processes of the runs of a sweep: what is known of their ends, their log, and what ends them.

A stand-in for the program of a child says or does what a test needs; that of `sweep_child` itself is in
tests/integration/test_sweeps.py.
"""

import logging
import subprocess
import sys
import time

import psutil
import pytest

from flows import children
from flows.children import ChildOutcome, Children, ChildRequest
from flows.sweep import Stages
from stylegan import storage
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.pipeline.run import Run
from stylegan.pipeline.sweep import Child, make_children
from stylegan.training.state import MARKER


@pytest.fixture
def play(tmp_path, monkeypatch, tiny_config):
    """Return `play(code, label="one")`: a crew that has started a child whose program is this Python code, and the child.

    The code has its request in `request`. Its Ray is that of a cluster, so none is started.
    """
    crew = Children("parent-id", "sweep:parent-id", at_once=2)

    def start(code, label="one", **ray):
        name = f"stand_in_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(
            f"import json, signal, sys, time\nrequest = json.loads(sys.stdin.readline())\n{code}\n"
        )
        monkeypatch.setattr(children, "PROGRAM", name)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        config = tiny_config(tmp_path / "root", ray={"address": "127.0.0.1:1", "stop_grace_s": 1, **ray})
        child = Child(label=label, overrides=(), config=config, group="g")
        crew.start(child)
        return crew, child

    yield start
    crew.stop()


def ends(crew, seconds=20):
    """Return what has become of the children that end next."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := list(crew.take_ended()):
            return [one for _, one in found]
        time.sleep(0.02)
    raise AssertionError("no child has ended")


def test_a_child_gets_its_config_and_its_facts_come_back(play, caplog):
    facts = {"run_id": "tiny-1", "mlflow_run_id": "m", "kimg": 3.0, "metrics": {"fid": 1.5}, "aliases": ["champion"]}
    said = ChildOutcome(facts=facts).model_dump_json()
    with caplog.at_level(logging.INFO, "stylegan"):
        crew, _ = play(
            "print('noise on stdout'); print('training \\x1b[31m', file=sys.stderr)\n"
            "assert request['values']['name'] == 'tiny' and request['parent'] == 'parent-id' and request['to'] == 'gate'\n"
            f"print({said!r})"
        )
        (ended,) = ends(crew)
    assert (ended.label, ended.group, ended.state, ended.run_id) == ("one", "g", "done", "tiny-1")
    assert (ended.metrics, ended.aliases, ended.cached) == ({"fid": 1.5}, ("champion",), False)
    assert ended.seconds > 0
    assert crew.running == []
    assert "one: training \\x1b[31m" in caplog.messages  # each line says which child it is of, and harms no terminal


@pytest.mark.parametrize(
    ("code", "why", "error"),
    [
        ('print(json.dumps({"why": "no room", "error": "StepError"})); sys.exit(1)', "no room", "StepError"),
        ("sys.exit(7)", "its process ended with exit code 7; its last lines say more", ""),
        ("import os; os.kill(os.getpid(), 9)", "its process ended with exit code -9; its last lines say more", ""),
        ("print('{no json'); sys.exit(1)", "its process ended with exit code 1; its last lines say more", ""),
    ],
)
def test_a_child_that_fails_says_why(play, code, why, error):
    crew, _ = play(code)
    (ended,) = ends(crew)
    assert (ended.state, ended.why, ended.error) == ("failed", why, error)


def test_one_that_fails_ends_no_other(play):
    crew, _ = play("sys.exit(1)", "bad")
    _, good = play("time.sleep(60)", "good")
    assert [one.label for one in ends(crew)] == ["bad"]
    assert crew.running == [good]


def test_a_pruned_child_is_stopped_as_a_user_would(play):
    crew, child = play(
        "try:\n    print('ready', file=sys.stderr, flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(130)"
    )
    time.sleep(1)  # until it has begun to wait
    crew.prune(child, "worse than the others")
    (ended,) = ends(crew)
    assert (ended.state, ended.why) == ("pruned", "worse than the others")


def test_a_child_that_does_not_stop_in_its_time_is_killed(play, monkeypatch):
    monkeypatch.setattr(children, "LEAVE_SECONDS", 0.5)
    crew, _ = play("signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)")
    (process,) = crew._processes
    time.sleep(0.5)
    began = time.monotonic()
    crew.stop()
    assert time.monotonic() - began < 10
    assert process._process.returncode in (-9, -2)  # -2: it had not come so far yet


def test_room_is_what_was_said(play):
    crew, child = play("time.sleep(60)")
    assert crew.has_room(child)
    play("time.sleep(60)", "two")
    assert not crew.has_room(child)


def test_the_real_program_ends_with_the_process_that_has_started_it(tmp_path, tiny_config):
    """Also if that was killed: then the pipe to it is closed, and nothing may go on to hold locks and GPUs."""
    process = subprocess.Popen(
        [sys.executable, "-m", children.__dict__["PROGRAM"]], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    config = tiny_config(tmp_path, ray={"address": "127.0.0.1:1"})
    request = ChildRequest(
        values=config.model_dump(mode="json"), arguments=("c",), parent="p", to="gate", task_run=None, tag="t"
    )
    process.stdin.write(request.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while not psutil.Process(process.pid).children() and time.monotonic() < deadline:
        time.sleep(0.05)
    (program,) = psutil.Process(process.pid).children()
    while program.num_threads() < 3 and time.monotonic() < deadline:  # the one that waits for the end is there
        time.sleep(0.05)
    process.stdin.close()
    assert process.wait(15) != 0
    assert not psutil.pid_exists(program.pid)


def test_runs_whose_next_stage_another_one_trains_wait_and_others_do_not(tmp_path, monkeypatch):
    """The room is for those that can use it."""
    monkeypatch.setattr("flows.sweep.READY_SECONDS", 0)
    path = tmp_path / "c.yaml"
    path.write_text(
        f"name: c\nstorage: {{root: {tmp_path / 'root'}}}\ndata: {{source: digits, resolution: 8, channels: 1}}\n"
        "training: {start_resolution: 4, batch: 4, stable_kimg: {4: 1, 8: 1}}\n"
    )
    found = make_children(path, grid=["training.stable_kimg.8=1,2", "seed=0,1"])
    found += make_children(path, ["evaluation.num_images=99"])
    first = found[0].config
    shards = write_shards(open_source(first.data), first.data, first.storage.root)
    runs = {child.label: Run(child.config, shards) for child in found}
    labels = list(runs)
    one, other_seed, longer, _, same_stages = labels
    stages = Stages(runs)

    assert stages.first_free(labels, []) == one
    assert stages.first_free([longer, other_seed], [one]) == other_seed  # the 4x4 stage of the first one is under way
    assert stages.first_free([longer, same_stages], [one]) is None

    def finish(label, number):
        run = runs[label]
        stage = run.stages[number]
        uri = f"{run.stage_uri(stage)}/checkpoint-{stage.end_nimg:09d}"
        record = {"uri": uri, "run_id": "r", "resolution": stage.resolution, "digest": run.stage_key(stage)}
        for file in (f"{run.stage_uri(stage)}/done.json", f"{uri}/{MARKER}"):
            storage.write_json(file, record | {"nimg": stage.end_nimg})

    finish(one, 0)
    assert stages.first_free([longer, same_stages], [one]) == longer  # 8x8 stages of different lengths
    assert stages.first_free([same_stages], [one, longer]) is None
    finish(one, 1)
    assert stages.first_free([same_stages], [one, longer]) == same_stages
