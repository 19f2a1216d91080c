"""The trials of a search: what the study is told, what is repeated, and what is stopped early.

A stand-in for the program of a trial answers at once; a search on the real engines is in tests/integration/test_sweeps.py.
"""

import json

import pytest

from flows import children, optimize
from flows.optimize import _run_trials
from stylegan import storage
from stylegan.config.file import load
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.quick import rows_name
from stylegan.pipeline.run import Run
from stylegan.pipeline.study import Objective, Study, read_space
from stylegan.pipeline.sweep import with_overrides
from stylegan.training.state import MARKER

ANSWER = """
import json, sys, time
request = json.loads(sys.stdin.readline())
gamma = request["values"]["training"]["r1_gamma"]
assert request["to"] == "evaluate"
"""
FACTS = 'print(json.dumps({"facts": {"run_id": "r", "metrics": {"fid_classifier": gamma}}}))\n'


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(
        f"name: t\nstorage: {{root: {tmp_path / 'root'}}}\ndata: {{source: digits, resolution: 8, channels: 1}}\n"
        "training: {start_resolution: 4, batch: 4, stable_kimg: {4: 1, 8: 1}}\n"
        "snapshots: {metrics: [fid], metrics_kimg: 1}\nevaluation: {metrics: [fid]}\n"
        "ray: {address: '127.0.0.1:1', stop_grace_s: 1}\n"
    )
    return load(path)


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("training.r1_gamma: {low: 0.1, high: 10, log: true}\n")
    return read_space(path)


@pytest.fixture
def shards(config):
    return write_shards(open_source(config.data), config.data, config.storage.root)


@pytest.fixture
def study(config, space):
    return Study(config, Objective(key="eval/fid"), space)


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """answer(code): let every trial run this code, which has `gamma`, its setting."""
    monkeypatch.setattr(optimize, "READY_SECONDS", 0)
    monkeypatch.setattr(children, "PROGRAM", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda code: (tmp_path / "stand_in.py").write_text(ANSWER + code)


def states(study):
    return [trial.state.name for trial in study._study.trials]


def test_the_study_has_as_many_trials_as_asked_for_and_knows_the_best(study, shards, answer):
    answer(FACTS)
    ended = _run_trials(study, shards, "parent", 4, 1)
    assert [child.state for child in ended] == ["done"] * 4
    values = [child.metrics["fid_classifier"] for child in ended]
    assert study.value(study.best().number) == min(values)
    assert _run_trials(study, shards, "parent", 4, 1) == ()  # all are there
    assert len(_run_trials(study, shards, "parent", 6, 2)) == 2  # some more
    assert states(study) == ["COMPLETE"] * 6


def test_a_trial_that_failed_is_repeated_with_its_settings_and_one_that_diverged_is_not(
    study, config, space, shards, answer
):
    answer('print(json.dumps({"why": "no room", "error": "ExhaustedError"})); sys.exit(1)')
    (failed,) = _run_trials(study, shards, "parent", 1, 1)
    assert (failed.state, failed.why, states(study)) == ("failed", "no room", ["RUNNING"])

    answer('print(json.dumps({"why": "diverged", "error": "DivergedError"})); sys.exit(1)')
    again = Study(config, study.objective, space)
    (diverged,) = _run_trials(again, shards, "parent", 1, 1)
    assert (diverged.label, states(again)) == (failed.label, ["FAIL"])

    answer('print(json.dumps({"facts": {"run_id": "r", "metrics": {"fid_classifier": "NaN"}}}))')
    (without,) = _run_trials(again, shards, "parent", 2, 1)
    assert (without.state, without.why) == ("failed", "it has no finite value")
    assert states(again) == ["FAIL", "FAIL"]
    assert again.best() is None


@pytest.mark.parametrize(("value", "state"), [(99.0, "PRUNED"), (1.0, "COMPLETE")])
def test_a_trial_that_is_worse_at_the_end_of_a_stage_is_stopped(study, config, shards, answer, value, state):
    """By its quick metric there, against those of the trials before it."""
    for _ in range(5):
        number = study.ask().number
        study.report(number, 4, 10.0)
        study.tell(number, 5.0)
    trial = study.ask()
    run = Run(with_overrides(config, trial.overrides), shards)
    stage = run.stages[0]
    uri = f"{run.stage_uri(stage)}/checkpoint-{stage.end_nimg:09d}"
    record = {"uri": uri, "run_id": "r", "resolution": 4, "digest": run.stage_key(stage), "nimg": stage.end_nimg}
    for file in (f"{uri}/{MARKER}", f"{run.stage_uri(stage)}/done.json"):
        storage.write_json(file, record)
    row = {"nimg": stage.end_nimg, "resolution": 4, "metrics": {"quick/fid_classifier_4x4": value}}
    name = rows_name(run.config, 4, shards)
    storage.write_bytes(storage.join(run.stage_uri(stage), name), (json.dumps(row) + "\n").encode())

    answer(f"time.sleep({30 if state == 'PRUNED' else 3})\n{FACTS}")
    (ended,) = _run_trials(study, shards, "parent", 6, 1)
    assert states(study)[-1] == state
    assert study.reported(trial.number) == {4}
    if state == "PRUNED":
        assert ended.state == "pruned"
        assert ended.why == "quick/fid 99 at 4x4: worse than the median of the others"


def test_a_search_without_quick_metrics_says_that_it_stops_nothing_early(config, space, shards, answer, caplog):
    answer(FACTS)
    plain = with_overrides(config, ["snapshots.metrics_kimg=0"])
    with caplog.at_level("INFO", "stylegan"):
        _run_trials(Study(plain, Objective(key="fid"), space), shards, "parent", 1, 1)
    assert "no trial is stopped early: no quick metric measures fid" in caplog.text
