"""A database of MLflow whose folder was moved or copied: its artifacts are those beside it."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from stylegan import storage
from stylegan.registry import versions
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.tracking.moved import follow


@pytest.fixture
def registered(make_config, tmp_path):
    """A root with an embedded MLflow in it and a registered version; the config below another root, and the version."""
    import torch

    from stylegan.data.shardset import ShardSet
    from stylegan.evaluation.report import Report
    from stylegan.networks.generator import Generator
    from stylegan.networks.weights import save_generator
    from stylegan.tracking.open_run import open_run

    shards = ShardSet(uri="x", fingerprint="f1", num_images=9, resolutions=(4, 8), label_names=(), num_rejected=0)
    config = make_config(storage={"root": str(tmp_path / "a")}, tracking={"uri": None})
    checkpoint = f"{tmp_path}/a/stages/0008-abcdefabcd/checkpoint-000001000"
    torch.manual_seed(0)
    weights = save_generator(Generator(config.model, resolution=8, channels=1), ())
    storage.write_bytes(f"{checkpoint}/generator.safetensors", weights)
    report = Report(protocol="p", dataset_fingerprint="f1", checkpoint_uri=checkpoint, metrics={"fid_x": 1.0})
    run = open_run(config, "r-1", shards)
    version = versions.register(
        config, mlflow_run_id=run.mlflow_run_id, checkpoint=checkpoint, shards=shards, report=report, key="k"
    )
    run.finish("FINISHED")
    versions.promote(resolve_uri(config), config.model_name, version.version)
    moved = config.model_copy(update={"storage": config.storage.model_copy(update={"root": str(tmp_path / "b")})})
    return config, moved, version


def places(database):
    connection = sqlite3.connect(database)
    return str(connection.execute("SELECT artifact_location FROM experiments").fetchall()) + str(
        connection.execute("SELECT artifact_uri FROM runs").fetchall()
    )


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_the_models_of_a_root_that_is_elsewhere_now_are_found_there(registered, tmp_path, how):
    import mlflow.pyfunc
    import pandas as pd

    config, moved, _version = registered
    rows = pd.DataFrame({"seed": [1]})
    model = f"models:/{config.model_name}@champion"
    mlflow.set_registry_uri(resolve_uri(config))
    before = mlflow.pyfunc.load_model(model).predict(rows)
    if how == "moved":
        os.rename(tmp_path / "a", tmp_path / "b")
    else:  # what is left behind at the old place must not be read
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        for file in (tmp_path / "a" / "mlartifacts").rglob("generator.safetensors"):
            file.write_bytes(b"other content")
    client = connect(resolve_uri(moved))
    assert str(tmp_path / "b") in client.get_experiment_by_name("stylegan").artifact_location
    assert f"{tmp_path}/a/" not in places(tmp_path / "b" / "mlflow.db")
    mlflow.set_registry_uri(resolve_uri(moved))
    after = mlflow.pyfunc.load_model(model).predict(rows)
    assert (after == before).all()


def test_name_at_champion_is_the_checkpoint_below_the_present_root(registered, tmp_path, monkeypatch):
    from stylegan.verbs.find_model import find_model

    config, moved, _ = registered
    os.rename(tmp_path / "a", tmp_path / "b")
    stale = tmp_path / "a/stages/0008-abcdefabcd/checkpoint-000001000"
    stale.mkdir(parents=True)
    (stale / "generator.safetensors").write_bytes(b"of something else")
    found = find_model(moved, f"{config.model_name}@champion")
    here = f"{tmp_path}/b/stages/0008-abcdefabcd/checkpoint-000001000"
    assert found.checkpoint_uri == here
    # Without a config the root is named by itself.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", resolve_uri(moved))
    assert find_model(None, f"{config.model_name}@champion", root=str(tmp_path / "b")).checkpoint_uri == here


def test_a_root_that_went_to_a_bucket_keeps_its_models_by_name(registered, tmp_path, s3_server):
    """The database stays on this machine; checkpoints are found in the bucket."""
    from stylegan.verbs.find_model import find_model

    config, _, _ = registered
    bucket = s3_server()
    for path, _facts in storage.files(str(tmp_path / "a" / "stages")).items():
        storage.upload(tmp_path / "a" / "stages" / path, f"{bucket}/stages/{path}")
    shutil.rmtree(tmp_path / "a" / "stages")
    there = config.model_copy(
        update={
            "storage": config.storage.model_copy(update={"root": bucket}),
            "tracking": config.tracking.model_copy(update={"uri": resolve_uri(config)}),
        }
    )
    found = find_model(there, f"{config.model_name}@champion")
    assert found.checkpoint_uri == f"{bucket}/stages/0008-abcdefabcd/checkpoint-000001000"


@pytest.mark.usefixtures("registered")
def test_a_database_without_artifacts_beside_it_stays_as_it_is(tmp_path):
    """The user keeps the database apart from the root, whose artifacts are where it says."""
    (tmp_path / "apart").mkdir()
    shutil.copy(tmp_path / "a" / "mlflow.db", tmp_path / "apart" / "mlflow.db")
    before = places(tmp_path / "apart" / "mlflow.db")
    follow(tmp_path / "apart" / "mlflow.db")
    assert places(tmp_path / "apart" / "mlflow.db") == before


@pytest.mark.usefixtures("registered")
def test_only_whole_names_of_folders_are_replaced(tmp_path):
    """`/a/mlartifacts-2` is not below `/a/mlartifacts`."""
    os.rename(tmp_path / "a", tmp_path / "b")
    database = tmp_path / "b" / "mlflow.db"
    with sqlite3.connect(database) as connection:
        other = f"file://{tmp_path}/a/mlartifacts-2/x"
        connection.execute("UPDATE runs SET artifact_uri = ?", (other,))
    follow(database)
    assert f"{tmp_path}/a/mlartifacts-2/x" in places(database)


def test_what_is_no_database_is_left_to_mlflow(tmp_path):
    (tmp_path / "mlartifacts").mkdir()
    (tmp_path / "mlflow.db").write_bytes(b"no database, " * 100)
    follow(Path(tmp_path / "mlflow.db"))


def test_an_experiment_whose_artifacts_are_elsewhere_and_not_here_keeps_its_place(registered, tmp_path):
    """One database for two roots: the experiment of the other root has its artifacts there."""
    config, _, _ = registered
    client = connect(resolve_uri(config))
    (tmp_path / "other/mlartifacts").mkdir(parents=True)
    there = (tmp_path / "other/mlartifacts").as_uri()
    client.create_experiment("of-the-other-root", artifact_location=there)
    run = client.create_run(client.get_experiment_by_name("of-the-other-root").experiment_id)
    client.log_text(run.info.run_id, "text", "note.txt")
    client = connect(resolve_uri(config))
    assert client.get_experiment_by_name("of-the-other-root").artifact_location == there
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]


def test_a_root_that_has_two_paths_keeps_the_one_it_has(registered, tmp_path):
    """A link to the root: whoever works by the first path goes on."""
    (tmp_path / "link").symlink_to(tmp_path / "a")
    before = places(tmp_path / "a" / "mlflow.db")
    follow(tmp_path / "link" / "mlflow.db")
    assert places(tmp_path / "a" / "mlflow.db") == before
