"""Keys: what is part of a result's identity and what is not."""

import pytest

from stylegan.config.file import build
from stylegan.data.shardset import ShardSet
from stylegan.pipeline.keys import gate_key, make_keys

TREE = {"name": "t", "data": {"source": "digits", "resolution": 32}, "training": {"start_resolution": 8}}
SHARDS = ShardSet(
    uri="x", fingerprint="f", num_images=100, resolutions=(4, 8, 16, 32), label_names=("a", "b"), num_rejected=0
)


def keys(shards=SHARDS, **changes):
    tree = {section: dict(values) if isinstance(values, dict) else values for section, values in TREE.items()}
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            tree.setdefault(section, {})[key] = value
        else:
            tree[section] = value
    return make_keys(build(tree), shards)


@pytest.mark.parametrize(
    "change",
    [
        {"storage__root": "s3://bucket/x"},
        {"ray__workers": 2},
        {"ray__address": "1.2.3.4:5"},
        {"tracking__uri": "http://x"},
        {"snapshots__log_kimg": 1},
        {"snapshots__metrics_kimg": 1},
        {"data__source": "/elsewhere/with/the/same/images"},
        {"registry__gate": {"min_improvement": 0.5}},
    ],
)
def test_how_a_run_is_carried_out_is_not_part_of_it(change):
    assert keys(**change) == keys()


@pytest.mark.parametrize(
    ("change", "first_changed"),
    [
        ({"seed": 1}, 0),
        ({"training__r1_gamma": 1}, 0),
        ({"training__loss": "hinge"}, 0),
        ({"training__penalty_interval": 16}, 0),
        ({"model__spectral_norm": True}, 0),
        ({"model__noise": False}, 0),
        ({"training__stages": {8: {"batch": 64}}}, 0),
        ({"training__stages": {8: {"learning_rate": 0.5}}}, 0),
        ({"training__stages": {16: {"stable_kimg": 10}}}, 1),
        ({"training__stages": {32: {"fade_kimg": 10}}}, 2),
        ({"training__total_kimg": 9000}, 2),
        ({"training__learning_rate": {4: 0.001, 32: 0.002}}, 2),
        ({"training__learning_rate_scaling": "sqrt"}, 0),
        ({"training__max_batch_per_worker": 100}, 0),
        ({"training__max_batch_per_worker": {32: 48}}, 2),
    ],
)
def test_a_change_reaches_exactly_the_stages_from_where_it_acts(change, first_changed):
    old, new = keys(), keys(**change)
    same = [a == b for a, b in zip(old.stages, new.stages, strict=True)]
    assert same == [i < first_changed for i in range(3)]
    assert new.evaluation != old.evaluation


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"ray__workers": 4}, {"training__max_batch_per_worker": 128}),  # cuts nothing
        ({"training__max_batch_per_worker": {16: 128}}, {}),
        ({"training__batch": "auto"}, {}),  # the default is the official table for one worker
        ({"ray__workers": 8}, {"training__batch": "auto", "ray__workers": 4}),  # the table is the same at 8x8 and above
        (
            {"training__batch": {4: 256, 16: 128, 32: 64}, "ray__workers": 2},
            {"training__batch": "auto", "ray__workers": 2},
        ),
        (
            {"training__learning_rate_scaling": "linear"},
            {"training__batch": "auto", "ray__workers": 8},
        ),  # relative to just these
    ],
)
def test_settings_of_batch_and_rate_matter_by_what_comes_of_them(change, settings):
    assert keys(**settings | change).stages == keys(**settings).stages


def test_workers_matter_where_they_change_an_automatic_batch():
    """From 1 to 2 workers at 8x8 (128, then 256); with a batch of its own there, from 16x16 up nothing changes."""
    one, two = (keys(training__batch="auto", ray__workers=workers) for workers in (1, 2))
    assert [a == b for a, b in zip(one.stages, two.stages, strict=True)] == [False, False, False]
    table = {4: 64, 16: "auto"}
    assert keys(training__batch=table, ray__workers=1).stages == keys(training__batch=table, ray__workers=2).stages


def test_evaluation_changes_only_what_follows_training():
    old, new = keys(), keys(evaluation__num_images=10)
    assert new.stages == old.stages
    assert new.run_id != old.run_id
    assert new.registration != old.registration


def test_data_enters_by_content():
    assert keys(SHARDS.model_copy(update={"fingerprint": "g"})).stages[0] != keys().stages[0]
    assert keys(SHARDS.model_copy(update={"uri": "y"})) == keys()


def test_classes_matter_to_conditional_models_only():
    renamed = SHARDS.model_copy(update={"label_names": ("a", "c")})
    assert keys(renamed).stages == keys().stages
    assert keys(renamed, model__conditional=True).stages != keys(model__conditional=True).stages


def test_run_id_starts_with_the_name():
    assert keys(name="other").run_id.startswith("other-")


def test_a_verdict_belongs_to_version_and_gate():
    config = build(TREE)
    assert gate_key(config, "1") != gate_key(config, "2")
    stricter = build(TREE | {"registry": {"gate": {"min_improvement": 0.1}}})
    assert gate_key(config, "1") != gate_key(stricter, "1")
