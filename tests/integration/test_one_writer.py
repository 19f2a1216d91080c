"""The same run started twice at the same time, on real engines: one works, and MLflow has everything once."""

import os
import signal
from dataclasses import replace

import pytest
from test_pipeline import client, curve, stage_nimg, wait_for, weights

from stylegan.pipeline.lock import held

pytestmark = pytest.mark.long


def test_the_second_of_two_is_refused_and_a_killed_one_gives_way_at_once(finished, make_place):
    """It ends with one line and exit code 1; after the first one was killed, the same command finishes the run."""
    reference, expected = finished
    place = make_place()
    beside = place.folder / "beside"
    beside.mkdir()
    (beside / "tiny.yaml").write_text(place.config.read_text())
    second = replace(place, folder=beside)  # the same storage, Prefect home and machine, with an output of its own

    # Refused while the first one trains.
    first = place.start("run", str(place.config))
    try:
        wait_for(lambda: stage_nimg(place, 4) >= 200, first)
        second.run("run", str(second.config), code=1)
        assert first.poll() is None
        (line,) = [line for line in second.errors().splitlines() if line.startswith("stylegan: ")]
        assert line == second.errors().splitlines()[-1]
        assert line.startswith(f"stylegan: run {expected['run_id']} is training since ")
        assert [one.run_id for one in held(place.root)] == [expected["run_id"]]
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()

    # Nobody waits for the killed one.
    place.wait_until_empty()
    assert held(place.root) == ()
    summary = second.json("run", str(second.config))
    assert "has not been heard of" not in second.errors()
    assert weights(summary) == weights(expected)

    # Every point and picture once.
    (run,) = client(place).search_runs(["1"])
    for key in ("loss/d", "loss/g", "loss/r1", "progress/alpha"):
        assert curve(place, run.info.run_id, key) == curve(reference, expected["mlflow_run_id"], key)
    files = [file.path for file in client(place).list_artifacts(run.info.run_id, "images")]
    there = client(reference).list_artifacts(expected["mlflow_run_id"], "images")
    assert len(files) == len(there), sorted(files)
    assert held(place.root) == ()
