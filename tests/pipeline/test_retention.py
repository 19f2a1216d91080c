"""Clean-up: what is reached is never deleted, all else is after its grace; a real root, a kill in the middle, a dry run."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegan import storage
from stylegan.config.file import dump
from stylegan.config.sections import RetentionConfig
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.pipeline import lock, retention
from stylegan.pipeline.lock import LockedError
from stylegan.pipeline.plan import make_plan
from stylegan.pipeline.retention import DAY, Item, clean_up, due, garbage, reached
from stylegan.pipeline.run import Run
from stylegan.pipeline.steps import Pipeline
from stylegan.registry import versions
from stylegan.registry.contents import list_registered
from stylegan.tracking.connection import resolve_uri
from stylegan.tracking.removal import list_runs
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint
from stylegan.verbs.find_model import find_model

# --- the rules, on random graphs ---

NAMES = [f"i{number}" for number in range(12)]


@st.composite
def graphs(draw):
    """Items of any kind that reach any others, some of them roots."""
    items = {}
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        items[name] = Item(
            name=name,
            kind="sets",
            num_bytes=draw(st.integers(0, 3)) * 2**30,
            changed=draw(st.integers(0, 50)) * DAY,
            reaches=tuple(draw(st.lists(st.sampled_from(NAMES), max_size=4))),
            why=draw(st.sampled_from(["", "", "", "champion", "running"])),
        )
    return items


@settings(deadline=None, max_examples=300)
@given(graphs(), st.one_of(st.none(), st.integers(1, 20)), st.integers(0, 5), st.data())
def test_nothing_that_a_root_reaches_is_ever_deleted_and_all_else_is_after_its_grace(items, gib, grace, data):
    rules = RetentionConfig(max_gib=gib, grace_days=float(grace))
    kept, loose = reached(items), garbage(items, rules)
    # By an independent definition of reachability: kept items are closed, and begin at the roots.
    assert {name for name, item in items.items() if item.why} <= kept
    for name in kept:
        assert {other for other in items[name].reaches if other in items} <= kept
    assert not {item.name for item in loose} & kept
    if gib is None:
        assert {item.name for item in loose} == set(items) - kept
    else:
        size = sum(item.num_bytes for item in items.values())
        without = sum(item.num_bytes for item in loose)
        assert size - without <= gib * 2**30 or {item.name for item in loose} == set(items) - kept
        assert all(
            other.changed >= loose[-1].changed
            for name, other in items.items()
            if loose and name not in kept and other not in loose
        )

    # Two clean-ups: what changes in between, or is reached by then, is not deleted.
    now = 100 * DAY
    first, marks = due(loose, {}, rules, now)
    assert first == (loose if grace == 0 else [])
    changed = data.draw(st.sets(st.sampled_from(sorted(items)) if items else st.nothing()))
    later = {
        name: item.model_copy(update={"changed": item.changed + (name in changed)}) for name, item in items.items()
    }
    second, _ = due(garbage(later, rules.model_copy(update={"max_gib": None})), marks, rules, now + grace * DAY)
    names = {item.name for item in second}
    if grace:
        assert not names & changed
        assert {item.name for item in loose} - changed <= names
    assert not names & kept
    too_early, _ = due(loose, marks, rules, now + (grace - 0.5) * DAY)
    assert grace == 0 or too_early == []


def test_a_mark_is_lost_when_somebody_needs_the_item_again():
    item = Item(name="a", kind="sets", num_bytes=1, changed=0.0)
    _, marks = due([item], {}, RetentionConfig(), DAY)
    assert list(marks) == ["a"]
    _, marks = due([], marks, RetentionConfig(), 2 * DAY)
    assert marks == {}


# --- a real root ---


@pytest.fixture
def world(make_config, draw_images, tmp_path):
    """A root with two runs on two sets, the second built on the first, with stages and versions; the config of each."""
    source = draw_images(tmp_path / "images", [f"{number}.png" for number in range(8)])
    base = make_config(
        name="tiny",
        storage={"root": str(tmp_path / "root")},
        tracking={"uri": None},
        data={"source": str(source), "resolution": 8, "channels": 1},
        evaluation={"metrics": ["fid"], "features": "rotation"},
        training={"batch": 4, "start_resolution": 4, "fade_kimg": 0, "stable_kimg": 1},
        retention={"grace_days": 0.0, "versions": 1, "runs": 1},
    )

    def make(config, fid):
        with Pipeline(config) as pipeline:
            shards = pipeline.shard().record
            run = pipeline.run(shards)
            for stage in stages(config):
                uri = storage.join(run.stage_uri(stage), f"checkpoint-{stage.end_nimg:09d}")
                generator = Generator(config.model, resolution=stage.resolution, channels=1)
                storage.write_bytes(f"{uri}/generator.safetensors", save_generator(generator, ()))
                record = Checkpoint(
                    uri=uri,
                    run_id=run.run_id,
                    resolution=stage.resolution,
                    nimg=stage.end_nimg,
                    digest=run.stage_key(stage),
                )
                storage.write_json(f"{uri}/checkpoint.json", record.model_dump())
                storage.write_json(f"{run.stage_uri(stage)}/done.json", record.model_dump())
            report = Report(
                protocol="p", dataset_fingerprint=shards.fingerprint, checkpoint_uri=uri, metrics={"fid_rotation": fid}
            )
            storage.write_bytes(f"{run.uri}/config.yaml", dump(config).encode())
            storage.write_json(f"{run.uri}/report.json", report.model_dump(mode="json"))
            storage.write_bytes(f"{run.root}/stats/rotation-x/{shards.fingerprint}.npz", b"x")
            version = pipeline.register(shards, record, report).record
            versions.promote(resolve_uri(config), "tiny", version.version)
            pipeline.gate(shards, version, report)
        return run

    first = make(base, 10.0)
    os.utime(f"{first.uri}/report.json", (1, 1))
    os.utime(f"{first.uri}/config.yaml", (1, 1))
    draw_images(tmp_path / "images", [f"{number}.png" for number in range(8, 12)])
    second = make(base, 5.0)
    return base, first, second


def listing(root):
    return {
        path: facts.num_bytes
        for path, facts in storage.files(root).items()
        if not path.startswith(("mlflow.db", "locks/"))
    }


def test_what_aliases_reach_stays_and_a_kept_run_is_all_cached(world):
    """`previous` keeps the first run alive, although only one version and one run are to be kept."""
    config, first, second = world
    before = listing(first.root)
    assert clean_up(config).deleted == ()
    assert listing(first.root) == before
    assert [step.state for step in make_plan(config).steps] == [
        "cached",
        "cached",
        "cached",
        "cached",
        "cached",
        "cached",
    ]
    assert find_model(config, "tiny@previous").checkpoint_uri.startswith(first.stage_uri(first.stages[-1]))
    assert second.run_id != first.run_id


def test_what_nothing_reaches_goes_with_its_version_and_its_run_of_mlflow(world):
    config, first, second = world
    uri = resolve_uri(config)
    from stylegan.tracking.connection import connect

    connect(uri).delete_registered_model_alias("tiny", "previous")
    found = clean_up(config)
    assert f"runs/{first.run_id}" in found.deleted
    assert {f"stages/{storage.name(first.stage_uri(stage))}" for stage in first.stages} <= set(found.deleted)
    assert [version.version for version in list_registered(config)] == ["2"]
    assert [run.run_id for run in list_runs(config)] == [second.run_id]
    # The second set lists tars of the first one.
    assert f"datasets/{storage.name(first.shards.uri)}" not in found.deleted
    assert found.freed["stages"] > 0
    assert [step.state for step in make_plan(config).steps] == ["cached"] * 6
    assert find_model(config, "tiny@champion").checkpoint_uri.startswith(second.stage_uri(second.stages[-1]))
    with pytest.raises((StepError, ConfigError)):
        find_model(config, "tiny/1")
    assert clean_up(config).deleted == ()


def test_rollback_keeps_its_target(world):
    config, first, _ = world
    versions.rollback(resolve_uri(config), "tiny")
    clean_up(config)
    assert find_model(config, "tiny@champion").checkpoint_uri.startswith(first.stage_uri(first.stages[-1]))
    versions.rollback(resolve_uri(config), "tiny")
    assert versions.champion(config)[0] == "2"


def test_a_dry_run_writes_nothing(world):
    config, first, _ = world
    from stylegan.tracking.connection import connect

    connect(resolve_uri(config)).delete_registered_model_alias("tiny", "previous")
    before = listing(first.root)
    found = clean_up(config, dry_run=True)
    assert found.deleted
    assert listing(first.root) == before
    assert clean_up(config).deleted == found.deleted


def test_marks_come_first_and_deletion_after_the_grace(world):
    config, first, _ = world
    from stylegan.tracking.connection import connect

    connect(resolve_uri(config)).delete_registered_model_alias("tiny", "previous")
    config = config.model_copy(update={"retention": config.retention.model_copy(update={"grace_days": 1.0})})
    now = time.time() + 2 * DAY
    first_look = clean_up(config, now=now)
    assert first_look.deleted == ()
    assert f"runs/{first.run_id}" in first_look.marked
    assert clean_up(config, now=now + DAY / 2).deleted == ()
    storage.write_bytes(f"{first.stage_uri(first.stages[0])}/samples/new.png", b"x")  # somebody uses it again
    second_look = clean_up(config, now=now + DAY)
    assert f"runs/{first.run_id}" in second_look.deleted
    assert f"stages/{storage.name(first.stage_uri(first.stages[0]))}" in second_look.marked


def test_running_work_is_kept_and_new_work_ends_the_clean_up(world, monkeypatch):
    config, first, _ = world
    from stylegan.tracking.connection import connect

    connect(resolve_uri(config)).delete_registered_model_alias("tiny", "previous")
    with lock.hold(first.root, f"run-{first.run_id}", run_id=first.run_id, what="stylegan run"):
        found = clean_up(config)
        assert f"runs/{first.run_id}" not in found.deleted
        assert not {f"stages/{storage.name(first.stage_uri(stage))}" for stage in first.stages} & set(found.deleted)

    # A run that begins after the look.
    real, begun = retention.garbage, []

    def then_begins(*arguments):
        begun.append(lock.hold(first.root, "run-new", run_id="new", what="stylegan run"))
        begun[0].__enter__()
        return real(*arguments)

    monkeypatch.setattr(retention, "garbage", then_begins)
    found = clean_up(config)
    begun[0].__exit__(None, None, None)
    assert found.deleted == ()
    assert "run new has begun meanwhile" in found.stopped


def test_two_clean_ups_do_not_work_at_once(world):
    config, first, _ = world
    with lock.hold(first.root, "clean-up", run_id="clean-up", what="stylegan gc"), pytest.raises(LockedError):
        clean_up(config)


def test_a_kill_in_the_middle_leaves_nothing_that_counts_and_the_next_one_goes_on(world, monkeypatch):
    config, first, _ = world
    from stylegan.tracking.connection import connect

    connect(resolve_uri(config)).delete_registered_model_alias("tiny", "previous")
    wanted = clean_up(config, dry_run=True).deleted
    real, left = storage.delete, [3]

    def killed(uri):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(uri)

    monkeypatch.setattr(storage, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        clean_up(config)
    monkeypatch.setattr(storage, "delete", real)
    run = Run(config, first.shards)
    for stage in run.stages:
        found = run.find_stage(stage)
        assert found is None or storage.exists(f"{found.uri}/generator.safetensors")
    clean_up(config)
    there = {"/".join(path.split("/")[:2]) for path in storage.files(first.root)}
    assert not {name for name in wanted if name.partition("/")[0] in ("runs", "stages")} & there


def test_a_damaged_config_of_a_run_keeps_everything_that_it_may_need(world):
    config, first, _ = world
    from stylegan.tracking.connection import connect

    connect(resolve_uri(config)).delete_registered_model_alias("tiny", "previous")
    storage.write_bytes(f"{first.uri}/config.yaml", b"name: [")
    found = clean_up(config)
    assert found.deleted == ("versions/1",)
    assert "config.yaml" in found.damaged[0]


def test_a_registry_that_is_away_ends_it_before_anything_is_deleted(world):
    config, first, _ = world
    before = listing(first.root)
    away = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": "http://127.0.0.1:1"})})
    with pytest.raises(StepError, match="does not answer"):
        clean_up(away)
    assert listing(first.root) == before


def test_the_size_is_brought_down_to_the_limit_and_no_further(world):
    config, _, _ = world
    from stylegan.tracking.connection import connect

    connect(resolve_uri(config)).delete_registered_model_alias("tiny", "previous")
    large = config.model_copy(update={"retention": config.retention.model_copy(update={"max_gib": 100.0})})
    assert clean_up(large).deleted == ()
