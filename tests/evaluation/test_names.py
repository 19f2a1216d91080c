"""What the keys of metrics say."""

import pytest

from stylegan.config.sections import METRICS as CONFIG_METRICS
from stylegan.evaluation.names import METRICS, better, describe, split_key


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("fid_inception", ("fid", "inception")),
        ("fid_mixing_classifier", ("fid_mixing", "classifier")),
        ("is_std_inception", ("is_std", "inception")),
        ("is_inception", ("is", "inception")),
        ("separability_w_attributes", ("separability_w", "attributes")),
        ("recall", ("recall", "")),
        ("classifier_accuracy", ("classifier_accuracy", "")),
    ],
)
def test_a_key_is_a_metric_and_a_network(key, parts):
    assert split_key(key) == parts


def test_every_metric_of_a_config_has_a_name():
    assert {metric for metric in CONFIG_METRICS if metric != "pr"} <= METRICS.keys()


@pytest.mark.parametrize(
    ("key", "direction"),
    [("recall_vgg16", "higher"), ("is_inception", "higher"), ("kid_x", "lower"), ("new_x", "lower")],
)
def test_the_better_direction(key, direction):
    assert better(key) == direction


def test_what_is_neither_better_nor_worse():
    assert [describe(key).better for key in ("classifier_accuracy", "is_std_inception")] == [None, None]
    assert describe("classifier_accuracy").title == "classifier accuracy"
