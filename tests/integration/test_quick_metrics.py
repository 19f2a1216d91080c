"""Test of quick metrics beside training on real Ray: their points in MLflow, and a kill during a measurement."""

import json
from pathlib import Path

import pytest
from test_pipeline import curve, file_exists, kill_when, weights

SNAPSHOTS = {
    "checkpoint_kimg": 0.2,
    "log_kimg": 0.1,
    "samples_kimg": 0.5,
    "grid": 4,
    "metrics": ["fid", "pr"],
    "metrics_kimg": {4: 0, 8: 0.4},
    "metrics_images": 300,
}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_points_are_in_mlflow_once_and_training_is_the_same(finished, make_place):
    """After a kill during a measurement, the same command leaves each row and point once, also at the end of the stage.

    The weights are those of a run without quick metrics that nobody killed.
    """
    # Kill it during a measurement, and repeat it.
    _, expected = finished
    place = make_place(snapshots=SNAPSHOTS)
    kill_when(place, file_exists(place, "stages/0008-*/measuring/*"))
    summary = place.json("run", str(place.config))
    assert weights(summary) == weights(expected)
    assert summary["run_id"] == expected["run_id"]

    # Each checkpoint has one row.
    (path,) = Path(place.root, "stages").glob("*/metrics-*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    nimgs = [row["nimg"] for row in rows]
    assert nimgs == sorted(set(nimgs))
    assert nimgs[-1] == 2200
    assert not (path.parent / "measuring").exists()

    # Remove the last row, as if the run had been killed during the last measurement, and repeat.
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    place.run("train", str(place.config))
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows

    # MLflow has the first row of each kimg.
    for key in ("quick/fid_classifier", "quick/recall_classifier"):
        first = {row["nimg"] // 1000: row["metrics"][key] for row in reversed(rows)}
        assert curve(place, summary["mlflow_run_id"], key) == sorted(first.items())
    place.wait_until_empty()
