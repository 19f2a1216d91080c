"""Sweeps on the real engines: stopped, killed and repeated; stages that runs share; a run that fails; a search."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import yaml
from mlflow import MlflowClient
from test_pipeline import client, wait_for

from stylegan import storage
from stylegan.config.file import load
from stylegan.pipeline.lock import held
from stylegan.pipeline.study import STUDIES
from stylegan.pipeline.sweep import make_children, shared_keys
from stylegan.training.curves import read_rows

pytestmark = pytest.mark.long
GRID = ("--grid", "training.stable_kimg.8=0.6,0.8")


def stage_folders(place) -> list[str]:
    return sorted(storage.names(storage.join(place.root, "stages")))


def has_checkpoint(place, resolution: int) -> bool:
    """Return whether a stage of a resolution is under way."""
    folders = [name for name in stage_folders(place) if name.startswith(f"{resolution:04d}-")]
    return any(
        name.startswith("checkpoint-")
        for folder in folders
        for name in storage.names(storage.join(place.root, "stages", folder))
    )


def runs_of(place) -> dict[str, object]:
    """Return the MLflow runs by name."""
    (experiment,) = [one for one in client(place).search_experiments() if one.name != "Default"]
    return {run.info.run_name: run for run in client(place).search_runs([experiment.experiment_id])}


def test_a_sweep_that_is_stopped_and_killed_does_only_what_is_left(make_place):
    """The stage that both runs share is trained once; a config whose images are not there fails alone."""
    place = make_place()
    missing = place.folder / "missing.yaml"
    missing.write_text(yaml.safe_dump({"base": "tiny.yaml", "data": {"source": str(place.folder / "nowhere")}}))
    command = ("sweep", str(place.config), "--configs", str(missing), *GRID)

    # Stopped by a signal: all processes end, in time, and MLflow says so.
    process = place.start(*command)
    wait_for(lambda: has_checkpoint(place, 4), process)
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    assert process.wait(60) == 130, place.errors()
    assert time.monotonic() - began < 40
    place.wait_until_empty()
    assert held(place.root) == ()
    states = {name: run.info.status for name, run in runs_of(place).items()}
    assert set(states.values()) == {"KILLED"}, states

    # Killed: nothing is left of it, either.
    process = place.start(*command)
    wait_for(lambda: has_checkpoint(place, 8), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    place.wait_until_empty()
    assert held(place.root) == ()
    trained = {name: storage.names(storage.join(place.root, "stages", name)) for name in stage_folders(place)}

    # Repeated: what was finished is not touched.
    record = json.loads(place.run(*command, "--json", code=1))
    first, second, *failed = record["children"]
    assert [child["state"] for child in (first, second)] == ["done", "done"]
    assert {child["state"] for child in failed} == {"failed"}
    assert all("nowhere" in child["why"] for child in failed)
    children = make_children(place.config, grid=GRID[1:])
    keys = [shared_keys(child.config) for child in children]
    assert keys[0][0] == keys[1][0]
    assert stage_folders(place) == sorted(
        {f"{4 * 2**depth:04d}-{key}" for run in keys for depth, key in enumerate(run)}
    )
    shared = next(name for name in trained if name.startswith("0004-"))
    if "done.json" in trained[shared]:
        assert storage.names(storage.join(place.root, "stages", shared)) == trained[shared]
    rows = read_rows(storage.join(place.root, "stages", shared, "stats.jsonl"))
    assert [row["nimg"] for row in rows] == sorted({row["nimg"] for row in rows})

    # Each is an ordinary run below the parent.
    found = runs_of(place)
    parent = found[record["sweep_id"]]
    assert (parent.info.run_id, parent.info.status) == (record["parent"], "FAILED")
    for child in (first, second):
        run = found[child["run_id"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == record["parent"]
    summary = place.json("run", str(place.config), "--set", "training.stable_kimg.8=0.8")
    assert (summary["run_id"], summary["mlflow_run_id"]) == (second["run_id"], second["mlflow_run_id"])
    for step in ("shard", "train 4x4", "train 8x8", "evaluate", "register", "gate"):
        assert f"{step}: taken from storage" in place.errors()

    # All of it is there now: the failed one alone is tried again.
    again = json.loads(place.run(*command, "--json", code=1))
    assert [child["cached"] for child in again["children"][:2]] == [True, True]
    assert again["parent"] == record["parent"]


def test_of_two_runs_that_share_a_stage_at_the_same_time_one_trains_it(make_place):
    """The other one waits for it; whichever comes first, its points are there once."""
    place = make_place()
    beside = place.folder / "beside"
    beside.mkdir()
    second = replace(place, folder=beside)
    processes = [
        place.start("run", str(place.config)),
        second.start("run", str(place.config), "--set", "training.stable_kimg.8=0.8"),
    ]
    assert [process.wait(600) for process in processes] == [0, 0], place.errors() + second.errors()
    assert "train 4x4: tiny-" in place.errors() + second.errors()
    assert "trains this very stage; waiting for its end" in place.errors() + second.errors()
    assert [name[:4] for name in stage_folders(place)] == ["0004", "0008", "0008"]
    rows = read_rows(storage.join(place.root, "stages", stage_folders(place)[0], "stats.jsonl"))
    assert [row["nimg"] for row in rows] == sorted({row["nimg"] for row in rows})
    assert held(place.root) == ()


def test_a_search_that_was_killed_goes_on_with_the_same_trials(make_place):
    """The best trial is registered, by the same run; the others are not."""
    place = make_place()
    space = place.folder / "space.yaml"
    space.write_text("training.r1_gamma: {low: 0.1, high: 10, log: true}\n")
    command = ("sweep", str(place.config), "--optimize", "eval/fid", "--space", str(space), "--trials", "2")
    command = (*command, "--at-once", "1")
    process = place.start(*command)
    wait_for(lambda: has_checkpoint(place, 4), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    place.wait_until_empty()
    begun = stage_folders(place)
    (study,) = storage.names(storage.join(place.root, STUDIES))

    record = place.json(*command)
    assert record["sweep_id"] == study
    assert [child["state"] for child in record["trials"]] == ["done", "done"]
    assert set(begun) < set(stage_folders(place))
    assert [name[:4] for name in stage_folders(place)] == ["0004", "0004", "0008", "0008"]
    values = [child["metrics"]["fid_classifier"] for child in record["trials"]]
    assert record["value"] == min(values) == values[record["best"]]
    assert record["run"]["run_id"] == record["trials"][record["best"]]["run_id"]
    assert record["run"]["aliases"] == ["champion"]
    versions = MlflowClient(client(place).tracking_uri).search_model_versions("name = 'tiny'")
    assert len(versions) == 1
    assert load(place.config).name == "tiny"
