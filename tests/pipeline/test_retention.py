"""The rules of the clean-up on random graphs, and its two phases on a real root: graces, races, kills, what is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cleaning import make_world
from hypothesis import given
from hypothesis import strategies as st

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.file import dump
from stylegan.config.sections import RetentionConfig
from stylegan.errors import ConfigError, StepError
from stylegan.pipeline import lock, reachability, retention, steps
from stylegan.pipeline.plan import make_plan
from stylegan.pipeline.reachability import Item
from stylegan.pipeline.retention import DAY, MARKS, AnotherCleanUpError, clean_up, due, garbage, reached
from stylegan.pipeline.run import Run
from stylegan.pipeline.steps import Pipeline
from stylegan.registry.contents import list_registered
from stylegan.tracking.open_run import PARENT_TAG, open_run
from stylegan.tracking.removal import list_runs
from stylegan.verbs.find_model import find_model

# --- the rules, on random graphs ---

NAMES = [f"i{number:02d}" for number in range(12)]
ROOTS = ["", "", "", "versions with an alias", "runs that work"]


def _item(draw, name):
    """Items reach only later names: a version its run, a run its stages, a set those below it; never in a circle."""
    below = NAMES[NAMES.index(name) + 1 :]
    return Item(
        name=name,
        kind="sets",
        num_bytes=draw(st.integers(0, 3)) * 2**30,
        changed=draw(st.integers(0, 50)) * DAY,
        reaches=tuple(draw(st.lists(st.sampled_from(below), max_size=4, unique=True))) if below else (),
        why=draw(st.sampled_from(ROOTS)),
    )


@st.composite
def graphs(draw):
    return {name: _item(draw, name) for name in draw(st.lists(st.sampled_from(NAMES), unique=True))}


def _paths(items, start):
    """Yield all that an item needs, by a definition of its own: step by step along every path."""
    yield start
    for name in items[start].reaches:
        if name in items:
            yield from _paths(items, name)


def _needed(items, starts):
    return {name for start in starts for name in _paths(items, start)}


@given(graphs(), st.one_of(st.none(), st.integers(1, 20)), st.integers(0, 5), st.integers(0, 6), st.data())
def test_nothing_that_a_root_reaches_is_ever_deleted_and_all_else_is_after_its_grace(items, gib, grace, wait, data):
    """Two clean-ups, between which files change, roots come and go, and new items reach old ones."""
    rules = RetentionConfig(max_gib=gib, grace_days=float(grace))
    first, marks = due(items, garbage(items, rules), {}, rules, 100 * DAY)
    assert not first or grace == 0

    later, untouched = dict(items), set(items)
    for name in data.draw(st.lists(st.sampled_from(NAMES), unique=True)) if wait else ():
        if name in items and data.draw(st.booleans()):
            later[name] = items[name].model_copy(update={"why": data.draw(st.sampled_from(ROOTS))})
        else:
            later[name] = _item(data.draw, name).model_copy(update={"changed": 100 * DAY + 1})
            untouched.discard(name)
    loose = garbage(later, rules)
    second, left = due(later, loose, marks, rules, (100 + wait) * DAY)
    deleted = [item.name for item in second]

    roots = [name for name, item in later.items() if item.why]
    assert not _needed(later, roots) & set(deleted)
    survivors = later.keys() - set(deleted)
    assert not _needed(later, survivors) & set(deleted)  # what stays is whole
    if grace:
        assert set(deleted) <= untouched & marks.keys()
        assert not deleted or wait >= grace
    assert left.keys() == {item.name for item in loose}

    # A kill after any deletion leaves nothing that leads to something deleted.
    for number in range(len(deleted)):
        assert not _needed(later, later.keys() - set(deleted[:number])) & set(deleted[:number])

    # Everything else goes in the end.
    end, _ = due(later, garbage(later, rules), left, rules, (200 + wait) * DAY)
    size = sum(item.num_bytes for item in later.values()) - sum(item.num_bytes for item in end)
    if gib is None:
        assert {item.name for item in end} == later.keys() - _needed(later, roots)
    else:
        assert size <= gib * 2**30 or {item.name for item in end} == later.keys() - _needed(later, roots)
        assert not end or size + end[-1].num_bytes > gib * 2**30


def test_circles_and_long_chains_end():
    ring = {name: Item(name=name, kind="sets", num_bytes=1, changed=0.0, reaches=("a", "b")) for name in "ab"}
    assert {item.name for item in garbage(ring, RetentionConfig())} == {"a", "b"}
    chain = {
        f"{number}": Item(name=f"{number}", kind="sets", num_bytes=1, changed=float(number), reaches=(f"{number - 1}",))
        for number in range(5000)
    }
    assert [item.name for item in garbage(chain, RetentionConfig())] == [f"{number}" for number in range(4999, -1, -1)]
    assert reached(chain, ["4999"]) == chain.keys()


def test_with_a_limit_the_oldest_goes_first_and_takes_what_only_it_needs():
    def item(name, changed, *reaches):
        return Item(name=name, kind="runs", num_bytes=2**30, changed=changed, reaches=reaches)

    # The stage of the old run is younger than the new run; a stage of the new run is the oldest of all.
    items = [item("old", 1.0, "shared", "own"), item("new", 5.0, "shared", "oldest")]
    items += [item("shared", 0.5), item("own", 9.0), item("oldest", 0.0)]
    rules = RetentionConfig(max_gib=3.0)
    assert [found.name for found in garbage({one.name: one for one in items}, rules)] == ["old", "new"]


# --- a real root ---


def _stage_items(run):
    return {f"stages/{storage.name(run.stage_uri(stage))}" for stage in run.stages}


def test_what_nothing_reaches_goes_with_its_version_and_its_run_of_mlflow(world):
    config, (first, second) = world.config, world.runs
    logged = {run.run_id: run for run in list_runs(config)}
    world.forget()
    found = world.clean()
    assert f"runs/{first.run_id}" in found.deleted
    assert _stage_items(first) <= set(found.deleted)
    assert min(found.freed[kind] for kind in ("stages", "versions", "MLflow")) > 0
    assert found.freed_bytes == sum(found.freed.values())
    assert [version.version for version in list_registered(config)] == ["2"]
    assert [run.run_id for run in list_runs(config)] == [second.run_id]
    assert not any(logged[first.run_id].mlflow_run_id in path for path in world.listing())
    # The second set lists tars of the first one.
    assert f"datasets/{storage.name(first.shards.uri)}" not in found.deleted
    assert [step.state for step in make_plan(config).steps] == ["cached"] * 6
    assert find_model(config, "tiny@champion").checkpoint_uri.startswith(second.stage_uri(second.stages[-1]))
    with pytest.raises((StepError, ConfigError)):
        find_model(config, "tiny/1")
    assert world.clean().deleted == ()


def test_the_run_of_a_sweep_in_mlflow_stays_as_long_as_a_child(world):
    config, (first, second) = world.config, world.runs
    logged = {run.run_id: run.mlflow_run_id for run in list_runs(config)}
    parents = []
    for run in (first, second):
        parent = open_run(config, f"sweep-of-{run.run_id}", None)
        parents.append(parent.mlflow_run_id)
        world.client.set_terminated(parent.mlflow_run_id, "FINISHED")
        world.client.set_tag(logged[run.run_id], PARENT_TAG, parent.mlflow_run_id)
    world.forget()
    found = world.clean()
    assert f"mlflow/{parents[0]}" in found.deleted
    assert {run.mlflow_run_id for run in list_runs(config)} == {logged[second.run_id], parents[1]}
    assert {run.parent for run in list_runs(config)} == {parents[1], ""}


def test_a_dry_run_writes_nothing_and_says_what_the_next_one_does(world):
    world.forget()
    before = world.listing()
    found = world.clean(dry_run=True)
    assert found.deleted
    assert world.listing() == before
    later = world.with_retention(grace_days=1.0)
    assert (later.clean(dry_run=True).deleted, later.listing()) == ((), before)
    assert set(later.clean(dry_run=True).marked) == set(found.deleted)
    assert world.clean().deleted == found.deleted


def test_marks_come_first_and_deletion_after_the_grace(world):
    world.forget()
    world = world.with_retention(grace_days=1.0)
    first = world.runs[0]
    assert world.clean(days=2).deleted == ()
    assert f"runs/{first.run_id}" in world.clean(days=2.5).marked
    # Somebody goes on with a stage: it is marked anew, and so what it needs stays; what leads to it goes.
    changed = first.stage_uri(first.stages[0])
    storage.write_bytes(f"{changed}/samples/new.png", b"x")
    found = world.clean(days=3)
    assert f"runs/{first.run_id}" in found.deleted
    assert f"stages/{storage.name(changed)}" in found.marked
    assert f"stages/{storage.name(changed)}" in world.clean(days=4).deleted
    assert world.clean(days=9).marked == ()


def test_what_is_marked_and_used_again_keeps_all_that_it_needs(world):
    """A set that builds on another one is touched between mark and deletion: the tars below it stay, too."""
    world = world.with_retention(grace_days=1.0, versions=1, runs=0)
    for run in world.runs:
        storage.delete(run.uri)  # nothing leads to the sets any more
    for alias in ("previous", "champion"):
        world.forget(alias)
    world.client.delete_registered_model("tiny")
    for path in storage.files(world.root):
        if path.startswith("datasets/newest-"):
            storage.delete(storage.join(world.root, path))
    below, above = (f"datasets/{storage.name(run.shards.uri)}" for run in world.runs)
    assert {below, above} <= set(world.clean(days=2).marked)
    storage.write_bytes(f"{world.root}/{above}/preview.png", b"x")
    found = world.clean(days=3)
    assert not {below, above} & set(found.deleted)
    assert {below, above} <= set(world.clean(days=4).deleted)


def test_the_size_is_brought_down_to_the_limit_and_no_further(world):
    world.forget()
    assert world.with_retention(max_gib=100.0).clean().deleted == ()
    assert world.with_retention(max_gib=1e-9).clean().deleted


# --- beside others ---


def test_what_works_is_kept(world):
    first = world.runs[0]
    world.forget()
    with lock.hold(world.root, lock.run_lock(first.run_id), run_id=first.run_id, what="stylegan run"):
        found = world.clean()
    assert not {f"runs/{first.run_id}", *_stage_items(first)} & set(found.deleted)
    assert found.kept["runs that work"] == 1


def test_a_run_that_begins_after_the_look_ends_the_clean_up(world, monkeypatch):
    world.forget()
    real, begun = retention.garbage, []

    def then_begins(*arguments):
        begun.append(lock.hold(world.root, "run-new", run_id="new", what="stylegan run"))
        begun[0].__enter__()
        return real(*arguments)

    monkeypatch.setattr(retention, "garbage", then_begins)
    found = world.clean()
    begun[0].__exit__(None, None, None)
    assert found.deleted == ()
    assert found.stopped.startswith("run new is training since")
    monkeypatch.undo()
    assert world.clean().deleted


def test_a_run_that_has_its_lock_and_no_config_yet_ends_the_clean_up(world):
    world.forget()
    with lock.hold(world.root, "run-new", run_id="new", what="stylegan run"):
        found = world.clean()
    assert (found.deleted, found.stopped[:8]) == ((), "run new ")


def test_a_run_looks_at_its_stages_after_the_clean_up_that_it_waited_for(world, monkeypatch):
    run = world.runs[1]
    first = run.stages[0]
    real = lock.wait_for_clean_up
    monkeypatch.setattr(
        steps, "wait_for_clean_up", lambda root: (real(root), storage.delete(run.stage_uri(first)))
    )  # the last deletion
    with Pipeline(world.config) as pipeline:
        shards = pipeline.shard().record
        assert pipeline.run(shards).find_stage(first)
        assert pipeline.train(shards, first, None).record is None  # not "taken from storage"


def test_two_clean_ups_do_not_work_at_once(world):
    before = world.listing()
    with (
        lock.hold(world.root, lock.CLEAN_UP, run_id=lock.CLEAN_UP, what="stylegan gc"),
        pytest.raises(AnotherCleanUpError, match="is cleaned up already, since"),
    ):
        world.clean()
    assert world.listing() == before


def test_a_version_that_gets_an_alias_after_the_look_stays_and_ends_the_clean_up(world, monkeypatch):
    world.forget()
    real = retention.due

    def then_promoted(*arguments):
        found = real(*arguments)
        world.client.set_registered_model_alias("tiny", "demo", "1")
        return found

    monkeypatch.setattr(retention, "due", then_promoted)
    found = world.clean()
    assert "versions/1 got an alias meanwhile" in found.stopped
    assert found.deleted == ()
    assert find_model(world.config, "tiny@demo")


# --- killed, and away ---


def test_a_kill_after_any_deletion_leaves_nothing_that_counts_and_is_not_whole(world, monkeypatch):
    world.forget()
    wanted = world.clean(dry_run=True).deleted
    first, real, kills = world.runs[0], storage.delete, 0
    while True:
        left = [min(kills, 1)]  # one further deletion each time

        def killed(uri, left=left):
            if "/locks/" not in uri:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
            real(uri)

        monkeypatch.setattr(storage, "delete", killed)
        try:
            world.clean()
            break
        except KeyboardInterrupt:
            kills += 1
            assert kills < 100
            run = Run(world.config, first.shards)
            for stage in run.stages:
                found = run.find_stage(stage)
                assert found is None or storage.exists(f"{found.uri}/generator.safetensors")
        finally:
            monkeypatch.setattr(storage, "delete", real)
    assert kills > 5
    there = {"/".join(path.split("/")[:2]) for path in storage.files(world.root)}
    assert not {name for name in wanted if name.partition("/")[0] in ("runs", "stages")} & there


@pytest.mark.long
def test_after_kill_9_the_next_clean_up_goes_on_without_another_grace(world, tmp_path):
    world.forget()
    world = world.with_retention(grace_days=1.0)
    assert world.clean(days=2).marked
    config = tmp_path / "tiny.yaml"
    config.write_text(dump(world.config))
    code = f"""
import os, time
from stylegan import storage
from stylegan.config.file import load
from stylegan.pipeline.retention import DAY, clean_up
real, left = storage.delete, [4]
def delete(uri):
    if "/locks/" not in uri:
        if left[0] == 0:
            os.kill(os.getpid(), 9)
        left[0] -= 1
    real(uri)
storage.delete = delete
clean_up(load({str(config)!r}), now=time.time() + 3 * DAY)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    found = world.clean(days=3)
    assert _stage_items(world.runs[0]) <= set(found.deleted)
    assert (found.marked, world.clean(days=3).deleted) == ((), ())


@pytest.mark.long
def test_behind_a_server_deletion_is_its_api_and_the_bytes_are_left_to_it(
    tmp_path, tiny_config, draw_images, monkeypatch
):
    program = Path(__file__).parents[1] / "integration" / "mlflow_with_login.py"
    command = [sys.executable, str(program), str(tmp_path), "user", "secret"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            world = make_world(tiny_config, draw_images, tmp_path, root=str(tmp_path / "root"), tracking=url)
            first, second = world.runs
            (logged,) = (run for run in list_runs(world.config) if run.run_id == first.run_id)
            world.forget()
            found = world.clean()
            assert _stage_items(first) <= set(found.deleted)
            assert [version.version for version in list_registered(world.config)] == ["2"]
            assert [run.run_id for run in list_runs(world.config)] == [second.run_id]
            assert world.client.get_run(logged.mlflow_run_id).info.lifecycle_stage == "deleted"
            own = shell_command("mlflow", "gc")
            assert found.notes == (f"the server at {url} frees the bytes of its part by `{own}` beside it",)
            assert [step.state for step in make_plan(world.config).steps] == ["cached"] * 6
        finally:
            server.kill()


def test_a_registry_that_is_away_ends_it_before_anything_is_deleted(world):
    world.forget()
    before = world.listing()
    tracking = world.config.tracking.model_copy(update={"uri": "http://127.0.0.1:1"})
    with pytest.raises(StepError, match="does not answer"):
        clean_up(world.config.model_copy(update={"tracking": tracking}), now=time.time() + 2 * DAY)
    assert world.listing() == before


def test_a_damaged_file_of_marks_marks_anew(world):
    world.forget()
    world = world.with_retention(grace_days=1.0)
    world.clean(days=2)
    storage.write_bytes(storage.join(world.root, MARKS), b"{")
    assert world.clean(days=3).deleted == ()
    assert world.clean(days=4).deleted


def test_a_root_in_a_bucket_is_cleaned_up(tmp_path, s3_server, tiny_config, draw_images, empty_database):
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    root = f"{s3_server()}/deep/root"
    world = make_world(tiny_config, draw_images, tmp_path, root=root, tracking=f"sqlite:///{database}")
    world.forget()
    first, second = world.runs
    assert world.clean(days=0).deleted == ()  # everything is from this minute
    assert _stage_items(first) <= set(world.clean(dry_run=True).deleted)
    found = world.clean()
    there = {"/".join(path.split("/")[:2]) for path in storage.files(root)}
    assert not _stage_items(first) & there
    assert _stage_items(second) <= there
    assert found.freed["stages"] > 0
    assert [step.state for step in make_plan(world.config).steps] == ["cached"] * 6
    assert os.path.exists(database)
    assert reachability.PARTIAL_KIND not in found.before
