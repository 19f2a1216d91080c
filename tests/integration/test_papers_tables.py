"""A paper's table on the real engines: rows that are one network are trained once; the table, and its page in MLflow."""

import json

import pytest
from PIL import Image
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


def test_the_forgetting_curves_of_a_resnet_are_drawn_side_by_side(make_place):
    """With a row that plays no game: its G learns nothing of images, and its D is probed all the same."""
    place = make_place(
        data={"source": "digits", "resolution": 32, "channels": 1},
        model={"architecture": "resnet", "width": 0.05, "latent_size": 8, "spectral_norm": True},
        training={"batch": 16, "d_steps": 2, "total_kimg": 0.32, "loss": "hinge", "r1_gamma": 0.0, "ema_kimg": 0.0},
        snapshots={"grid": 4, "log_kimg": 0.16, "probe_kimg": 0.16, "probe_images": 100},
        evaluation={"num_images": 200, "metrics": ["fid"]},
    )
    out = place.folder / "ssgan"
    command = ("ablation", "ssgan", str(place.config), "--rows", "ssgan,rotation-only", "--seeds", "1")
    found = json.loads(place.run(*command, "--out", str(out), "--json"))
    assert found["missing"] == []
    assert list(found["curves"]) == ["ssgan", "rotation-only"]
    assert list(found["layers"]) == [f"block {number}" for number in (1, 2, 3, 4)]
    for rows in (found["curves"], *found["layers"].values()):
        for seeds in rows.values():
            assert [kimg for kimg, _ in seeds["0"]] == [0.16, 0.32]
            assert all(0.1 < accuracy <= 1 for _, accuracy in seeds["0"])
    assert found["rows"][0]["cells"][0]["paper"]["CIFAR-10"] == 17.11

    # The picture lies beside the page, and with it in MLflow.
    assert sorted(path.name for path in out.iterdir()) == ["ablation.html", "forgetting.png"]
    (experiment,) = [one for one in client(place).search_experiments() if one.name != "Default"]
    runs = client(place).search_runs([experiment.experiment_id])
    (parent,) = [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {"ablation.html", "forgetting.png"} <= {file.path for file in client(place).list_artifacts(parent)}
    logged = client(place).download_artifacts(parent, "forgetting.png")
    assert Image.open(logged).tobytes() == Image.open(out / "forgetting.png").tobytes()
    assert {"probe/accuracy", "probe/accuracy/block4"} <= set(runs[0].data.metrics)
