"""The gate as a pure function of two reports."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylegan.config import GateConfig
from stylegan.evaluation.report import Report
from stylegan.registry.gate import judge, metric_key


def report(fid=10.0, *, checkpoint="a", protocol="p1", images="f1", skipped=None, **metrics):
    values = {"fid_classifier": fid, **metrics} if fid is not None else metrics
    return Report(
        protocol=protocol, dataset_fingerprint=images, checkpoint_uri=checkpoint, metrics=values, figures={}, skipped=skipped or {}
    )


def decide(challenger, champion=None, **gate):
    return judge(challenger, champion, GateConfig(**gate), challenger_version="2", champion_version="1" if champion is not None else None)


def only_reason(verdict):
    assert len(verdict.reasons) == 1
    reason = verdict.reasons[0]
    assert reason.endswith(".")
    assert "\n" not in reason
    return reason


def test_a_first_model_with_finite_metrics_is_promoted():
    verdict = decide(report(12.5))
    assert verdict.promote
    assert (verdict.champion, verdict.challenger) == (None, "2")
    assert "12.5" in only_reason(verdict)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_first_model_with_any_metric_that_is_not_finite_is_kept_out(bad):
    verdict = decide(report(12.5, ppl_zfull_classifier=bad))
    assert not verdict.promote
    assert "ppl_zfull_classifier" in only_reason(verdict)


def test_a_missing_gate_metric_says_what_was_measured():
    verdict = decide(report(None, ppl_zfull_classifier=3.0))
    assert not verdict.promote
    assert "fid" in only_reason(verdict)
    assert "ppl_zfull_classifier 3" in only_reason(verdict)


def test_a_skipped_gate_metric_gives_the_reason_of_the_report():
    verdict = decide(report(1.0, skipped={"separability": "the images have no labels"}), metric="separability")
    assert not verdict.promote
    assert "the images have no labels" in only_reason(verdict)


def test_a_lower_value_wins_and_the_reason_has_both_numbers():
    verdict = decide(report(9.0, checkpoint="b"), report(10.0))
    assert verdict.promote
    assert "9 against 10" in only_reason(verdict)
    assert "10.00% lower" in only_reason(verdict)


@pytest.mark.parametrize("value", [10.0, 10.5])
def test_an_equal_or_higher_value_loses_even_without_an_improvement_asked_for(value):
    verdict = decide(report(value, checkpoint="b"), report(10.0))
    assert not verdict.promote
    assert f"{value:g} against 10" in only_reason(verdict)


@pytest.mark.parametrize(("value", "promote"), [(9.0, True), (9.01, False), (8.0, True)])
def test_the_improvement_asked_for_is_relative_and_its_limit_counts(value, promote):
    verdict = decide(report(value, checkpoint="b"), report(10.0), min_improvement=0.1)
    assert verdict.promote is promote
    assert "at most 9" in only_reason(verdict)


def test_another_protocol_is_no_comparison():
    verdict = decide(report(1.0, checkpoint="b", protocol="p2"), report(10.0))
    assert not verdict.promote
    assert "p2" in only_reason(verdict)
    assert "p1" in only_reason(verdict)


def test_other_reference_images_are_no_comparison():
    verdict = decide(report(1.0, checkpoint="b", images="f2"), report(10.0))
    assert not verdict.promote
    assert "f2" in only_reason(verdict)


def test_every_difference_is_a_reason_of_its_own():
    verdict = decide(report(1.0, checkpoint="b", images="f2", protocol="p2"), report(10.0))
    assert len(verdict.reasons) == 2


def test_the_champions_own_checkpoint_is_not_promoted_again():
    verdict = decide(report(1.0), report(10.0))
    assert not verdict.promote
    assert "same checkpoint" in only_reason(verdict)


def test_the_champion_itself_needs_no_promotion():
    verdict = judge(report(), report(), GateConfig(), challenger_version="3", champion_version="3")
    assert not verdict.promote
    assert only_reason(verdict) == "Version 3 is the champion already."


def test_a_champion_without_a_finite_value_is_no_comparison():
    verdict = decide(report(1.0, checkpoint="b"), report(math.nan))
    assert not verdict.promote
    assert "champion" in only_reason(verdict)


def test_the_metric_is_found_by_its_name_without_the_feature_space():
    both = report(1.0, ppl_zfull_classifier=2.0, ppl_zend_classifier=3.0)
    assert metric_key(both, "ppl_zend") == "ppl_zend_classifier"
    assert metric_key(both, "fid") == "fid_classifier"
    assert metric_key(both, "pp") is None


finite = st.floats(0, 1e6)


@given(finite, finite, st.floats(0, 0.9))
def test_promotion_means_strictly_lower_and_never_both_ways(a, b, min_improvement):
    there = decide(report(a, checkpoint="x"), report(b, checkpoint="y"), min_improvement=min_improvement).promote
    back = decide(report(b, checkpoint="y"), report(a, checkpoint="x"), min_improvement=min_improvement).promote
    assert not (there and back)
    assert not there or a < b
