"""Protocols: the digest changes exactly when something changes that decides a value."""

from typing import Any

import pytest

from stylegan.config.sections import METRICS, EvaluationConfig, Metric
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.features.spaces import Network, Spaces
from stylegan.evaluation.metric_table import split_key
from stylegan.evaluation.protocol import count_reals, metric_keys, protocol_of, settings_of

NETWORKS = {
    role: Network("classifier", ("uri",), "a" * 64, 64) for role in ("pooled", "manifold", "distance", "attributes")
}
SPACES = Spaces(NETWORKS, embedded="classifier")  # type: ignore[arg-type]
BASE = EvaluationConfig(metrics=METRICS, num_images=300, num_reals=100)


def changed(shards: ShardSet, **change: Any) -> set[Metric]:
    """Return the metrics whose protocol differs after a change of settings."""
    other = BASE.model_copy(update=change)
    return {
        metric
        for metric in METRICS
        if protocol_of(metric, shards, BASE, SPACES) != protocol_of(metric, shards, other, SPACES)
    }


PPL = {"ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend"}
OF_REALS = {"fid", "kid", "pr", "fid_mixing", "truncation"}


@pytest.mark.parametrize(
    ("change", "metrics"),
    [
        ({"num_images": 200}, OF_REALS | {"is", "transfer"}),
        ({"num_reals": 90}, OF_REALS),
        ({"kid_subsets": 7}, {"kid"}),
        ({"kid_subset_size": 7}, {"kid"}),
        ({"is_splits": 7}, {"is"}),
        ({"psi": (0.7,)}, {"truncation"}),
        ({"ppl_samples": 10}, PPL),
        ({"ppl_epsilon": 1e-3}, PPL),
        ({"ppl_crop": False}, PPL),
        ({"separability_samples": 10}, {"separability"}),
        ({"seed": 1}, set(METRICS)),
        ({"metrics": ("fid",)}, set()),
        ({"features": "elsewhere/the-same.safetensors"}, set()),
        ({"bootstrap": 5}, set()),
        ({"num_reals": "all"}, OF_REALS),
        ({"precision": "bf16"}, set(METRICS) - PPL - {"transfer"}),  # path lengths are always drawn in single precision
    ],
)
def test_a_setting_changes_the_metrics_that_it_decides(
    change: dict[str, Any], metrics: set[Metric], shards: ShardSet
) -> None:
    assert changed(shards, **change) == metrics


def test_the_resolution_is_part_of_every_protocol(shards: ShardSet) -> None:
    smaller = shards.up_to(4)
    assert not [
        metric
        for metric in METRICS
        if protocol_of(metric, shards, BASE, SPACES) == protocol_of(metric, smaller, BASE, SPACES)
    ]


def test_each_network_decides_the_metrics_of_its_role(shards: ShardSet) -> None:
    changed_network = Network("classifier", ("uri",), "b" * 64, 64)
    other = Spaces(NETWORKS | {"manifold": changed_network}, embedded="classifier")  # type: ignore[arg-type,operator]
    differing = {
        metric
        for metric in METRICS
        if protocol_of(metric, shards, BASE, SPACES) != protocol_of(metric, shards, BASE, other)
    }
    assert differing == {"pr", "truncation"}


def test_all_metrics_have_protocols_of_their_own(shards: ShardSet) -> None:
    assert len({protocol_of(metric, shards, BASE, SPACES) for metric in METRICS}) == len(METRICS)


def test_reals_are_counted_as_they_are_used(shards: ShardSet) -> None:
    """A small set is not repeated up to 50,000."""
    assert [count_reals(shards, BASE.model_copy(update={"num_reals": n})) for n in (50_000, 100, "all")] == [
        120,
        100,
        120,
    ]
    assert settings_of(shards, EvaluationConfig(), SPACES)["num_reals"] == 120
    same = BASE.model_copy(update={"num_reals": 50_000})
    assert protocol_of("fid", shards, same, SPACES) == protocol_of(
        "fid", shards, BASE.model_copy(update={"num_reals": "all"}), SPACES
    )


def test_keys_carry_the_network_and_are_known_by_name() -> None:
    published = Spaces({}, {"attributes": "no labels"})
    assert metric_keys("fid", SPACES) == ("fid_classifier",)
    assert metric_keys("separability", published) == ("separability_w_attributes", "separability_z_attributes")
    assert metric_keys("pr", published) == ("precision_vgg16", "recall_vgg16", "density_vgg16", "coverage_vgg16")
    assert metric_keys("ppl_wend", published) == ("ppl_wend_lpips",)
    for metric in METRICS:
        if metric != "truncation":  # a curve, no value
            assert all(split_key(key)[1] == "classifier" for key in metric_keys(metric, SPACES))
