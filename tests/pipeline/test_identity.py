"""Keys: what is part of a result's identity and what is not."""

import pytest

from stylegan.config.file import build
from stylegan.config.sections import EvaluationConfig
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError
from stylegan.evaluation import protocol
from stylegan.evaluation.protocol import deciding_settings
from stylegan.evaluation.quick import rows_name
from stylegan.pipeline.keys import former_stage_keys, gate_key, make_keys

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
        ({"ray__workers": 4}, {"training__max_batch_per_worker": 8}),  # the same to rounding
        ({"training__cuda_graphs": False}, {}),
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


CHECKPOINT = "/r/stages/0032-0123456789/checkpoint-000023000"


def warm(checkpoint=CHECKPOINT, **changes):
    return keys(**{"training__warm_start": {"checkpoint": checkpoint}} | changes)


def test_a_warm_start_counts_by_the_content_of_its_checkpoint_wherever_that_is():
    assert len(warm().stages) == 1
    assert warm() == warm("s3://b/moved/stages/0032-0123456789/checkpoint-000023000/")
    others = ["/r/stages/0032-9876543210/checkpoint-000023000", "/r/stages/0032-0123456789/checkpoint-000024000"]
    found = {warm().stages, keys().stages[-1:], *(warm(other).stages for other in others)}
    assert len(found) == 4
    assert warm(training__warm_start={"checkpoint": CHECKPOINT, "kimg": 5}).stages != warm().stages


def test_a_warm_start_asks_for_no_stage_below():
    """Their settings stay legal and are no part of it; those of its own stage are."""
    below = {"training__stages": {8: {"batch": 64}, 16: {"stable_kimg": 7}}, "training__total_kimg": 9000}
    assert warm(**below, training__fade_kimg={4: 7}, ray__stages={8: {"workers": 1}}) == warm()
    assert warm(training__stages={32: {"batch": 32}}).stages != warm().stages
    other_images = SHARDS.model_copy(update={"fingerprint": "g"})
    assert keys(other_images, training__warm_start={"checkpoint": CHECKPOINT}).stages != warm().stages


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


def test_labels_are_part_of_the_stages_of_conditional_models_only():
    """Added, removed and corrected labels keep the stages of an unconditional model. Every evaluation is done again."""
    plain = SHARDS.model_copy(update={"label_names": (), "images_fingerprint": "f"})
    labelled = SHARDS.model_copy(update={"fingerprint": "g", "images_fingerprint": "f"})
    corrected = labelled.model_copy(update={"fingerprint": "h"})
    assert keys(plain).stages == keys(labelled).stages == keys(corrected).stages
    assert len({keys(shards).evaluation for shards in (plain, labelled, corrected)}) == 3
    conditional = {keys(shards, model__conditional=True).stages for shards in (labelled, corrected)}
    assert len(conditional) == 2
    other_images = labelled.model_copy(update={"images_fingerprint": "i"})
    assert keys(other_images).stages != keys(labelled).stages


def test_quick_metrics_are_of_their_labels():
    """Their networks may be trained on labels, also where the stage that is measured knows none."""
    tree = TREE | {"snapshots": {"metrics_kimg": 1.0}}
    labelled = SHARDS.model_copy(update={"images_fingerprint": "i"})
    corrected = labelled.model_copy(update={"fingerprint": "g"})
    plain = SHARDS.model_copy(update={"label_names": (), "images_fingerprint": "f"})
    names = [rows_name(build(tree), 32, shards) for shards in (labelled, corrected, plain, SHARDS)]
    assert len(set(names[:3])) == 3
    assert names[2] == names[3] == rows_name(build(tree), 32)
    conditional = build(tree | {"model": {"conditional": True}})
    assert rows_name(conditional, 32, labelled) == rows_name(conditional, 32)


def test_an_unlabelled_set_and_a_set_of_version_0_1_keep_their_keys():
    plain = SHARDS.model_copy(update={"label_names": ()})
    assert keys(plain.model_copy(update={"images_fingerprint": "f"})) == keys(plain)
    assert former_stage_keys(build(TREE), SHARDS.model_copy(update={"images_fingerprint": "i"})) == keys().stages


EVALUATED = {"evaluation__metrics": ["fid", "pr"]}


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation__metrics": ["pr", "fid", "pr"]},
        {"evaluation__is_splits": 5},
        {"evaluation__kid_subsets": 7},
        {"evaluation__psi": [0.5]},
        {"evaluation__ppl_epsilon": 1e-3},
        {"evaluation__separability_samples": 64},
        {"evaluation__attributes_kimg": 1},
        {"evaluation__weights": {"inception": "/elsewhere/weights.pth"}},
    ],
)
def test_what_no_metric_reads_is_not_part_of_an_evaluation(change):
    assert keys(**EVALUATED | change) == keys(**EVALUATED)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (EVALUATED, {"evaluation__metrics": ["fid"]}),
        (EVALUATED, {"evaluation__num_images": 9}),
        (EVALUATED, {"evaluation__num_reals": 9}),
        (EVALUATED, {"evaluation__bootstrap": 0}),
        (EVALUATED, {"evaluation__seed": 1}),
        (EVALUATED, {"evaluation__features": "rotation"}),
        ({"evaluation__metrics": ["is"]}, {"evaluation__is_splits": 5}),
        (
            {"evaluation__metrics": ["separability"], "evaluation__features": "inception"},
            {"evaluation__attributes_kimg": 1},
        ),
    ],
)
def test_what_a_metric_reads_is_part_of_an_evaluation(settings, change):
    settings = {"registry__gate": {"metric": settings["evaluation__metrics"][0]}} | settings
    assert keys(**settings | change).evaluation != keys(**settings).evaluation


def test_weight_files_count_by_their_content():
    """A copy of the public file is that file, wherever it is; another file is known by the digest behind its URI."""
    published = EVALUATED | {"evaluation__features": "inception"}
    other = "#sha256=" + "a" * 64
    found = [
        keys(**published, evaluation__weights=weights)
        for weights in (
            {},
            {"inception": "/a.pth"},
            {"inception": f"/a.pth{other}"},
            {"inception": f"s3://b/c.pth{other}"},
        )
    ]
    assert found[0] == found[1]
    assert found[2] == found[3] != found[0]
    assert keys(**published, evaluation__weights={"lpips": f"/a.pth{other}"}) == found[0]  # no metric reads it


def test_a_network_counts_by_its_content(tmp_path):
    """Another network in the same place measures anew; the same network in another place does not."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"one")
    config = build(TREE | {"snapshots": {"metrics_kimg": {4: 0, 32: 1.0}}, "evaluation": {"features": str(first)}})
    old, quick = keys(evaluation__features=str(first)), rows_name(config, 32)
    assert keys(evaluation__features=str(second)) == old
    first.write_bytes(b"two")
    assert keys(evaluation__features=str(first)).evaluation != old.evaluation
    assert rows_name(config, 32) != quick
    first.unlink()
    with pytest.raises(ConfigError, match="there is no such file"):
        keys(evaluation__features=str(first))


@pytest.mark.parametrize(
    ("name", "settings", "other"),
    [
        ("REFERENCE_VERSION", {"metrics": ["fid"]}, {"metrics": ["ppl_wend"]}),
        (
            "ATTRIBUTES_VERSION",
            {"metrics": ["separability"], "features": "inception"},
            {"metrics": ["fid"], "features": "inception"},
        ),
    ],
)
def test_the_version_of_a_part_counts_where_it_is_used(monkeypatch, name, settings, other):
    before = [deciding_settings(EvaluationConfig(**each)) for each in (settings, other)]
    monkeypatch.setattr(protocol, name, 99)
    after = [deciding_settings(EvaluationConfig(**each)) for each in (settings, other)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True]


def test_run_id_starts_with_the_name():
    assert keys(name="other").run_id.startswith("other-")


def test_a_verdict_belongs_to_version_and_gate():
    config = build(TREE)
    assert gate_key(config, "1") != gate_key(config, "2")
    stricter = build(TREE | {"registry": {"gate": {"min_improvement": 0.1}}})
    assert gate_key(config, "1") != gate_key(stricter, "1")
