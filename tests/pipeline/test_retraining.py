"""The rules of a retraining: which one decides, what it says, from which weights it starts; days; the file of one that began."""

import os
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, date, datetime

import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st

from stylegan import storage
from stylegan.config.file import build, dump
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, StepError, UnavailableError
from stylegan.pipeline import retraining
from stylegan.pipeline.retraining import Begun, Check, Decision, Retraining, Start, decide, for_day, parse_days
from stylegan.pipeline.steps import Pipeline
from stylegan.registry.contents import VersionFacts
from stylegan.tracking.connection import connect, resolve_uri

TREE = {
    "name": "t",
    "data": {"source": "digits", "resolution": 8, "channels": 1},
    "training": {"start_resolution": 8, "batch": 4},
    "evaluation": {"metrics": []},
}
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def config(**retrain):
    return build({**TREE, "retrain": retrain})


def version(number="3", *, created="2026-11-20T03:12:00+00:00", aliases=("champion",), **tags):
    facts = {"gate.verdict": "promote", "champion.2026": "First.", "stylegan.num_images": "1000"} | tags
    return VersionFacts(name="t", version=number, aliases=aliases, created=created, tags=facts)


def found(newest=None, **facts):
    facts = {"new": 0, "changed": 0, "deleted": 0, "others": 0, "champion": newest, "day": None} | facts
    return Check(
        model="t",
        source="digits",
        listing="abc",
        config_key="key",
        num_images=1000,
        label_names=(),
        registry="sqlite:///mlflow.db",
        newest=newest,
        **facts,
    )


def of(check, **retrain):
    decision = decide(config(**retrain), check, now=NOW)
    return decision.train, decision.rule, decision.reason


def test_a_model_without_a_version_is_trained():
    assert of(found()) == (True, "first", "the registry sqlite:///mlflow.db has no version of t yet")
    assert of(found(day="2026-11-26", others=4))[:2] == (True, "first")


def test_a_changed_config_is_trained():
    train, rule, reason = of(found(others=3))
    assert (train, rule) == (True, "config")
    assert "none of the 3 version(s) of t was trained with it" in reason


def test_an_unchanged_source_is_skipped_and_says_since_when():
    train, rule, reason = of(found(version()))
    assert (train, rule) == (False, "unchanged")
    assert reason == (
        "no new images since 2026-11-20 03:12 UTC, when version 3 was trained on these 1,000 (listing abc)"
    )


@pytest.mark.parametrize(
    ("counts", "retrain", "expected"),
    [
        ({"new": 1}, {}, (True, "images")),
        ({"changed": 1}, {}, (True, "images")),
        ({"deleted": 9}, {}, (False, "few")),
        ({"deleted": 9}, {"min_new_images": 0}, (True, "images")),
        ({}, {"min_new_images": 0}, (False, "unchanged")),
        ({"new": 99}, {"min_new_images": 100}, (False, "few")),
        ({"new": 60, "changed": 40}, {"min_new_images": 100}, (True, "images")),
        ({"new": 100}, {"min_new_share": 0.1}, (True, "images")),
        ({"new": 99}, {"min_new_share": 0.1}, (False, "few")),
        ({"new": 100}, {"min_new_share": 0.1, "min_new_images": 101}, (False, "few")),
        ({"new": 1}, {"min_new_images": 2, "max_age": "1w"}, (True, "age")),  # seven days and nine hours
        ({"new": 1}, {"min_new_images": 2, "max_age": "8d"}, (False, "few")),
        ({}, {"max_age": "1w"}, (False, "unchanged")),
        ({}, {"max_age": "1w", "start": "champion"}, (True, "age")),
    ],
)
def test_the_thresholds(counts, retrain, expected):
    assert of(found(version(), **counts), **retrain)[:2] == expected


def test_the_reasons_name_the_numbers_and_the_keys():
    reason = of(found(version(), new=5, deleted=2), min_new_images=100, min_new_share=0.2)[2]
    assert reason == (
        "5 new, 2 deleted image(s) since version 3 was trained at 2026-11-20 03:12 UTC; at least 200 are asked for "
        "(retrain.min_new_images=100, min_new_share=0.2)"
    )


def test_what_the_registry_lacks_is_put_right():
    unjudged = version(aliases=("challenger",), **{"gate.verdict": ""})
    del unjudged.tags["gate.verdict"]
    assert of(found(unjudged))[1:] == ("registry", "version 3 of t is not judged yet")
    lost = version(aliases=())
    assert of(found(lost, champion=None))[1:] == ("registry", "t has lost its alias champion, which version 3 had")


def test_another_champion_is_a_decision_of_people_and_nothing_is_put_right():
    assert of(found(version(aliases=()), champion=version("2")))[:2] == (False, "unchanged")


def test_a_model_that_was_never_promoted_is_not_tried_again_and_again():
    refused = version(aliases=("challenger",), **{"gate.verdict": "keep"})
    del refused.tags["champion.2026"]
    assert of(found(refused, champion=None))[:2] == (False, "unchanged")


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 60), st.floats(0, 0.05))
def test_it_trains_for_enough_new_images_and_for_no_fewer(new, changed, least, share):
    train, rule, _ = of(found(version(), new=new, changed=changed), min_new_images=least, min_new_share=share)
    enough = new + changed >= least and new + changed >= share * 1000 and new + changed > 0
    assert (train, rule == "images") == (enough, enough)


def test_going_on_from_the_same_champion_on_the_same_images_is_done_once():
    checkpoint = "/root/stages/0008-0123456789/checkpoint-000001000"
    champion = version("2", **{"stylegan.checkpoint_uri": checkpoint})
    newest = version("3", aliases=(), **{"stylegan.parent_checkpoint": "0008-0123456789/checkpoint-000001000"})
    assert of(found(newest, champion=champion), max_age="1w", start="champion")[:2] == (False, "unchanged")
    newest = version("3", aliases=(), **{"stylegan.parent_checkpoint": "0008-0123456789/checkpoint-000000500"})
    assert of(found(newest, champion=champion), max_age="1w", start="champion")[:2] == (True, "age")


# --- the start ---


def test_what_the_registry_lacks_is_put_right_by_the_run_that_made_the_version():
    """Not by another one from the champion, which would be a new model."""
    lost = version(aliases=(), **{"stylegan.parent_checkpoint": "0008-0123456789/checkpoint-000001000"})
    start = retraining.choose_start(config(), found(lost, champion=None), "registry")
    assert start.checkpoint.endswith("/stages/0008-0123456789/checkpoint-000001000")
    start = retraining.choose_start(config(start="champion"), found(version(aliases=())), "registry")
    assert (start.kind, start.checkpoint) == ("scratch", None)


@pytest.mark.parametrize(
    "warm", [None, {"checkpoint": "/x/stages/0008-0123456789/checkpoint-000001000", "kimg": 1000.0}]
)
def test_a_registry_that_was_emptied_gets_the_run_that_storage_has(tmp_path, warm):
    settings = begun_config(tmp_path)
    stored = build(
        {
            **settings.model_dump(mode="json"),
            "training": settings.training.model_dump(mode="json") | {"warm_start": warm},
        }
    )
    run = f"{tmp_path}/root/runs/t-0123456789"
    storage.write_bytes(f"{run}/config.yaml", dump(stored).encode())
    storage.write_json(f"{run}/report.json", {"dataset_fingerprint": "f"})
    storage.write_json(f"{run}/verdict.json", {})
    empty = found(fingerprint="f").model_copy(update={"config_key": retraining.config_key(settings)})
    start = retraining.choose_start(settings, empty, "first")
    assert start.why == "as run t-0123456789, which storage has and the registry has not"
    assert start.checkpoint == (warm and warm["checkpoint"])
    other = empty.model_copy(update={"fingerprint": "g"})
    assert "has no champion yet" in retraining.choose_start(settings, other, "first").why


def test_the_champion_is_needed_where_it_is_asked_for():
    with pytest.raises(
        ConfigError, match=r"retrain\.start=champion: t has no champion yet; set retrain\.start=scratch or auto"
    ):
        retraining.choose_start(config(start="champion"), found(), "first")
    assert retraining.choose_start(config(start="scratch"), found(version()), "images").kind == "scratch"


# --- drift ---


class Drift:
    low, text, preview = 0.04, "the kernel distance is 0.05 [0.04, 0.06]", "/root/preview.png"


@pytest.mark.parametrize(
    ("retrain", "train", "expected"),
    [
        ({}, True, (True, "images")),
        ({"drift_kid": 0.03}, True, (True, "images")),
        ({"drift_kid": 0.03, "on_drift": "hold"}, True, (False, "held")),
        ({"drift_kid": 0.05, "on_drift": "hold"}, True, (True, "images")),
        ({"drift_kid": 0.03, "on_drift": "train"}, False, (True, "drift")),
        ({"drift_kid": 0.05, "on_drift": "train"}, False, (False, "few")),
    ],
)
def test_a_drift_beyond_the_threshold_holds_or_forces(retrain, train, expected):
    before = Decision(train=train, rule="images" if train else "few", reason="5 new image(s)")
    after = retraining.with_drift(config(**retrain), before, Drift())
    assert (after.train, after.rule) == expected
    if after.rule == "held":
        assert "look at /root/preview.png" in after.reason


# --- days ---


def test_days_are_both_ends_and_all_between():
    assert parse_days("2026-02-27..2026-03-01") == [date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1)]
    assert parse_days("2026-02-27") == [date(2026, 2, 27)]


@pytest.mark.parametrize(
    "text", ["", "2026-2-3", "2026-02-30", "2026-02-03..", "2026-02-03..2026-02-01", "0001-01-01..9999-01-01"]
)
def test_what_are_no_days_is_refused(text):
    with pytest.raises(ConfigError):
        parse_days(text)


def test_a_day_takes_its_place_in_the_source_and_in_printed_commands():
    dated = build({**TREE, "data": TREE["data"] | {"source": "/data/{date}/images"}})
    assert for_day(dated, "2026-03-31").data.source == "/data/2026-03-31/images"
    assert for_day(dated, date(2026, 3, 31)).command("run").endswith("--set data.source=/data/2026-03-31/images")
    with pytest.raises(ConfigError, match=r"has no \{date\}"):
        for_day(config(), "2026-03-31")


def test_a_source_with_a_day_is_refused_elsewhere():
    from stylegan.data.sources.open_source import open_source

    dated = build({**TREE, "data": TREE["data"] | {"source": "/data/{date}/images"}})
    with pytest.raises(ConfigError, match=r"--set data\.source=/data/2026-03-31/images"):
        open_source(dated.data, None)


# --- the identity of a config ---


def test_the_key_of_a_config_is_that_of_its_results():
    key = retraining.config_key(config())

    def other(**sections):
        return retraining.config_key(build({**TREE, **sections}))

    assert other(retrain={"start": "scratch"}, ray={"wait_s": 2.0}, storage={"root": "x"}, name="u") == key
    assert other(data=TREE["data"] | {"source": "/elsewhere"}) == key
    for changed in (
        {"seed": 1},
        {"data": TREE["data"] | {"crop": "wide"}},
        {"training": TREE["training"] | {"r1_gamma": 1.0}},
        {"registry": {"gate": {"min_improvement": 0.1}}},
        {"evaluation": {"metrics": ["fid"]}},
    ):
        assert other(**changed) != key


# --- a retraining that has begun ---


def begun_config(tmp_path):
    return build({**TREE, "storage": {"root": str(tmp_path / "root")}})


def shards(tmp_path):
    uri = str(tmp_path / "root" / "datasets" / "abc")
    storage.write_bytes(f"{uri}/manifest.json", b"{}")
    return ShardSet(uri=uri, fingerprint="f", num_images=4, resolutions=(4, 8), label_names=(), num_rejected=0)


def test_a_retraining_that_was_killed_goes_on_with_its_own_images_although_others_came(tmp_path):
    settings, check = begun_config(tmp_path), found(version(), new=5)
    start = Start(kind="champion", why="", checkpoint="/x/stages/0008-abc/checkpoint-000001000")
    decision = Decision(train=True, rule="images", reason="5 new image(s)", start=start)
    Retraining(settings, check, decision, None).write(decision, shards(tmp_path))
    begun = retraining.find_begun(settings)
    assert begun is not None
    again = decide(settings, found(version(), new=9), begun=begun, now=NOW)
    assert (again.rule, again.start) == ("unfinished", start)
    assert "5 new image(s)" in again.reason
    # Another config, or a set that is gone, is begun anew.
    assert (
        decide(settings, found(version(), new=9), begun=begun.model_copy(update={"config_key": "x"})).rule == "images"
    )
    storage.delete(f"{begun.shards.uri}/manifest.json")
    assert retraining.find_begun(settings) is None


def test_the_root_of_a_retraining_may_move(tmp_path):
    settings, decision = begun_config(tmp_path), Decision(train=True, rule="first", reason="")
    Retraining(settings, found(), decision, None).write(decision, shards(tmp_path))
    os.rename(tmp_path / "root", tmp_path / "moved")
    moved = settings.model_copy(
        update={"storage": settings.storage.model_copy(update={"root": str(tmp_path / "moved")})}
    )
    begun = retraining.find_begun(moved)
    assert begun is not None
    assert begun.shards.uri == str(tmp_path / "moved" / "datasets" / "abc")


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (None, False),
        (StepError("diverged"), False),
        (ValueError("defect"), False),
        (UnavailableError("away"), True),
        (KeyboardInterrupt(), True),
    ],
)
def test_what_was_interrupted_goes_on_and_what_would_fail_again_does_not(tmp_path, error, stays):
    settings, decision = begun_config(tmp_path), Decision(train=True, rule="first", reason="")
    record = Retraining(settings, found(), decision, None)
    with suppress(BaseException), record.ended():
        record.write(decision, shards(tmp_path))
        if error:
            raise error
    assert (retraining.find_begun(settings) is not None) == stays


def test_a_damaged_file_is_named_and_the_next_check_decides_anew(tmp_path, caplog):
    settings = begun_config(tmp_path)
    storage.write_bytes(str(tmp_path / "root" / "retrain" / "t" / "begun.json"), b"{")
    assert retraining.find_begun(settings) is None
    assert "begun.json: is damaged" in caplog.text


def test_records_of_older_versions_are_read():
    Begun.model_validate(
        {"since": "", "config_key": "", "decision": {"train": True, "rule": "first", "reason": ""}, "version_tags": {}}
    )


def test_a_check_imports_neither_torch_nor_ray():
    code = (
        "import sys, flows.retrain, stylegan.pipeline.retraining\n"
        "print([name for name in ('torch', 'ray', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the look, on real stores ---


@pytest.fixture
def calls(monkeypatch):
    """The names of the requests to S3."""
    made, real = [], s3fs.S3FileSystem._call_s3

    async def counted(self, method, *args, **kwargs):
        made.append((method, kwargs.get("Key", "")))
        return await real(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return made


def test_a_look_at_an_unchanged_bucket_is_one_listing_and_reads_no_image(make_config, s3_server, calls):
    bucket = s3_server()
    for number in range(30):
        storage.write_bytes(f"{bucket}/images/{number:03d}.png", b"never looked at")
    settings = make_config(
        data={"source": f"{bucket}/images", "resolution": 8, "channels": 1}, evaluation={"metrics": []}
    )
    first = retraining.check(settings)
    assert (decide(settings, first).rule, first.num_images) == ("first", 30)

    # A version that was trained on these.
    uri = resolve_uri(settings)
    client = connect(uri)
    client.create_registered_model("tiny")
    facts = {"stylegan.registered": "x", "gate.verdict": "promote", "stylegan.num_images": "30"}
    client.create_model_version("tiny", "source", tags=facts | retraining.version_tags(first))
    client.set_registered_model_alias("tiny", "champion", "1")
    calls.clear()
    again = retraining.check(settings)
    assert decide(settings, again).rule == "unchanged"
    assert {method for method, _ in calls} <= {"list_objects_v2", "head_object"}
    assert sum(method == "list_objects_v2" for method, _ in calls) <= 3
    assert not [key for _, key in calls if key.endswith(".png")]


def test_a_source_that_cannot_be_listed_is_a_failure_and_not_no_images(make_config, s3_server, tmp_path):
    with pytest.raises(ConfigError, match="no such folder or file"):
        retraining.check(make_config(data={"source": str(tmp_path / "gone"), "resolution": 8}))
    with pytest.raises((StepError, ConfigError)):
        retraining.check(make_config(data={"source": "s3://no-such-bucket/images", "resolution": 8}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StepError):
        retraining.check(make_config(data={"source": str(tmp_path / "empty"), "resolution": 8}))


def test_a_registry_that_is_away_is_a_failure(make_config, image_folder):
    away = make_config(data={"source": str(image_folder), "resolution": 8}, tracking={"uri": "http://127.0.0.1:1"})
    with pytest.raises(StepError, match="does not answer"):
        retraining.check(away)


def test_new_changed_and_deleted_images_are_counted_from_the_listing(make_config, draw_images, tmp_path):
    source = draw_images(tmp_path / "images", [f"{number}.png" for number in range(8)])
    settings = make_config(
        data={"source": str(source), "resolution": 8}, evaluation={"metrics": []}, training={"batch": 4}
    )
    with Pipeline(settings) as pipeline:
        shards = pipeline.shard().record
    client = connect(resolve_uri(settings))
    client.create_registered_model("tiny")
    facts = {"stylegan.registered": "x", "gate.verdict": "promote", "stylegan.dataset_key": storage.name(shards.uri)}
    tags = facts | retraining.version_tags(retraining.check(settings))
    client.create_model_version("tiny", "source", tags=tags)
    assert decide(settings, retraining.check(settings)).rule == "unchanged"
    draw_images(tmp_path / "images", ["8.png", "9.png"])
    (source / "0.png").unlink()
    (source / "1.png").write_bytes((source / "8.png").read_bytes())
    found = retraining.check(settings)
    assert (found.new, found.changed, found.deleted) == (2, 1, 1)
    # The set is gone: nothing is known of what was there, so all are new.
    storage.delete(shards.uri)
    assert (retraining.check(settings).new, retraining.check(settings).changed) == (9, 0)
