"""MLflow runs in a real SQLite store: opened, continued, and what they hold from the start."""

import json
import os
from pathlib import Path

import pytest
import yaml
from mlflow_runs import SHARDS, png, row
from printed import printed, type_in

from stylegan.config import file as config_module
from stylegan.config.file import flatten
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError
from stylegan.evaluation.report import Report
from stylegan.tracking import connection as server
from stylegan.tracking import open_run as open_run_module
from stylegan.tracking.connection import resolve_uri
from stylegan.tracking.open_run import open_run


def test_a_new_run_holds_params_config_and_dataset(make_config):
    config = make_config(evaluation={"psi": [0.123456] * 1000})
    run = open_run(config, "tiny-0123", SHARDS)
    run.stop_system_metrics()
    found = run.client.get_run(run.mlflow_run_id)
    assert found.info.run_name == "tiny-0123"
    assert found.info.status == "RUNNING"
    assert found.data.params == {key: value[:6000] for key, value in flatten(config).items()}
    assert len(found.data.params["evaluation.psi"]) == 6000
    [dataset] = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "f" * 36)
    assert json.loads(dataset.dataset.profile)["num_images"] == 5
    columns = json.loads(dataset.dataset.schema)["mlflow_colspec"]  # what MLflow's page makes a table of
    assert [column["name"] for column in columns] == ["image", "label"]
    assert columns[0]["type"] == f"uint8 [{config.data.channels}, {config.data.resolution}, {config.data.resolution}]"
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    stored = run.client.download_artifacts(run.mlflow_run_id, "config.yaml")
    with open(stored) as file:
        assert config_module.build(yaml.safe_load(file)) == config
    assert found.info.artifact_uri.startswith(f"file://{config.storage.root}/mlartifacts/")


def test_a_run_holds_card_preview_and_rejects_of_its_data(make_config, draw_images, tmp_path):
    """Once, however often the run is continued; a set without rejects has no table of them."""
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(3)])
    found = []
    for max_rejected in (0, 1):
        config = make_config(data={"source": str(source), "resolution": 8, "max_rejected": max_rejected})
        shards = write_shards(open_source(config.data), config.data, config.storage.root)
        for _ in range(2):
            run = open_run(config, f"tiny-{max_rejected}", shards)
            run.stop_system_metrics()
        found.append({file.path for file in run.client.list_artifacts(run.mlflow_run_id, "data")})
        (source / "a" / "broken.png").write_bytes(b"no image")
    assert found[0] == {"data/card.json", "data/preview.png"}
    assert found[1] == found[0] | {"data/rejected.json"}
    with open(run.client.download_artifacts(run.mlflow_run_id, "data/card.json")) as file:
        assert json.load(file)["counts"] == {"a": 3, "b": 3}
    with open(run.client.download_artifacts(run.mlflow_run_id, "data/rejected.json")) as file:
        table = json.load(file)
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == [
        {"kind": "unreadable", "path": "a/broken.png", "reason": "not an image in a known format", "bytes": 8}
    ]


def test_the_same_run_id_continues_the_same_run(opened):
    first = opened()
    first.finish("FAILED")
    again = opened()
    assert again.mlflow_run_id == first.mlflow_run_id
    found = again.client.get_run(again.mlflow_run_id)
    assert found.info.status == "RUNNING"
    assert len(found.inputs.dataset_inputs) == 1
    assert opened("tiny-4567").mlflow_run_id != first.mlflow_run_id


def test_a_changed_param_keeps_its_first_value_and_a_new_one_is_added(make_config):
    open_run(make_config(), "tiny-0123", SHARDS).finish("KILLED")
    run = open_run(make_config(ray={"workers": 2, "stages": {"8": {"workers": 1}}}), "tiny-0123", SHARDS)
    run.finish("FINISHED")
    params = run.client.get_run(run.mlflow_run_id).data.params
    assert params["ray.workers"] == "1"
    assert params["ray.stages.8.workers"] == "1"


def test_a_run_without_shards_is_the_parent_of_others(make_config):
    parent = open_run(make_config(), "sweep-1", None)
    child = open_run(make_config(), "tiny-0123", SHARDS, parent=parent.mlflow_run_id)
    for run in (parent, child):
        run.finish("FINISHED")
    assert child.client.get_run(child.mlflow_run_id).data.tags["mlflow.parentRunId"] == parent.mlflow_run_id


def test_a_deleted_experiment_is_one_line_whose_command_restores_it(make_config, tmp_path):
    config = make_config()
    client = server.connect(resolve_uri(config))
    client.delete_experiment(client.create_experiment("stylegan"))
    with pytest.raises(StepError, match=r"tracking\.experiment=stylegan: this experiment was deleted") as error:
        open_run(config, "tiny-0123", SHARDS)
    type_in(printed(str(error.value)), tmp_path)
    assert client.get_experiment_by_name("stylegan").lifecycle_stage == "active"


def everything(run):
    """All that MLflow's database and artifact store hold of a run, with the times of its files."""
    found = run.client.get_run(run.mlflow_run_id)
    folder = Path(found.info.artifact_uri.removeprefix("file://"))
    files = {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
    return found.to_dictionary(), files


def test_a_repeat_of_a_finished_run_writes_nothing(make_config, opened, tmp_path):
    """Neither status, end, tags and params nor files change, though the repeat brings all that the run has already."""
    (tmp_path / "report.html").write_text("<p>page</p>")
    report = Report(
        protocol="p1", dataset_fingerprint="f1", checkpoint_uri="x", metrics={"fid_classifier": 1.5}, figures={}
    )

    def log_all(run):
        run.log_rows([row(0), row(1)])
        run.log_quick([row(1, **{"quick/fid_classifier": 2.0})])
        run.log_sample(1, png())
        run.log_report(report, nimg=1000, page_uri=str(tmp_path / "report.html"))
        run.finish("FINISHED")
        return everything(run)

    before = log_all(opened())
    assert before[0]["info"]["status"] == "FINISHED"
    assert log_all(opened()) == before
    failed = opened()
    failed.finish("FAILED")  # a failure of something else, after all steps were taken from storage
    changed = open_run(make_config(ray={"max_failures": 7}), "tiny-0123", SHARDS)
    changed.finish("FINISHED")
    assert everything(changed) == before


def test_a_finished_run_goes_on_with_something_new(opened):
    first = opened()
    first.log_rows([row(0)])
    first.finish("FINISHED")
    ended = first.client.get_run(first.mlflow_run_id).info.end_time
    again = opened()
    again.log_rows([row(0), row(1)])
    assert again.client.get_run(again.mlflow_run_id).info.status == "RUNNING"
    again.finish("FINISHED")
    assert again.client.get_run(again.mlflow_run_id).info.end_time > ended


@pytest.mark.parametrize(
    ("left", "status"),
    [
        ("nothing", "FINISHED"),
        ("preview", "KILLED"),
        ("half of the card", "KILLED"),
        ("half of the rejects", "FINISHED"),
    ],
)
def test_a_repeat_fills_what_a_killed_run_left_of_the_data(make_config, draw_images, tmp_path, left, status):
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(3)])
    (source / "a" / "broken.png").write_bytes(b"no image")
    config = make_config(data={"source": str(source), "resolution": 8, "max_rejected": 1})
    shards = write_shards(open_source(config.data), config.data, config.storage.root)
    run = open_run(config, "tiny-0123", shards)
    run.finish(status)
    folder = Path(run.client.get_run(run.mlflow_run_id).info.artifact_uri.removeprefix("file://"), "data")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert whole.keys() == {"preview.png", "rejected.json", "card.json"}
    if left == "half of the card":
        os.truncate(folder / "card.json", 20)
    else:
        (folder / "card.json").unlink()
    if left == "half of the rejects":
        os.truncate(folder / "rejected.json", 20)
    elif left in ("nothing", "preview"):
        (folder / "rejected.json").unlink()
    if left == "nothing":
        (folder / "preview.png").unlink()
    again = open_run(config, "tiny-0123", shards)
    again.finish("FINISHED")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    tags = again.client.get_run(run.mlflow_run_id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "data/rejected.json", "type": "table"}]


@pytest.mark.parametrize(("error", "status"), [(StepError("full"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_cannot_be_opened_does_not_stay_running(make_config, monkeypatch, error, status):
    """Whether it is new or goes on after a failure."""

    def fail(*_):
        raise error

    opened = []
    monkeypatch.setattr(open_run_module, "_log_dataset", fail)
    for _ in range(2):
        with pytest.raises(type(error)):
            open_run(make_config(), "tiny-0123", SHARDS)
        client = server.connect(resolve_uri(make_config()))
        (experiment,) = client.search_experiments(filter_string="name = 'stylegan'")
        opened += [run.info for run in client.search_runs([experiment.experiment_id])]
    assert [info.status for info in opened] == [status] * 2
    assert all(info.end_time for info in opened)
