"""`stylegan retrain` with real engines: the story of a model over several checks, days, drift, and two at once."""

import json
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stylegan.config.file import load
from stylegan.registry.contents import list_registered
from stylegan.tracking.connection import connect, resolve_uri

EVALUATION = {"num_images": 200, "metrics": ["fid"], "kid_subsets": 20, "kid_subset_size": 80}


def draw(folder, first, last, *, inverted=False):
    digits = load_digits()
    for number in range(first, last):
        path = folder / str(digits.target[number]) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * 15.9).astype(np.uint8)
        Image.fromarray(255 - pixels if inverted else pixels).save(path)


@pytest.fixture
def place(make_place, message_service):
    """A place whose config retrains on a folder of 200 digits and tells the service."""
    made = make_place(
        name="faces",
        data={"source": "images", "resolution": 8, "channels": 1},
        evaluation=EVALUATION,
        retrain={"warm_kimg": 0.4, "notify": ["$PEOPLE"], "min_new_images": 10},
    )
    made.env["PEOPLE"] = message_service.url("CANARY")
    draw(made.folder / "images", 0, 200)
    return made


def test_the_story_of_a_model(place, message_service):
    """First from new weights; then nothing to do; too few new images; enough of them, from the champion."""
    config = str(place.config)
    first = place.json("retrain", config)
    assert first["decision"]["rule"] == "first"
    assert first["decision"]["start"]["kind"] == "scratch"
    assert first["run"]["version"]["aliases"] == ["champion"]
    (message,) = message_service.got
    assert message["title"] == "faces: version 1 promoted"
    assert "There is no champion yet" in message["message"]
    assert message["attachments"]

    began = time.monotonic()
    second = place.json("retrain", config)
    print(f"a check that finds nothing: {time.monotonic() - began:.1f} s")
    assert (second["decision"]["rule"], second["run"]) == ("unchanged", None)
    assert "no new images since" in second["decision"]["reason"]
    assert len(message_service.got) == 1  # skips are not told

    draw(place.folder / "images", 200, 205)
    third = place.json("retrain", config)
    assert third["decision"]["rule"] == "few"
    assert "5 new image(s) since version 1" in third["decision"]["reason"]
    assert "at least 10 are asked for (retrain.min_new_images=10)" in third["decision"]["reason"]

    draw(place.folder / "images", 205, 260)
    planned = place.json("plan", config, "--scheduled")
    assert planned["decision"]["rule"] == "images"
    assert [step["name"] for step in planned["steps"]] == ["shard", "train 8x8", "evaluate", "register", "gate"]
    fourth = place.json("retrain", config)
    assert fourth["decision"]["rule"] == "images"
    assert fourth["decision"]["start"]["kind"] == "champion"
    assert fourth["drift"]["num_new"] == 60
    run = fourth["run"]
    assert [record["nimg"] for record in run["checkpoints"]] == [2600]  # 2,200 of the first, 400 more
    assert "On the champion's own images fid_classifier is" in run["verdict"]["reasons"][-1]

    settings = load(config)
    newest = list_registered(settings)[0]
    assert newest.tags["stylegan.parent_version"] == "1"
    assert newest.tags["stylegan.num_images"] == "260"
    client = connect(resolve_uri(settings))
    logged = client.get_run(run["mlflow_run_id"]).data.metrics
    assert {"drift/kid", "drift/kid_low", "drift/kid_high"} <= set(logged)
    assert place.json("retrain", config)["decision"]["rule"] == "unchanged"

    # The secret of the service is nowhere.
    everything = [path for path in place.folder.rglob("*") if path.is_file()]
    assert not [path for path in everything if b"CANARY" in path.read_bytes()]

    # Another config is trained anew, from new weights; the champion of the other one cannot be continued by other networks.
    line = place.run("retrain", config, "--set", "model.fmap_max=4", "--set", "retrain.start=champion", code=2)
    assert line == ""
    assert "retrain.start=champion: the champion, version" in place.errors()
    assert "it was trained with model.fmap_max=8, this config has 4" in place.errors()


@pytest.mark.long
def test_a_drift_holds_until_somebody_has_looked(place, message_service):
    config = str(place.config)
    options = ["--set", "retrain.drift_kid=0.5", "--set", "retrain.on_drift=hold", "--set", "retrain.start=scratch"]
    place.json("retrain", config, *options)
    draw(place.folder / "images" / "new", 300, 360, inverted=True)
    held = place.json("retrain", config, *options)
    assert (held["decision"]["rule"], held["run"]) == ("held", None)
    assert "look at " in held["decision"]["reason"]
    assert message_service.got[-1]["title"] == "faces: held"
    assert place.json("retrain", config, *options)["decision"]["rule"] == "held"
    looked = place.json("retrain", config, *options, "--set", "retrain.on_drift=log")
    assert looked["run"]


@pytest.mark.long
def test_few_images_that_are_very_different_force_a_retraining(place):
    config = str(place.config)
    options = [
        "--set",
        "retrain.drift_kid=0.5",
        "--set",
        "retrain.on_drift=train",
        "--set",
        "retrain.min_new_images=1000",
    ]
    place.json("retrain", config, *options)
    draw(place.folder / "images", 300, 320)
    assert place.json("retrain", config, *options)["decision"]["rule"] == "few"
    draw(place.folder / "images" / "new", 320, 380, inverted=True)
    assert place.json("retrain", config, *options)["decision"]["rule"] == "drift"


@pytest.mark.long
def test_a_backfill_does_each_day_once_the_oldest_first(make_place):
    place = make_place(
        name="daily",
        data={"source": "days/{date}", "resolution": 8, "channels": 1},
        evaluation=EVALUATION | {"metrics": ["fid"]},
        retrain={"start": "scratch"},
    )
    for number, day in enumerate(("2026-03-01", "2026-03-02", "2026-03-04")):
        draw(place.folder / "days" / day, 100 * number, 100 * number + 60)
    config = str(place.config)
    place.run("retrain", config, "--dates", "2026-03-01..2026-03-04", code=1)
    assert "1 of 4 days have no source, the first is 2026-03-03" in place.errors()
    versions = list_registered(load(config))
    assert [version.tags["stylegan.date"] for version in reversed(versions)] == [
        "2026-03-01",
        "2026-03-02",
        "2026-03-04",
    ]
    draw(place.folder / "days" / "2026-03-03", 300, 360)
    out = place.run("retrain", config, "--dates", "2026-03-01..2026-03-04")
    skipped = [line for line in out.splitlines() if ": skip: no new images since" in line]
    assert [line[:10] for line in skipped] == ["2026-03-01", "2026-03-02", "2026-03-04"]
    versions = list_registered(load(config))
    assert len(versions) == 4
    assert versions[0].tags["stylegan.date"] == "2026-03-03"


@pytest.mark.long
def test_of_two_at_once_one_trains_and_the_other_is_skipped(place):
    config = str(place.config)
    first = place.start("retrain", config, "--json")
    deadline = time.monotonic() + 120
    while not list((place.folder / "data" / "locks").glob("model-*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    (place.folder / "stdout").rename(place.folder / "first")
    second = place.json("retrain", config)
    assert second["decision"]["rule"] == "locked"
    assert "run faces is training since" in second["decision"]["reason"]
    assert first.wait(240) == 0
    assert json.loads((place.folder / "first").read_text())["run"]


@pytest.mark.long
def test_two_runs_of_one_config_double_nothing(place):
    """The second ends with one line; after a kill -9 of the first it goes on."""
    config = str(place.config)
    first = place.start("run", config)
    deadline = time.monotonic() + 120
    while (
        not list((place.folder / "data").glob("stages/*/checkpoint-*/checkpoint.json")) and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    place.run("run", config, code=1)
    assert "is training since" in place.errors()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    place.wait_until_empty(60)
    summary = place.json("run", config)
    client = connect(resolve_uri(load(config)))
    steps = [point.step for point in client.get_metric_history(summary["mlflow_run_id"], "loss/d")]
    assert len(set(steps)) == len(steps)
