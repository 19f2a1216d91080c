"""A paper's table on the real engines: rows that are one network are trained once; the table, and its page in MLflow."""

import json

import pytest
from test_pipeline import client

from stylegan import storage

pytestmark = pytest.mark.long


def test_rows_are_trained_compared_and_shown_and_taken_from_storage_again(make_place):
    """The config mixes no styles, so that rows e and f are one network."""
    place = make_place()
    command = (
        "ablation",
        "table1",
        str(place.config),
        "--rows",
        "e,f",
        "--seeds",
        "1",
        "-s",
        "model.style_mixing_prob=0",
    )
    page = place.folder / "table.html"
    found = json.loads(place.run(*command, "--out", str(page), "--json"))
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == ["e", "f"]
    assert found["missing"] == []
    assert rows["e"]["cells"][0]["mean"] == rows["f"]["cells"][0]["mean"] > 0
    (order,) = found["orders"]
    assert (order["first"], order["second"], order["gain"], order["agrees"]) == ("f", "e", 0.0, None)
    stages = storage.names(storage.join(place.root, "stages"))
    assert len(stages) == len({name.partition("-")[0] for name in stages})  # one of each resolution
    assert "absolute values do not compare" in page.read_text()

    # In MLflow each row is a model of its own below one parent, which has the page.
    (experiment,) = [one for one in client(place).search_experiments() if one.name != "Default"]
    runs = client(place).search_runs([experiment.experiment_id])
    (parent,) = [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run.info.run_id != parent} == {parent}
    assert "ablation.html" in [file.path for file in client(place).list_artifacts(parent)]
    models = {model.name for model in client(place).search_registered_models()}
    assert models == {"tiny-table1-e", "tiny-table1-f"}

    # Again it is read from storage, and says the same.
    assert json.loads(place.run(*command, "--json")) == found
