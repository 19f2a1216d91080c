"""A root that was moved after a whole run: every step finds what there is, and the gate compares with the champion."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from flows.cli.main import main
from stylegan import storage
from stylegan.cluster.session import ray_session
from stylegan.config.file import load
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.engine import evaluate
from stylegan.pipeline.run import Run
from stylegan.pipeline.steps import Pipeline
from stylegan.registry import versions
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.training.identity import identity
from stylegan.training.loop import train_stage

TREE = {
    "name": "tiny",
    "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
    "training": {"start_resolution": 4, "batch": 4, "fade_kimg": 0.004, "stable_kimg": 0.008},
    "snapshots": {"grid": 2, "log_kimg": 0.004},
    "evaluation": {"features": "rotation", "metrics": ["fid"], "num_images": 100, "bootstrap": 0},
    "registry": {"gate": {"use_intervals": False}},
}


def prepare(config):
    """Train and evaluate in this process, as the steps would."""
    run = Run(config, write_shards(open_source(config.data), config.data, config.storage.root))
    checkpoint = None
    for stage in run.stages:
        checkpoint = run.find_stage(stage) or train_stage(run.job(stage, checkpoint))
    report = evaluate(checkpoint.uri, run.shards, config.evaluation, root=run.root, out_uri=run.uri)
    storage.write_json(f"{run.uri}/report.json", report.model_dump(mode="json"))


def go_through(config):
    """Do every step as `run` does; the names of those that were done, the version and the verdict."""
    with Pipeline(config) as pipeline:
        done = {"shard": pipeline.shard()}
        shards, checkpoints = done["shard"].record, [None]
        for stage in pipeline.run(shards).stages:
            done[stage.name] = pipeline.train(shards, stage, checkpoints[-1])
            checkpoints.append(done[stage.name].record)
        done["evaluate"] = pipeline.evaluate(shards, checkpoints[-1])
        report = done["evaluate"].record
        done["register"] = pipeline.register(shards, checkpoints[-1], report)
        done["gate"] = pipeline.gate(shards, done["register"].record, report)
        pipeline.summarize(shards, checkpoints[1:], report, done["register"].record, done["gate"].record)
    return [name for name, step in done.items() if not step.cached], done["register"].record, done["gate"].record


def plan(path, capsys, *overrides):
    capsys.readouterr()
    assert not main(["plan", path, *overrides, "--json"])
    return {step["name"]: step["state"] for step in json.loads(capsys.readouterr().out)["steps"]}


def sample(path, out, *overrides):
    assert not main(["sample", "tiny@champion", "--config", path, *overrides, "--seeds", "0-3", "--out", str(out)])
    return out.read_bytes()


@pytest.fixture
def ran(tmp_path, empty_database, draw_images):
    """The path of a config whose run is finished, in the root a."""
    (tmp_path / "a").mkdir()
    shutil.copy(empty_database, tmp_path / "a" / "mlflow.db")
    source = draw_images(tmp_path / "images", [f"{number}.png" for number in range(80)], size=(8, 8), mode="L")
    data = {"source": str(source), "resolution": 8, "channels": 1}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TREE | {"storage": {"root": str(tmp_path / "a")}, "data": data}))
    config = load(str(path))
    prepare(config)
    assert go_through(config)[2].promote
    return str(path)


def leave_others(root: Path, before: Path) -> None:
    """Put other content where the checkpoints of a root were; `before` is the root as it is now."""
    for file in (before / "stages").rglob("generator.safetensors"):
        stale = root / file.relative_to(before)
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(b"of something else")


@pytest.mark.long
def test_a_root_that_was_moved_has_everything(ran, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "stylegan")
    picture = sample(ran, tmp_path / "before.png")
    (tmp_path / "a").rename(tmp_path / "b")
    leave_others(tmp_path / "a", tmp_path / "b")
    there = ["--set", f"storage.root={tmp_path}/b"]
    moved = load(ran, there[1:])

    assert set(plan(ran, capsys, *there).values()) == {"cached"}
    assert go_through(moved)[0] == []
    assert sample(ran, tmp_path / "after.png", *there) == picture

    # The same checkpoint under another protocol is the same checkpoint.
    changes = ["evaluation.num_images=120"]
    other = load(ran, [*there[1:], *changes])
    prepare(other)
    done, _, verdict = go_through(other)
    assert done == ["register", "gate"]
    assert not verdict.promote
    assert verdict.reasons[0].startswith("It is the same checkpoint as the champion, version 1")

    # Another model under another protocol: the champion is measured again, from below the root.
    longer = load(ran, [*there[1:], "training.stages.8.stable_kimg=0.012", "evaluation.num_images=140"])
    prepare(longer)
    with ray_session():
        _, _, verdict = go_through(longer)
    assert verdict.reasons[0].startswith("fid_rotation is ")
    assert verdict.champion == "1"
    assert "measuring it again" in caplog.text
    assert "cannot be measured again" not in caplog.text
    assert not list((tmp_path / "a").rglob("mlartifacts"))


def test_a_root_that_was_copied_to_a_bucket_has_everything(ran, tmp_path, capsys, s3_server, monkeypatch):
    """Its database cannot be there: it goes to the working folder, where the command looks for it."""
    picture = sample(ran, tmp_path / "before.png")
    bucket, work = s3_server(), tmp_path / "work"
    (work / "stylegan-local").mkdir(parents=True)
    for name in ("mlflow.db", "mlartifacts"):
        (tmp_path / "a" / name).rename(work / "stylegan-local" / name)
    for path in storage.files(str(tmp_path / "a")):
        storage.upload(tmp_path / "a" / path, f"{bucket}/{path}")
    shutil.rmtree(tmp_path / "a")
    monkeypatch.chdir(work)
    there = ["--set", f"storage.root={bucket}"]
    moved = load(ran, there[1:])

    assert set(plan(ran, capsys, *there).values()) == {"cached"}
    assert go_through(moved)[0] == []
    assert sample(ran, tmp_path / "after.png", *there) == picture
    experiment = connect(resolve_uri(moved)).get_experiment_by_name("stylegan")
    assert experiment.artifact_location == (work / "stylegan-local/mlartifacts").as_uri()


def test_root_and_registry_may_move_at_once(ran, tmp_path, capsys):
    """The new registry gets the run with its curves, grids, report and figures from the new root."""
    from mlflow import MlflowClient

    before = load(ran)
    old = connect(resolve_uri(before))
    (run,) = old.search_runs([old.get_experiment_by_name("stylegan").experiment_id])
    files = {file.path for file in old.list_artifacts(run.info.run_id, "figures")}
    curve = [(one.step, one.value) for one in old.get_metric_history(run.info.run_id, "loss/g")]
    assert files
    assert curve
    (tmp_path / "a").rename(tmp_path / "b")
    there = ["--set", f"storage.root={tmp_path}/b", "--set", f"tracking.uri=sqlite:///{tmp_path}/team.db"]
    moved = load(ran, there[1::2])

    states = plan(ran, capsys, *there)
    assert {name for name, state in states.items() if state == "run"} == {"register", "gate"}
    done, version, verdict = go_through(moved)
    assert done == ["register", "gate"]
    assert verdict.promote
    number, report = versions.champion(moved)
    assert number == version.version
    assert identity(report.checkpoint_uri).startswith("0008-")
    new: MlflowClient = connect(resolve_uri(moved))
    (again,) = new.search_runs([new.get_experiment_by_name("stylegan").experiment_id])
    assert {file.path for file in new.list_artifacts(again.info.run_id, "figures")} == files
    assert [(one.step, one.value) for one in new.get_metric_history(again.info.run_id, "loss/g")] == curve
    assert set(plan(ran, capsys, *there).values()) == {"cached"}
