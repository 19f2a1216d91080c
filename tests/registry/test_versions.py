"""Versions and aliases in a real MLflow registry (SQLite)."""

import json
import math
import sqlite3
import threading
from contextlib import closing

import pytest
from printed import printed, type_in

from stylegan.errors import ConfigError, StepError
from stylegan.registry import aliases
from stylegan.registry import versions as store
from stylegan.registry.gate import Verdict, judge
from stylegan.tracking.connection import connect, resolve_uri


@pytest.fixture(autouse=True)
def _little_waiting(monkeypatch):
    monkeypatch.setattr(aliases, "SETTLE_SECONDS", 0.1)


@pytest.fixture
def registry(make_config, make_checkpoint, make_report, shards):
    """The registry of a fresh config, with `add(fid)` to register one more version."""
    return Registry(make_config(), make_checkpoint, make_report, shards)


class Registry:
    def __init__(self, config, make_checkpoint, make_report, shards):
        self.shards = shards
        self.config, self.uri, self.name = config, resolve_uri(config), config.model_name
        self.client = connect(self.uri)
        experiment = self.client.create_experiment("x", artifact_location=f"{config.storage.root}/mlartifacts")
        self.run_id = self.client.create_run(experiment, tags={"stylegan.run_id": "tiny-0123"}).info.run_id
        self.make_checkpoint, self.make_report = make_checkpoint, make_report

    def report(self, fid, key="k1"):
        return self.make_report(fid, checkpoint=self.make_checkpoint(key))

    def add(self, fid, key="k1"):
        report = self.report(fid, key)
        return store.register(
            self.config,
            mlflow_run_id=self.run_id,
            checkpoint=report.checkpoint_uri,
            shards=self.shards,
            report=report,
            key=key,
        )

    def gate(self, fid, key):
        """Register, judge and apply, as the flow does."""
        version = self.add(fid, key)
        now = store.champion(self.config)
        verdict = judge(
            self.report(fid, key),
            now[1] if now else None,
            self.config.registry.gate,
            challenger_version=version.version,
            champion_version=now[0] if now else None,
        )
        return verdict, store.apply_verdict(self.config, verdict)

    def aliases(self):
        return {alias: str(version) for alias, version in self.client.get_registered_model(self.name).aliases.items()}

    def tags(self, version):
        return self.client.get_model_version(self.name, version).tags


def test_a_registered_version_is_the_challenger_and_tells_what_it_is(registry):
    version = registry.add(12.5)
    assert version == store.ModelVersion(name="tiny", version="1", aliases=("challenger",))
    tags, report = registry.tags("1"), registry.report(12.5)
    assert tags["stylegan.key"] == "k1"
    assert tags["stylegan.checkpoint_uri"] == report.checkpoint_uri
    assert not [tag for tag in tags if len(tags[tag]) > 200]
    assert tags["stylegan.run_id"] == "tiny-0123"
    assert json.loads(tags["stylegan.metrics"]) == {"fid_classifier": "12.5"}
    found = registry.client.get_model_version("tiny", "1")
    assert found.run_id == registry.run_id
    assert "| Fréchet distance (FID), classifier ↓ | 12.50 |" in found.description
    assert (
        registry.client.get_run(registry.run_id).outputs.model_outputs[0].model_id
        == found.source.split("/models/")[1].split("/")[0]
    )


def test_a_version_after_a_warm_start_names_its_parent(registry, make_config):
    """By the last two parts of the checkpoint's URI, wherever storage was then; the model card says so, too."""

    def go_on_from(uri):
        registry.config = make_config(training={"batch": 4, "warm_start": {"checkpoint": uri}})

    registry.add(12.5, "stages/0008-a/checkpoint-000001000")
    go_on_from("s3://moved/stages/0008-a/checkpoint-000001000")
    registry.add(11.5, "stages/0008-b/checkpoint-000002000")
    tags = registry.tags("2")
    assert tags["stylegan.parent_version"] == "1"
    assert tags["stylegan.parent_checkpoint"] == "0008-a/checkpoint-000001000"
    card = registry.client.get_model_version(registry.name, "2").description
    assert "- went on from: version 1, checkpoint `0008-a/checkpoint-000001000`\n" in card

    go_on_from("/r/stages/0008-b/checkpoint-000009000")  # no version has it
    registry.add(10.5, "stages/0008-c/checkpoint-000003000")
    tags = registry.tags("3")
    assert "stylegan.parent_version" not in tags
    assert tags["stylegan.parent_checkpoint"] == "0008-b/checkpoint-000009000"
    card = registry.client.get_model_version(registry.name, "3").description
    assert "- went on from: checkpoint `0008-b/checkpoint-000009000`\n" in card
    assert not [tag for tag in registry.tags("1") if "parent" in tag]


def test_registering_the_same_key_again_gives_the_same_version(registry):
    first = registry.add(12.5)
    assert registry.add(12.5) == first
    assert len(registry.client.search_model_versions("name='tiny'")) == 1
    assert store.find_version(registry.config, "k1") == first
    assert store.find_version(registry.config, "other") is None


def change_database(config, statement):
    with closing(sqlite3.connect(f"{config.storage.root}/mlflow.db")) as database, database:
        database.execute(statement)


@pytest.mark.parametrize("table", ["registered_model_aliases", "logged_model_tags"])
def test_a_registration_that_was_cut_short_does_not_count_and_is_finished_by_the_next(registry, table):
    """The database refuses what follows the version, as a kill right there would: the version is there, and not more."""
    change_database(
        registry.config, f"CREATE TRIGGER cut BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'cut'); END"
    )
    with pytest.raises(StepError, match="cannot register tiny"):
        registry.add(12.5)
    assert registry.tags("1")["stylegan.key"] == "k1"
    assert store.find_version(registry.config, "k1") is None
    change_database(registry.config, "DROP TRIGGER cut")
    finished = registry.add(12.5)
    assert finished == store.ModelVersion(name="tiny", version="1", aliases=("challenger",))
    assert "stylegan sample models:/tiny/1 " in registry.client.get_model_version("tiny", "1").description
    assert store.find_version(registry.config, "k1") == finished
    model = registry.client.get_logged_model(registry.tags("1")["stylegan.model_id"])
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "tiny", "version": 1}]


def test_registering_a_finished_version_again_leaves_the_aliases_alone(registry):
    registry.add(12.5, "k1")
    registry.add(11.5, "k2")
    registry.add(12.5, "k1")
    assert registry.aliases() == {"challenger": "2"}


def test_a_finished_version_is_preferred_to_a_newer_one_that_was_cut_short(registry):
    """Two runs at once can make two versions of one key."""
    first = registry.add(12.5)
    registry.client.create_model_version(
        "tiny", source="/somewhere", run_id=registry.run_id, tags={"stylegan.key": "k1"}
    )
    assert store.find_version(registry.config, "k1") == first
    assert registry.add(12.5) == first


@pytest.mark.parametrize("name", ["cats AND dogs", "a -- b_2", "Name LIKE - _"])
def test_names_that_look_like_a_query_are_found(make_config, make_checkpoint, make_report, shards, name):
    registry = Registry(make_config(registry={"name": name}), make_checkpoint, make_report, shards)
    version = registry.add(12.5)
    assert version == store.ModelVersion(name=name, version="1", aliases=("challenger",))
    assert store.find_version(registry.config, "k1") == registry.add(12.5) == version
    assert store.promote(registry.uri, name, "1").aliases == ("champion",)
    assert store.load_version(registry.uri, f"models:/{name}@champion")[0] == registry.report(12.5).checkpoint_uri


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_champion_whose_metric_is_not_finite_is_read_and_loses(registry, bad):
    """Such a model can only have been promoted by hand."""
    registry.add(bad)
    assert json.loads(registry.tags("1")["stylegan.metrics"]) == {"fid_classifier": f"{bad:g}"}
    store.promote(registry.uri, "tiny")
    version, report = store.champion(registry.config)
    assert version == "1"
    assert repr(report.metrics["fid_classifier"]) == repr(bad)
    verdict, _ = registry.gate(9.0, "k2")
    assert verdict.promote
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_a_checkpoint_without_a_generator_is_one_line(registry, tmp_path, make_report):
    with pytest.raises(StepError, match=r"holds no generator\.safetensors"):
        store.register(
            registry.config,
            mlflow_run_id=registry.run_id,
            checkpoint=str(tmp_path / "none"),
            shards=registry.shards,
            report=make_report(),
            key="k",
        )
    assert store.find_version(registry.config, "k") is None


def test_there_is_no_champion_before_the_first(make_config):
    assert store.champion(make_config()) is None


def test_asking_before_there_is_a_store_makes_none(tiny_config, tmp_path):
    config = tiny_config(tmp_path)
    assert store.champion(config) is None
    assert store.find_version(config, "k1") is None
    assert list(tmp_path.iterdir()) == []


def test_the_gate_moves_the_aliases(registry):
    """First model, worse one, better one: champion, kept out, champion with the first as previous."""
    verdict, version = registry.gate(10.0, "k1")
    assert verdict.promote
    assert version.aliases == ("champion",)
    assert store.champion(registry.config) == ("1", registry.report(10.0, "k1"))

    verdict, version = registry.gate(11.0, "k2")
    assert not verdict.promote
    assert version.aliases == ("challenger",)
    assert registry.tags("2")["gate.verdict"] == "keep"
    assert "11 against 10" in registry.tags("2")["gate.reasons"]

    verdict, version = registry.gate(9.0, "k3")
    assert verdict.promote
    assert registry.aliases() == {"champion": "3", "previous": "1"}
    assert registry.tags("3")["gate.verdict"] == "promote"
    assert any(
        name.startswith("champion.") and "After version 1" in value for name, value in registry.tags("3").items()
    )


def test_a_verdict_applied_twice_changes_nothing(registry):
    registry.gate(10.0, "k1")
    verdict, version = registry.gate(9.0, "k2")
    tags = registry.tags("2")
    assert store.apply_verdict(registry.config, verdict) == version
    assert registry.tags("2") == tags
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_the_champion_judged_against_itself_keeps_its_verdict(registry):
    registry.gate(10.0, "k1")
    verdict, version = registry.gate(10.0, "k1")
    assert not verdict.promote
    assert version.aliases == ("champion",)
    assert registry.tags("1")["gate.verdict"] == "promote"


def test_a_promotion_that_was_cut_short_is_finished(registry):
    registry.gate(10.0, "k1")
    registry.add(9.0, "k2")
    registry.client.set_registered_model_alias("tiny", "champion", "2")  # killed right after this
    verdict = Verdict(promote=True, reasons=("Better.",), champion="1", challenger="2")
    assert store.apply_verdict(registry.config, verdict).aliases == ("champion",)
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_a_rollback_is_not_undone_by_the_same_verdict(registry):
    registry.gate(10.0, "k1")
    verdict, _ = registry.gate(9.0, "k2")
    store.rollback(registry.uri, "tiny")
    store.apply_verdict(registry.config, verdict)
    assert registry.aliases() == {"champion": "1", "previous": "2"}


def test_a_verdict_against_a_former_champion_is_refused(registry):
    registry.gate(10.0, "k1")
    registry.gate(9.0, "k2")
    registry.add(8.0, "k3")
    late = Verdict(promote=True, reasons=("Better.",), champion="1", challenger="3")
    with pytest.raises(store.StaleVerdictError, match="version 2 became champion"):
        store.apply_verdict(registry.config, late)
    assert registry.aliases()["champion"] == "2"


def test_promote_takes_the_challenger_or_the_version_named(registry):
    registry.gate(10.0, "k1")
    registry.gate(11.0, "k2")
    assert store.promote(registry.uri, "tiny").version == "2"
    assert registry.aliases() == {"champion": "2", "previous": "1"}
    assert store.promote(registry.uri, "tiny", "1").aliases == ("champion",)
    assert registry.aliases() == {"champion": "1", "previous": "2"}
    assert store.promote(registry.uri, "tiny", "1").aliases == ("champion",)
    assert registry.aliases() == {"champion": "1", "previous": "2"}


class Cut(BaseException):
    """A kill: nothing may catch it."""


def cut_after(monkeypatch, writes):
    """Let the process die at its next write to the registry after so many of them."""
    from mlflow import MlflowClient

    left = [writes]

    def dying(write):
        def call(*arguments, **options):
            if not left[0]:
                raise Cut
            left[0] -= 1
            return write(*arguments, **options)

        return call

    for method in (
        "set_registered_model_alias",
        "delete_registered_model_alias",
        "set_registered_model_tag",
        "delete_registered_model_tag",
        "set_model_version_tag",
    ):
        monkeypatch.setattr(MlflowClient, method, dying(getattr(MlflowClient, method)))


ACTIONS = {
    "rollback": lambda registry: store.rollback(registry.uri, "tiny"),
    "promote": lambda registry: store.promote(registry.uri, "tiny"),
    "promote version": lambda registry: store.promote(registry.uri, "tiny", "3"),
    "gate": lambda registry: store.apply_verdict(
        registry.config, Verdict(promote=True, reasons=("Better.",), champion="2", challenger="3")
    ),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_change_of_champion_that_is_cut_anywhere_is_finished_by_its_repeat(registry, monkeypatch, action):
    """Cut before each write in turn. The repeat ends where the whole would have, with one line of history."""
    registry.gate(10.0, "k1")
    registry.gate(9.0, "k2")
    registry.add(8.0, "k3")
    chosen = "1" if action == "rollback" else "3"
    kept = {alias: registry.aliases()[alias] for alias in ("champion", "previous", "challenger")}
    history = {name for name in registry.tags(chosen) if name.startswith("champion.")}
    writes = 0
    while True:
        with monkeypatch.context() as patch:
            cut_after(patch, writes)
            try:
                ACTIONS[action](registry)
                break
            except Cut:
                pass
        assert ACTIONS[action](registry).version == chosen
        expected = {"champion": chosen, "previous": "2"} | ({"challenger": "3"} if action == "rollback" else {})
        assert registry.aliases() == expected, writes
        assert aliases.INTENT not in registry.client.get_registered_model("tiny").tags
        new = {name for name in registry.tags(chosen) if name.startswith("champion.")} - history
        assert len(new) == 1, (writes, new)

        # Back to the start, for the next cut.
        for alias, version in kept.items():
            registry.client.set_registered_model_alias("tiny", alias, version)
        for name in [*new, "gate.verdict", "gate.champion"]:
            if name in registry.tags(chosen) and (action == "gate" or name in new):
                registry.client.delete_model_version_tag("tiny", chosen, name)
        writes += 1
    assert writes >= 5


def test_an_interrupted_change_counts_for_whoever_asks_for_the_champion(registry, monkeypatch):
    registry.gate(10.0, "k1")
    registry.add(9.0, "k2")
    with monkeypatch.context() as patch:
        cut_after(patch, 1)
        with pytest.raises(Cut):
            store.promote(registry.uri, "tiny")
    assert registry.aliases()["champion"] == "1"
    assert store.champion(registry.config)[0] == "2"
    store.rollback(registry.uri, "tiny")  # finishes the promotion first
    assert registry.aliases() == {"champion": "1", "previous": "2"}


@pytest.mark.parametrize("trial", range(3))
def test_of_two_gates_at_once_one_is_judged_again(registry, monkeypatch, trial):
    """Both were judged against version 1. The later one must not replace the other's champion unseen."""
    monkeypatch.setattr(aliases, "SETTLE_SECONDS", 0.5)
    registry.gate(10.0, "k1")
    registry.add(9.0, "k2")
    registry.add(8.0, "k3")
    start, ends = threading.Barrier(2), {}

    def gate(version):
        verdict = Verdict(promote=True, reasons=("Better.",), champion="1", challenger=version)
        start.wait()
        try:
            ends[version] = store.apply_verdict(registry.config, verdict).aliases
        except store.StaleVerdictError:
            ends[version] = "stale"

    threads = [threading.Thread(target=gate, args=(version,)) for version in "23"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(str, ends.values())) == ["('champion',)", "stale"]
    winner = next(version for version, end in ends.items() if end != "stale")
    assert registry.aliases()["champion"] == winner
    assert registry.aliases()["previous"] == "1"


def test_a_foreign_tag_in_place_of_an_intent_is_one_line(registry):
    registry.gate(10.0, "k1")
    registry.client.set_registered_model_tag("tiny", aliases.INTENT, "mine")
    for call in (lambda: store.rollback(registry.uri, "tiny"), lambda: store.champion(registry.config)):
        with pytest.raises(StepError, match=rf"tiny, tag {aliases.INTENT}: is damaged .*; delete that tag in MLflow"):
            call()


def test_rollback_goes_back_and_forth(registry):
    registry.gate(10.0, "k1")
    registry.gate(9.0, "k2")
    assert store.rollback(registry.uri, "tiny") == store.ModelVersion(name="tiny", version="1", aliases=("champion",))
    assert registry.aliases() == {"champion": "1", "previous": "2"}
    store.rollback(registry.uri, "tiny")
    assert registry.aliases() == {"champion": "2", "previous": "1"}


def test_mistakes_on_the_command_line_are_one_line(registry):
    registry.gate(10.0, "k1")
    mistakes = [
        (ConfigError, "did you mean tiny", lambda: store.promote(registry.uri, "tinny")),
        (ConfigError, "no such registered model", lambda: store.rollback(registry.uri + ".absent", "tiny")),
        (ConfigError, "has no version 9", lambda: store.promote(registry.uri, "tiny", "9")),
        (StepError, "no challenger", lambda: store.promote(registry.uri, "tiny")),
        (StepError, "no previous", lambda: store.rollback(registry.uri, "tiny")),
        (ConfigError, "models:/name@alias", lambda: store.load_version(registry.uri, "tiny@champion")),
        (ConfigError, "has no version 9", lambda: store.load_version(registry.uri, "models:/tiny/9")),
        (
            StepError,
            "no alias staging; it has champion",
            lambda: store.load_version(registry.uri, "models:/tiny@staging"),
        ),
    ]
    for kind, words, call in mistakes:
        with pytest.raises(kind, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_model_uri_leads_to_its_checkpoint(registry):
    registry.gate(10.0, "k1")
    run = registry.client.get_run(registry.run_id)
    expected = (registry.report(10.0, "k1").checkpoint_uri, run.data.tags.get("stylegan.run_id", registry.run_id), "1")
    assert store.load_version(registry.uri, "models:/tiny@champion") == expected
    assert store.load_version(registry.uri, "models:/tiny/1") == expected


def test_a_champion_of_other_making_is_one_line(registry):
    registry.client.create_registered_model("tiny")
    registry.client.create_model_version("tiny", source="/somewhere", run_id=registry.run_id)
    registry.client.set_registered_model_alias("tiny", "champion", "1")
    with pytest.raises(StepError, match=r"no report\.json: this program"):
        store.champion(registry.config)
    for tag in ("{}", "[", "null"):
        registry.client.set_model_version_tag("tiny", "1", "stylegan.report", tag)
        line = r"^tiny@champion is version 1, whose tag stylegan\.report: is damaged \([^\n]+\); remove the alias"
        with pytest.raises(StepError, match=line):
            store.champion(registry.config)


def test_nothing_is_written_into_the_working_folder(
    make_config, make_checkpoint, make_report, shards, tmp_path_factory, monkeypatch, capfd
):
    """No mlruns, no mlflow.db where the command happens to be started, and nothing on the terminal."""
    folder = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(folder)
    Registry(make_config(), make_checkpoint, make_report, shards).gate(10.0, "k1")
    assert list(folder.iterdir()) == []
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_the_command_for_a_rollback_without_a_previous_champion_works(registry, tmp_path):
    registry.gate(12.0, "k1")
    with pytest.raises(StepError, match=r"no previous champion to go back to$"):
        store.rollback(registry.uri, registry.name)
    registry.gate(15.0, "k2")  # not promoted
    with pytest.raises(StepError, match="no previous champion") as error:
        store.rollback(registry.uri, registry.name)
    assert "version 2: champion" in type_in(printed(str(error.value)), tmp_path).stdout
    assert registry.aliases() == {"champion": "2", "previous": "1"}
