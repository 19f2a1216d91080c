"""Tests of `stylegan evaluate` on the results of a finished run: the run, its version, a lower checkpoint, its page."""

import json
import sqlite3
from base64 import b64encode
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytestmark = pytest.mark.long


def client(place):
    """Return a client of the embedded MLflow of a place."""
    return MlflowClient(f"sqlite:///{place.root}/mlflow.db")


def test_a_run_as_it_is_comes_from_its_folder(finished):
    """Evaluating a run with its own settings takes the report from the run's folder and measures nothing."""
    place, summary = finished
    record = place.json("evaluate", summary["run_id"], "--config", str(place.config))
    assert (record["kind"], record["cached"], record["page"]) == ("run", True, summary["page"])
    assert record["report"] == summary["report"]
    assert not Path(place.root, "evaluations").exists()


def test_the_champion_in_another_metric(finished):
    """A version is evaluated with its run's settings and checkpoint, and `--out` gets a copy of the report."""
    place, summary = finished
    place.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{place.root}/mlflow.db"
    out = place.folder / "out"
    record = place.json("evaluate", "tiny@champion", "--metrics", "fid,kid", "--out", str(out))
    assert (record["kind"], record["model"], record["cached"]) == ("version", "tiny version 1", False)
    assert record["report"]["checkpoint_uri"] == summary["checkpoints"][-1]["uri"]
    metrics = record["report"]["metrics"]
    assert set(metrics) == {"fid_classifier", "kid_classifier", "classifier_accuracy"}
    assert metrics["fid_classifier"] == pytest.approx(summary["report"]["metrics"]["fid_classifier"], rel=1e-6)
    assert record["report"]["protocols"]["fid_classifier"] == summary["report"]["protocols"]["fid_classifier"]
    assert {path.name for path in out.iterdir()} == {"grid.png", "report.html", "report.json"}


def test_a_checkpoint_of_a_stage_below_is_measured_at_its_own_resolution(finished):
    """A checkpoint of the 4x4 stage is measured at 4x4, under another protocol than the run."""
    place, summary = finished
    record = place.json("evaluate", summary["checkpoints"][0]["uri"], "--metrics", "fid")
    assert (record["kind"], record["report"]["settings"]["resolution"]) == ("checkpoint", 4)
    assert record["report"]["protocols"]["fid_classifier"] != summary["report"]["protocols"]["fid_classifier"]


def test_mlflow_and_prefect_have_the_page(finished):
    """MLflow has the page and all figures of the report, and Prefect's artifact contains the path of the page."""
    place, summary = finished
    run_id = summary["mlflow_run_id"]
    assert "report.html" in [file.path for file in client(place).list_artifacts(run_id)]
    figures = [file.path for file in client(place).list_artifacts(run_id, "figures")]
    endings = {"walk": "gif"}  # a film, which MLflow does not show as WebP
    assert figures == [f"figures/{name}.{endings.get(name, 'png')}" for name in sorted(summary["report"]["figures"])]
    with open(client(place).download_artifacts(run_id, "report.html"), encoding="utf-8") as file:
        page = file.read()
    assert page == Path(summary["page"]).read_text(encoding="utf-8")
    pictures = [*map(Path, summary["report"]["figures"].values()), Path(summary["page"]).with_name("growth.webp")]
    assert [picture.name for picture in pictures if b64encode(picture.read_bytes()).decode() not in page] == []
    assert "growth.gif" in [file.path for file in client(place).list_artifacts(run_id)]
    with sqlite3.connect(place.folder / "prefect" / "prefect.db") as database:
        (text,) = database.execute(
            "select data from artifact where type = 'markdown' order by created desc limit 1"
        ).fetchone()
    assert summary["page"] in text


def test_a_page_that_is_gone_is_made_again_and_nothing_else(finished):
    """`evaluate CONFIG` of an evaluated run writes a missing page again, with the same content, and nothing else."""
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

    # A damaged verdict costs the page its verdict, and nothing else.
    verdict = Path(place.root, "runs", summary["run_id"], "verdict.json")
    kept = verdict.read_bytes()
    verdict.write_text("{")
    page.unlink()
    place.run("evaluate", str(place.config))
    assert page.exists()
    verdict.write_bytes(kept)
