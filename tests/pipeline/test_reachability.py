"""What a root and its registry keep alive: aliases, other models, other roots, what is damaged, open, or under way."""

import json
import os
import time
from pathlib import Path

import pytest
from cleaning import copy_world, make_run

from stylegan import storage
from stylegan.config.file import dump
from stylegan.errors import StepError
from stylegan.evaluation.features.embedded import network_file
from stylegan.evaluation.report import Report
from stylegan.pipeline.plan import make_plan
from stylegan.pipeline.retention import clean_up
from stylegan.pipeline.retraining import Begun, Decision, Start
from stylegan.registry import versions
from stylegan.registry.aliases import INTENT, plan_move
from stylegan.tracking.connection import resolve_uri
from stylegan.tracking.removal import list_runs
from stylegan.verbs.find_model import find_model


def _stage(run, number=-1):
    return f"stages/{storage.name(run.stage_uri(run.stages[number]))}"


def _needs(run):
    return {f"runs/{run.run_id}", f"datasets/{storage.name(run.shards.uri)}", _stage(run, 0), _stage(run)}


def _copy(config, section, **values):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


# --- what is kept ---


def test_what_aliases_reach_stays_and_a_kept_run_is_all_cached(world):
    """`previous` keeps the first run alive, although only one version and one run are to be kept."""
    before = world.listing()
    assert world.clean().deleted == ()
    assert world.listing() == before
    assert [step.state for step in make_plan(world.config).steps] == ["cached"] * 6
    first, second = world.runs
    assert find_model(world.config, "tiny@previous").checkpoint_uri.startswith(first.stage_uri(first.stages[-1]))
    assert second.run_id != first.run_id


@pytest.mark.parametrize("alias", ["demo", "challenger"])
def test_any_alias_keeps_its_version(world, alias):
    world.forget()
    world.client.set_registered_model_alias("tiny", alias, "1")
    assert not _needs(world.runs[0]) & set(world.clean().deleted)


def test_the_champion_is_kept_whatever_the_retention(world):
    """An old version that somebody has made champion again, with a retention that keeps nothing else."""
    world.forget()
    versions.promote(resolve_uri(world.config), "tiny", "1")
    world.forget("previous")
    world = world.with_retention(versions=1, runs=0, days=0.0, max_gib=1e-9, grace_days=0.0)
    assert not _needs(world.runs[0]) & set(world.clean().deleted)
    assert find_model(world.config, "tiny@champion")


def test_rollback_keeps_its_target_also_while_it_is_under_way(world):
    first = world.runs[0]
    versions.rollback(resolve_uri(world.config), "tiny")
    world.clean()
    assert find_model(world.config, "tiny@champion").checkpoint_uri.startswith(first.stage_uri(first.stages[-1]))
    versions.rollback(resolve_uri(world.config), "tiny")
    assert versions.champion(world.config)[0] == "2"
    # The intent is written, the aliases are not moved, and one was removed by hand.
    world.client.set_registered_model_tag("tiny", INTENT, plan_move("rollback", "1", "2", "why").model_dump_json())
    world.forget()
    found = world.clean()
    assert not _needs(first) & set(found.deleted)
    assert found.stopped == ""


def test_a_version_keeps_stage_and_images_when_the_folder_of_its_run_is_gone(world):
    first = world.runs[0]
    storage.delete(first.uri)
    assert not {_stage(first), f"datasets/{storage.name(first.shards.uri)}"} & set(world.clean().deleted)
    assert {run.run_id for run in list_runs(world.config)} == {run.run_id for run in world.runs}


def test_what_is_young_is_kept(world):
    world.forget()
    assert world.with_retention(days=30.0).clean().deleted == ()
    assert _needs(world.runs[0]) & set(world.with_retention(days=1.0).clean().deleted)


def test_nothing_of_the_last_hour_is_touched_for_work_without_a_lock(world):
    world.forget()
    found = world.clean(days=0)
    assert not {name for name in found.deleted if name.startswith(("datasets/", "stages/", "versions/"))}


def test_a_run_that_mlflow_shows_as_running_is_kept(world):
    first = world.runs[0]
    world.forget()
    (logged,) = (run for run in list_runs(world.config) if run.run_id == first.run_id)
    world.client.update_run(logged.mlflow_run_id, status="RUNNING")
    found = world.clean()
    assert not _needs(first) & set(found.deleted)
    assert found.kept["MLflow shows them as running"] == 1


def test_a_retraining_that_has_begun_keeps_its_images_its_start_and_its_stages(world):
    first, second = world.runs
    world.forget()
    begun = Begun(
        since="2026-01-01T00:00:00+00:00",
        config_key="k",
        decision=Decision(
            train=True,
            rule="images",
            reason="r",
            start=Start(kind="champion", why="w", checkpoint=f"/gone/{_stage(first)}/checkpoint-000000001"),
        ),
        version_tags={},
        shards=second.shards,
    )
    uri = storage.join(world.root, "retrain", "tiny", "begun.json")
    storage.write_json(uri, begun.model_dump(mode="json"))
    found = world.clean()
    assert _stage(first) not in found.deleted
    assert _stage(first, 0) in found.deleted
    scratch = begun.model_copy(
        update={"decision": begun.decision.model_copy(update={"start": None}), "shards": first.shards}
    )
    other = copy_world(world, Path(f"{world.root}-2"))
    storage.write_json(uri.replace("/root/", "/root-2/"), scratch.model_dump(mode="json"))
    assert not {_stage(first), f"datasets/{storage.name(first.shards.uri)}"} & set(other.clean().deleted)


def test_the_newest_images_of_the_source_stay_for_the_next_set(world):
    """They are sharded, and nothing is trained on them yet; other sets that nothing needs go."""
    first, second = world.runs
    storage.delete(second.uri)
    world.client.delete_registered_model_alias("tiny", "champion")
    versions.promote(resolve_uri(world.config), "tiny", "1")
    world.client.delete_model_version("tiny", "2")
    found = world.clean()
    assert f"datasets/{storage.name(second.shards.uri)}" not in found.deleted
    assert _stage(second) in found.deleted
    elsewhere = _copy(world.config, "data", source="/another")
    storage.write_bytes(f"{first.uri}/config.yaml", dump(world.config).encode())
    world.config = elsewhere
    assert f"datasets/{storage.name(second.shards.uri)}" in world.clean().deleted


def test_a_set_that_is_being_made_keeps_the_set_that_it_builds_on(world):
    first, second = world.runs
    below = storage.name(first.shards.uri)
    assert _lonely(world).clean(dry_run=True).deleted.count(f"datasets/{below}") == 1
    open_chunk = f"{world.root}/datasets/0123456789/chunks/{below}-000000.parquet"
    storage.write_bytes(open_chunk, b"x")
    soon = world.with_retention(days=3.0)  # the chunk is young, the set below it old
    for run in (first, second):
        for path in storage.files(run.shards.uri):
            os.utime(f"{run.shards.uri}/{path}", (1, 1))
    found = soon.clean(dry_run=True)
    assert f"datasets/{below}" not in found.deleted
    assert f"datasets/{storage.name(second.shards.uri)}" in found.deleted


def _lonely(world):
    """Remove all that leads to the sets."""
    for run in world.runs:
        storage.delete(run.uri)
    world.client.delete_registered_model("tiny")
    for path in storage.files(world.root):
        if path.startswith("datasets/newest-"):
            storage.delete(storage.join(world.root, path))
    return world


# --- what belongs to others ---


@pytest.fixture
def shared(world):
    """The same root with a run and a champion of another model."""
    other = world.config.model_copy(update={"name": "other", "seed": 7})
    return world, make_run(other, 7.0), other


def test_other_models_of_a_root_are_kept_with_all_that_they_need(shared):
    """Also those that no version needs: their own config decides how many runs are kept."""
    world, run, other = shared
    world.forget()
    world = world.with_retention(runs=0)
    found = world.clean()
    assert not _needs(run) & set(found.deleted)
    assert _stage(world.runs[0]) in found.deleted
    assert find_model(other, "other@champion")
    assert found.kept["versions of other models"] == 1
    world.client.delete_registered_model("other")
    assert not _needs(run) & set(world.clean().deleted)


def test_runs_that_are_in_another_registry_are_kept(world):
    first = world.runs[0]
    world.forget()
    team = _copy(world.config, "tracking", uri="http://mlflow.example")
    storage.write_bytes(f"{first.uri}/config.yaml", dump(team).encode())
    assert not _needs(first) & set(world.with_retention(runs=0).clean().deleted)


def test_runs_of_a_shared_mlflow_that_are_of_other_roots_are_not_touched(world):
    """A database that several roots use: that of this root would otherwise be taken for what somebody has left."""
    uri = resolve_uri(world.config)
    world.config = _copy(world.config, "tracking", uri=uri)
    for run in world.runs:
        storage.write_bytes(f"{run.uri}/config.yaml", dump(world.config).encode())
    experiment = world.client.get_experiment_by_name(world.config.tracking.experiment)
    logged = world.client.create_run(experiment.experiment_id, start_time=1, tags={"stylegan.run_id": "elsewhere-1"})
    world.client.set_terminated(logged.info.run_id, "FINISHED", end_time=2)
    world.forget()
    world.clean()
    assert "elsewhere-1" in {run.run_id for run in list_runs(world.config)}
    # The embedded one has no others.
    world.config = _copy(world.config, "tracking", uri=None)
    world.clean()
    assert "elsewhere-1" not in {run.run_id for run in list_runs(world.config)}


def test_a_registry_without_the_model_deletes_nothing(world):
    """It was emptied, or the command runs where `tracking.uri` is another file: nobody knows the champion then."""
    before = world.listing()
    world.client.delete_registered_model("tiny")
    with pytest.raises(StepError, match="this registry has no version of tiny"):
        world.clean()
    assert world.listing() == before


# --- what is damaged or left over ---


def test_a_damaged_config_of_a_run_keeps_everything_that_it_may_need(world):
    first = world.runs[0]
    world.forget()
    storage.write_bytes(f"{first.uri}/config.yaml", b"name: [")
    found = world.clean()
    assert found.deleted == ("versions/1",)
    assert "config.yaml" in found.damaged[0]


def test_a_damaged_set_keeps_the_stages_of_runs_whose_images_may_be_there(world):
    first = world.runs[0]
    storage.write_bytes(f"{first.shards.uri}/manifest.json", b"{")
    found = world.clean()
    assert found.deleted == ()
    assert "manifest.json" in found.damaged[0]
    assert found.kept["could not be read"] == 1


def test_a_run_whose_images_are_gone_keeps_what_it_has_trained(world):
    """Without the images nobody can compute its keys."""
    first = world.runs[0]
    storage.delete(f"{first.shards.uri}/manifest.json")
    assert not {_stage(first, 0), _stage(first)} & set(world.clean().deleted)


def test_an_evaluation_goes_with_the_stage_that_it_measured(world):
    first, second = world.runs
    for name, run in (("a", first), ("b", second)):
        checkpoint = f"/elsewhere/{_stage(run)}/checkpoint-000000001"
        report = Report(protocol="p", dataset_fingerprint="f", checkpoint_uri=checkpoint, metrics={})
        storage.write_json(f"{world.root}/evaluations/{name}/report.json", report.model_dump(mode="json"))
    world.forget()
    deleted = world.clean().deleted
    assert ("evaluations/a" in deleted, "evaluations/b" in deleted) == (True, False)


def test_networks_and_statistics_go_with_the_runs_that_they_measured(world):
    first, second = world.runs
    names = [f"features/{network_file(world.config.evaluation, run.shards)}" for run in world.runs]
    for name in (*names, "features/inception-0123456789.pth", "features/rotation-abandoned.safetensors"):
        storage.write_bytes(f"{world.root}/{name}", b"x")
    world.forget()
    deleted = set(world.clean().deleted)
    assert {names[0], "features/rotation-abandoned.safetensors"} <= deleted
    assert not {names[1], "features/inception-0123456789.pth"} & deleted
    assert f"stats/rotation-x/{first.shards.fingerprint}.npz" in deleted
    assert f"stats/rotation-x/{second.shards.fingerprint}.npz" not in deleted


def test_what_killed_writers_have_left_goes_and_their_folder_stays(world):
    uri = world.runs[1].stage_uri(world.runs[1].stages[0])
    partial = f"{uri}/.stats.jsonl.0123-4567{storage.PARTIAL}"
    with open(partial, "wb") as file:
        file.write(b"half")
    found = world.clean()
    assert found.deleted == (f"{_stage(world.runs[1], 0)}/{storage.name(partial)}",)
    assert found.freed == {"partial files": 4}


def test_the_embedded_mlflow_keeps_no_model_of_a_registration_that_was_cut(world, tmp_path):
    first = world.runs[0]
    world.forget()
    (logged,) = (run for run in list_runs(world.config) if run.run_id == first.run_id)
    experiment = world.client.get_run(logged.mlflow_run_id).info.experiment_id
    model = world.client.create_logged_model(experiment, name="tiny", source_run_id=logged.mlflow_run_id)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x")
    world.client.log_model_artifacts(model.model_id, str(folder))
    assert any(model.model_id in path for path in world.listing())
    world.clean()
    assert not any(model.model_id in path for path in world.listing())


def test_a_root_without_anything_is_clean(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "root")
    found = clean_up(config, dry_run=True, now=time.time())
    assert (found.before, found.deleted) == ({}, ())
    assert json.loads(found.model_dump_json())["stopped"] == ""
    assert not (tmp_path / "root").exists()
