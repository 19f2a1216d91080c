"""Signals to a run on real engines: it stops in order with one line, and the same command goes on from its checkpoint.

The phases before and after training, and what does not end by itself, are tested in tests/flows/cli/test_supervisor.py.
"""

import os
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from test_pipeline import stage_nimg, wait_for

from stylegan.training.curves import read_rows

pytestmark = pytest.mark.long


def stop(place, ready, number, send):
    """Start the run, send it a signal once it is ready, and check that it ends with one line and no process left."""
    process = place.start("run", str(place.config))
    try:
        wait_for(ready, process, seconds=200)
        send(process.pid, number)
        assert process.wait(60) == 128 + number
    finally:
        process.kill()
    assert place.processes() == []
    lines = [line for line in place.errors().splitlines() if line.startswith("stylegan: ")]
    assert lines == [place.errors().splitlines()[-1]]
    assert "the same command goes on" in lines[0]
    assert "Traceback" not in place.errors()


def states(place):
    """Return the states of the flow runs, oldest first, and of the MLflow runs."""
    with sqlite3.connect(place.folder / "prefect" / "prefect.db") as database:
        flows = [state for (state,) in database.execute("select state_name from flow_run order by created")]
    return flows, [run.info.status for run in MlflowClient(f"sqlite:///{place.root}/mlflow.db").search_runs(["1"])]


def trained(place):
    """Return the image count of the newest point of the curves of the first stage."""
    (stats,) = list(Path(place.root).glob("stages/0004-*/stats.jsonl")) or [None]
    return read_rows(str(stats))[-1]["nimg"] if stats else 0


def test_a_run_stopped_while_it_trains_saves_its_state_and_goes_on_from_there(make_place):
    """Ctrl-C on a terminal reaches the whole group, SIGTERM the process alone. The last start finishes the run."""
    place = make_place()
    tree = yaml.safe_load(place.config.read_text())
    tree["snapshots"]["checkpoint_kimg"] = 100
    tree["training"]["stable_kimg"] = {4: 2.0, 8: 0.6}
    place.config.write_text(yaml.safe_dump(tree))
    stop(place, lambda: trained(place), signal.SIGINT, os.killpg)
    assert 0 < stage_nimg(place, 4) < 2000  # no checkpoint was due
    assert states(place) == (["Cancelled"], ["KILLED"])
    stop(place, lambda: stage_nimg(place, 4) == 2000, signal.SIGTERM, os.kill)
    summary = place.json("run", str(place.config))
    assert [checkpoint["nimg"] for checkpoint in summary["checkpoints"]] == [2000, 3200]
    assert states(place) == (["Cancelled", "Cancelled", "Completed"], ["FINISHED"])


def test_a_cached_run_stops_at_once(finished):
    """Within its flow run, which a repeat has only if some setting of Prefect says where to show it."""
    place, _ = finished
    database = f"sqlite+aiosqlite:///{place.folder}/prefect/prefect.db"
    recorded = replace(place, env=place.env | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database})
    stop(recorded, lambda: "taken from storage" in place.errors(), signal.SIGINT, os.killpg)
