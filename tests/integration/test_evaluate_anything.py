"""`stylegan evaluate` on what a finished run has left: the run, its version, a checkpoint of a stage below, and its page."""

import json
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient


def client(place):
    return MlflowClient(f"sqlite:///{place.root}/mlflow.db")


def test_a_run_as_it_is_comes_from_its_folder(finished):
    place, summary = finished
    found = place.json("evaluate", summary["run_id"], "--config", str(place.config))
    assert (found["kind"], found["cached"], found["page"]) == ("run", True, summary["page"])
    assert found["report"] == summary["report"]
    assert not Path(place.root, "evaluations").exists()


@pytest.mark.timeout(240)
def test_the_champion_in_another_metric(finished):
    """The settings are those of its run, the numbers those of its checkpoint; a copy goes where it is asked for."""
    place, summary = finished
    place.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{place.root}/mlflow.db"
    out = place.folder / "out"
    found = place.json("evaluate", "tiny@champion", "--metrics", "fid,kid", "--out", str(out))
    assert (found["kind"], found["model"], found["cached"]) == ("version", "tiny version 1", False)
    assert found["report"]["checkpoint_uri"] == summary["checkpoints"][-1]["uri"]
    metrics = found["report"]["metrics"]
    assert set(metrics) == {"fid_classifier", "kid_classifier", "classifier_accuracy"}
    assert metrics["fid_classifier"] == pytest.approx(summary["report"]["metrics"]["fid_classifier"], rel=1e-6)
    assert found["report"]["protocols"]["fid_classifier"] == summary["report"]["protocols"]["fid_classifier"]
    assert {path.name for path in out.iterdir()} == {"grid.png", "report.html", "report.json"}


@pytest.mark.timeout(240)
def test_a_checkpoint_of_a_stage_below_is_measured_at_its_own_resolution(finished):
    place, summary = finished
    found = place.json("evaluate", summary["checkpoints"][0]["uri"], "--metrics", "fid")
    assert (found["kind"], found["report"]["settings"]["resolution"]) == ("checkpoint", 4)
    assert found["report"]["protocols"]["fid_classifier"] != summary["report"]["protocols"]["fid_classifier"]


def test_mlflow_and_prefect_have_the_page(finished):
    """With all figures of the report; the flow's page says where it is."""
    place, summary = finished
    run_id = summary["mlflow_run_id"]
    assert "report.html" in [file.path for file in client(place).list_artifacts(run_id)]
    figures = [file.path for file in client(place).list_artifacts(run_id, "figures")]
    assert figures == [f"figures/{name}.png" for name in sorted(summary["report"]["figures"])]
    with open(client(place).download_artifacts(run_id, "report.html"), encoding="utf-8") as file:
        page = file.read()
    assert page == Path(summary["page"]).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(figures) + 1  # and the mean image of the data set
    with sqlite3.connect(place.folder / "prefect" / "prefect.db") as database:
        (text,) = database.execute(
            "select data from artifact where type = 'markdown' order by created desc limit 1"
        ).fetchone()
    assert summary["page"] in text


def test_a_page_that_is_gone_is_made_again_and_nothing_else(finished):
    """`evaluate CONFIG` of an evaluated run writes the page alone, with the same content."""
    place, summary = finished
    page, report = Path(summary["page"]), Path(place.root, "runs", summary["run_id"], "report.json")
    before, content = report.stat().st_mtime_ns, page.read_text(encoding="utf-8")
    page.unlink()
    assert json.loads(place.run("evaluate", str(place.config), "--json")) == summary["report"]
    assert page.read_text(encoding="utf-8") == content
    written = page.stat().st_mtime_ns
    shown = place.run("evaluate", str(place.config))
    assert "taken from storage" in shown
    assert shown.splitlines()[-1] == f"report      {page}"
    assert (page.stat().st_mtime_ns, report.stat().st_mtime_ns) == (written, before)
