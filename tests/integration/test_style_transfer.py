"""A style transfer through the whole DAG with real Ray, MLflow and Prefect: run, repeated, improved, killed."""

import contextlib
import hashlib
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from stylegan.tracking.metric_names import find
from stylegan.training.curves import read_rows
from stylegan.training.state import newest_checkpoint

STEPS = ["shard", "train 16x16", "evaluate", "register", "gate"]
SECTIONS = {
    "name": "restyled",
    "data": {"source": "photos", "resolution": 16},
    "transfer": {"kimg": 1.2, "batch": 8, "learning_rate": 0.002, "depth": 2},
    "snapshots": {"checkpoint_kimg": 0.2, "log_kimg": 0.1, "samples_kimg": 0.4, "grid": 4},
    "evaluation": {"features": "rotation", "metrics": ["transfer"], "num_images": 64},
    "registry": {"gate": {"metric": "transfer_loss"}},
}
WITHOUT = {"model": {}, "training": {}}  # sections of a StyleGAN, which a place has by itself


@pytest.fixture(scope="module")
def transfer_place(make_place):
    """Return a function that makes a place with the config of a small style transfer."""

    return lambda: make_place(**SECTIONS, **WITHOUT)


@pytest.fixture(scope="module")
def trained(transfer_place):
    """Return a place where it was run to its end, and the summary that the command printed."""
    place = transfer_place()
    return place, place.json("run", str(place.config))


def states(place):
    """Return name and state of each task run of the last flow run."""
    with contextlib.closing(sqlite3.connect(place.folder / "prefect" / "prefect.db")) as database:
        (flow_run,) = database.execute("select id from flow_run order by created desc limit 1").fetchone()
        return database.execute(
            "select name, state_name from task_run where flow_run_id = ? order by expected_start_time, created",
            (flow_run,),
        ).fetchall()


def client(place):
    return MlflowClient(f"sqlite:///{place.root}/mlflow.db")


def weights(summary):
    uri = summary["checkpoints"][-1]["uri"]
    return hashlib.sha256(Path(uri, "transfer.safetensors").read_bytes()).hexdigest()


def curve(place, run_id, key):
    return [(point.step, point.value) for point in client(place).get_metric_history(run_id, key)]


@pytest.mark.long
def test_a_run_trains_measures_registers_and_judges_it(trained):
    place, summary = trained
    assert [name for name, _ in states(place)] == STEPS
    assert summary["version"]["aliases"] == ["champion"]
    metrics = summary["report"]["metrics"]
    assert set(metrics) == {
        *(f"{name}_rotation" for name in ("transfer_loss", "content_loss", "style_loss")), "rotation_accuracy",
    }  # fmt: skip
    run_id = summary["mlflow_run_id"]
    logged = client(place).get_run(run_id).data.metrics
    assert logged["eval/transfer_loss_rotation"] == pytest.approx(metrics["transfer_loss_rotation"])
    assert [name for name in logged if not find(name)] == []
    for key in ("loss/content", "loss/style"):
        (first, before), *_, (last, after) = curve(place, run_id, key)
        assert (first, last) == (0, 1)  # kimg
        assert after < before
    assert len(read_rows(f"{Path(summary['checkpoints'][0]['uri']).parent}/stats.jsonl")) == 12
    artifacts = {file.path for file in client(place).list_artifacts(run_id, "figures")}
    assert "figures/transfers.png" in artifacts
    assert "data:image/png" in Path(summary["page"]).read_text()
    assert place.processes() == []


@pytest.mark.long
def test_the_same_command_takes_everything_from_storage(trained):
    place, summary = trained
    begun = time.monotonic()
    again = place.json("run", str(place.config))
    assert again["version"] == summary["version"]
    assert weights(again) == weights(summary)
    assert all(f"{step}: taken from storage" in place.errors() for step in STEPS)
    assert time.monotonic() - begun < 60
    plan = place.json("plan", str(place.config))
    assert {step["state"] for step in plan["steps"]} == {"cached"}
    longer = place.json("plan", str(place.config), "--set", "transfer.kimg=2")
    assert {step["name"]: step["state"] for step in longer["steps"]} == {
        name: "cached" if name == "shard" else "run" for name in STEPS
    }


@pytest.mark.long
def test_pictures_are_drawn_by_the_champion(trained, tmp_path):
    place, _ = trained
    Image.linear_gradient("L").resize((50, 40)).convert("RGB").save(tmp_path / "a.png")
    Image.radial_gradient("L").resize((30, 30)).convert("RGB").save(tmp_path / "b.jpg")
    pictures, model = (str(tmp_path / "a.png"), str(tmp_path / "b.jpg")), ("--config", str(place.config))
    record = place.json(
        "transfer",
        *pictures,
        "--model",
        "restyled@champion",
        *model,
        "--alpha",
        "0.7",
        "--out",
        str(tmp_path / "o.png"),
    )
    assert (record["width"], record["height"]) == Image.open(tmp_path / "o.png").size == (50, 40)
    place.run("sample", "restyled@champion", *model, code=1)
    assert "is a style transfer, with which `" in place.errors()
    place.run("transfer", *pictures, "--model", "restyled@champion", *model, "--alpha", "2", code=2)
    assert "--alpha 2: must be a number from 0" in place.errors()


@pytest.mark.long
def test_a_longer_training_is_judged_against_the_champion_and_others_accept_it(trained):
    place, summary = trained
    longer = place.json("run", str(place.config), "--set", "transfer.kimg=2.4")
    assert longer["shards"] == summary["shards"]
    assert longer["report"]["protocol"] == summary["report"]["protocol"]
    key = "transfer_loss_rotation"
    is_better = longer["report"]["metrics"][key] < summary["report"]["metrics"][key]
    assert longer["verdict"]["promote"] is is_better
    assert f"{key} is " in longer["verdict"]["reasons"][0]
    listed = place.json("ls", str(place.config))
    assert "restyled" in str(listed)
    place.json("gc", str(place.config), "--dry-run")
    doctor = place.json("doctor", str(place.config))
    assert doctor
    compared = place.json("compare", summary["run_id"], longer["run_id"], "--config", str(place.config))
    assert key in str(compared)


@pytest.mark.long
def test_killed_in_the_middle_it_ends_bit_identical(trained, transfer_place):
    reference, expected = trained
    place = transfer_place()
    process = place.start("run", str(place.config))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = [newest_checkpoint(str(stage)) for stage in Path(place.root).glob("stages/*")]
        if any(checkpoint and checkpoint.nimg >= 400 for checkpoint in found):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(Path(place.root).glob("stages/*/done.json"))
    summary = place.json("run", str(place.config))
    assert summary["run_id"] == expected["run_id"]
    assert weights(summary) == weights(expected)
    for key in ("loss/content", "loss/style"):
        assert curve(place, summary["mlflow_run_id"], key) == curve(reference, expected["mlflow_run_id"], key)
    place.wait_until_empty()
