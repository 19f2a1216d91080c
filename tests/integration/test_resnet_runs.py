"""Whole runs of the resnet pair on the real engines: two workers of Ray, killed once, measured, registered and judged."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stylegan.networks.normalisation import of_batch
from stylegan.training.curves import read_rows
from stylegan.training.state import load_model, newest_checkpoint

SECTIONS = {
    "model": {"architecture": "resnet", "width": 0.03, "latent_size": 8, "spectral_norm": True},
    "training": {
        "loss": "hinge",
        "r1_gamma": 0,
        "adam_beta2": 0.9,
        "batch": 16,
        "total_kimg": 1.6,
        "d_steps": 3,
        "ema_kimg": 0.2,
    },
    "snapshots": {"checkpoint_kimg": 0.2, "log_kimg": 0.1, "grid": 4, "probe_kimg": 0.4, "metrics_kimg": 0.8},
    "evaluation": {"num_images": 200, "metrics": ["fid", "is"]},
    "ray": {"workers": 2},
}


@pytest.fixture
def place(make_place, draw_images, tmp_path):
    """Return place(**sections): a place with a config of two classes of 24 images each; values join those of SECTIONS."""
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(24)], size=(32, 32))

    def make(**sections):
        joined = {name: values | sections.get(name, {}) for name, values in SECTIONS.items()}
        return make_place(data={"source": str(source), "resolution": 32}, **joined)

    return make


def kill_at(place, nimg):
    """Start the run and kill all its processes once the stage has a checkpoint of so many images, or a later one."""
    process, deadline = place.start("run", str(place.config)), time.monotonic() + 400
    try:
        while reached(place) < nimg:
            assert process.poll() is None, place.errors()
            assert time.monotonic() < deadline, place.errors()
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def reached(place):
    """Return the image count of the newest checkpoint."""
    found = [newest_checkpoint(str(stage)) for stage in Path(place.root).glob("stages/0032-*")]
    return max((checkpoint.nimg for checkpoint in found if checkpoint), default=0)


def weights(summary):
    """Return the digest of the averaged generator at the end of a run, with its statistics."""
    return hashlib.sha256(Path(summary["checkpoints"][-1]["uri"], "generator.safetensors").read_bytes()).hexdigest()


def check(place, summary):
    """Check what a finished run has left."""
    (checkpoint,) = summary["checkpoints"]
    assert (checkpoint["resolution"], checkpoint["nimg"]) == (32, 1600)
    assert {"fid_classifier", "is_classifier"} <= set(summary["report"]["metrics"])
    assert summary["verdict"]["promote"] is True
    assert summary["version"]["aliases"] == ["champion"]
    G, _ = load_model(checkpoint["uri"])
    assert of_batch(G)
    assert all(layer.mean.any() for layer in of_batch(G))

    # A hundred steps of D, every third with an update of G: curves without gaps, each point a mean over its updates.
    rows = [row for row in read_rows(str(Path(checkpoint["uri"]).parent / "stats.jsonl")) if "loss/d" in row["metrics"]]
    assert [row["nimg"] for row in rows] == sorted({row["nimg"] for row in rows})
    assert all("loss/g" in row["metrics"] for row in rows)
    assert any("probe/accuracy" in row["metrics"] for row in rows)
    client = MlflowClient(f"sqlite:///{place.root}/mlflow.db")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert (run.data.params["model.architecture"], run.data.params["training.d_steps"]) == ("resnet", "3")
    assert {"loss/g", "loss/d", "eval/fid_classifier", "quick/fid_classifier"} <= set(run.data.metrics)
    place.wait_until_empty()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_conditional_run_with_rotation_that_was_killed_ends_like_one_that_was_not(place):
    options = {"model": {"conditional": True}, "training": {"rotation": {}}}
    whole, killed = place(**options), place(**options)
    plan = json.loads(whole.run("plan", str(whole.config), "--json"))
    (train,) = [step for step in plan["steps"] if step["name"].startswith("train")]
    assert train["name"] == "train 32x32"
    assert train["reason"].endswith("; 100 updates of D with 16 images each, 33 of G")
    expected = whole.json("run", str(whole.config))
    check(whole, expected)
    kill_at(killed, 400)
    assert reached(killed) < 1600
    summary = killed.json("run", str(killed.config))
    check(killed, summary)
    assert weights(summary) == weights(expected)
    assert summary["report"]["metrics"] == expected["report"]["metrics"]


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_an_unconditional_run_goes_on_with_another_number_of_workers(place):
    """Killed with one worker, it ends with two: statistics are those of the whole batch, however it is divided."""
    started = place(ray={"workers": 1}, model={"norm": "self_modulated"})
    kill_at(started, 400)
    (stage,) = Path(started.root).glob("stages/0032-*")
    before = [row for row in read_rows(str(stage / "stats.jsonl")) if row["nimg"] <= reached(started)]
    assert 400 <= before[-1]["nimg"] < 1600
    summary = started.json("run", str(started.config), "-s", "ray.workers=2")
    check(started, summary)
    assert read_rows(str(stage / "stats.jsonl"))[: len(before)] == before  # it did not begin anew
