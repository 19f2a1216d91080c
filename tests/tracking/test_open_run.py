"""MLflow runs in a real SQLite store: opened, continued, and what they hold from the start."""

import json

import pytest
import yaml
from mlflow_runs import SHARDS
from printed import printed, type_in

from stylegan.config import file as config_module
from stylegan.config.file import flatten
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError
from stylegan.tracking import connection as server
from stylegan.tracking.connection import resolve_uri
from stylegan.tracking.open_run import open_run


def test_a_new_run_holds_params_config_and_dataset(make_config):
    config = make_config(evaluation={"features": "x" * 7000})
    run = open_run(config, "tiny-0123", SHARDS)
    run.stop_system_metrics()
    found = run.client.get_run(run.mlflow_run_id)
    assert found.info.run_name == "tiny-0123"
    assert found.info.status == "RUNNING"
    assert found.data.params == {key: value[:6000] for key, value in flatten(config).items()}
    assert len(found.data.params["evaluation.features"]) == 6000
    [dataset] = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "f" * 36)
    assert json.loads(dataset.dataset.profile)["num_images"] == 5
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]
    stored = run.client.download_artifacts(run.mlflow_run_id, "config.yaml")
    with open(stored) as file:
        assert config_module.build(yaml.safe_load(file)) == config
    assert found.info.artifact_uri.startswith(f"{config.storage.root}/mlartifacts/")


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
