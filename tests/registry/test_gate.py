"""The gate as a pure function of two reports."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylegan.config.file import build
from stylegan.config.sections import GateConfig
from stylegan.errors import ConfigError
from stylegan.evaluation.report import Report
from stylegan.registry.gate import (
    Verdict,
    comparable,
    describe_old_reals,
    describe_verdict,
    difference,
    judge,
    lacks_interval,
    metric_key,
)


def report(
    fid=10.0, *, checkpoint="a", protocol="p1", images="f1", skipped=None, intervals=None, protocols=None, **metrics
):
    values = {"fid_classifier": fid, **metrics} if fid is not None else metrics
    return Report(
        protocol=protocol,
        dataset_fingerprint=images,
        checkpoint_uri=checkpoint,
        metrics=values,
        skipped=skipped or {},
        intervals=intervals or {},
        protocols=protocols or {},
    )


def within(fid, half, **more):
    """A report whose FID has an interval of this half width."""
    return report(fid, intervals={"fid_classifier": (fid - half, fid + half)}, **more)


def decide(challenger, champion=None, **gate):
    return judge(
        challenger,
        champion,
        GateConfig(**gate),
        challenger_version="2",
        champion_version="1" if champion is not None else None,
    )


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


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_champion_without_a_finite_value_loses_to_one_that_has_it(bad):
    """It could never be beaten, and would block every later challenger."""
    champion = report(bad, intervals={"fid_classifier": (bad, bad)})
    for challenger in (report(1.0, checkpoint="b"), within(1.0, 0.5, checkpoint="b")):
        verdict = decide(challenger, champion)
        assert verdict.promote
        assert f"the champion's is {bad:g}, not a finite number" in only_reason(verdict)
    assert not decide(report(1.0, checkpoint="b", protocol="p2"), champion).promote  # it is measured again first


def test_only_the_gate_s_metric_of_the_champion_must_be_finite():
    champion = report(10.0, ppl_zfull_classifier=math.nan)
    assert decide(report(9.0, checkpoint="b"), champion).promote
    assert not decide(report(11.0, checkpoint="b"), champion).promote
    assert not decide(report(9.0, checkpoint="b", ppl_zfull_classifier=math.nan), report(10.0)).promote


def test_a_champion_that_lacks_the_gate_s_metric_is_no_comparison():
    verdict = decide(report(1.0, checkpoint="b", protocols={"fid_classifier": "p1"}), report(None, kid_classifier=1.0))
    assert not verdict.promote
    assert "The gate's metric fid of the champion, version 1 is missing" in only_reason(verdict)


def test_the_metric_is_found_by_its_name_without_the_feature_space():
    both = report(1.0, ppl_zfull_classifier=2.0, ppl_zend_classifier=3.0)
    assert metric_key(both, "ppl_zend") == "ppl_zend_classifier"
    assert metric_key(both, "fid") == "fid_classifier"
    assert metric_key(both, "pp") is None


def test_other_metrics_of_the_same_family_do_not_decide():
    """Curves and spreads have the metric's name at their beginning too."""
    many = report(
        None, fid_mixing_3_rotation=9.0, fid_rotation=1.0, is_std_rotation=0.1, is_rotation=2.0, separability_w_a=3.0
    )
    assert [metric_key(many, name) for name in ("fid", "is", "separability")] == [
        "fid_rotation",
        "is_rotation",
        "separability_w_a",
    ]


@pytest.mark.parametrize(
    ("challenger", "champion", "promote"),
    [(9.0, 10.0, False), (8.5, 10.0, False), (8.4, 10.0, True), (11.0, 10.0, False)],  # 10 - sqrt(1 + 1.2^2) = 8.438
)
def test_a_difference_must_exceed_what_both_intervals_explain_by_chance(challenger, champion, promote):
    verdict = decide(within(challenger, 1.2, checkpoint="b"), within(champion, 1.0))
    assert verdict.promote is promote


def test_a_difference_within_chance_names_values_intervals_and_the_bound():
    reason = only_reason(decide(within(9.0, 1.2, checkpoint="b"), within(10.0, 1.0)))
    assert "9 [7.8, 10.2] against 10 [9, 11]" in reason
    assert "the difference of 1 is within 1.56205, what chance explains at 95 %" in reason


def test_a_difference_beyond_chance_says_so():
    assert "the difference of 5 exceeds 1.56205" in only_reason(
        decide(within(5.0, 1.2, checkpoint="b"), within(10.0, 1.0))
    )


def test_intervals_that_do_not_hold_their_value_count_by_their_width():
    """The ends of an interval may come from elsewhere than from its value: only its width is used."""
    high = report(9.0, checkpoint="b", intervals={"fid_classifier": (9.5, 10.5)})
    assert decide(high, report(10.0, intervals={"fid_classifier": (10.5, 11.5)})).promote  # 1 > sqrt(0.5)
    assert not decide(high, report(9.6, intervals={"fid_classifier": (10.1, 11.1)})).promote


def test_a_challenger_without_an_interval_does_not_skip_the_test():
    """evaluation.bootstrap is no part of the protocol."""
    challenger, champion = report(1.0, checkpoint="b"), within(10.0, 5.0)
    verdict = decide(challenger, champion)
    assert not verdict.promote
    reason = only_reason(verdict)
    assert "fid_classifier of version 2 has no 95 % interval" in reason
    assert "mend evaluation.bootstrap, or set registry.gate.use_intervals=false" in reason
    assert decide(challenger, champion, use_intervals=False).promote
    assert lacks_interval(challenger, champion, GateConfig())
    other_images = decide(report(1.0, checkpoint="b", images="f2"), champion)
    assert any("has no 95 % interval" in reason for reason in other_images.reasons)


def test_a_champion_without_an_interval_is_to_be_measured_again():
    challenger, champion = within(1.0, 0.5, checkpoint="b"), report(10.0)
    assert not comparable(challenger, champion, GateConfig())
    assert comparable(challenger, champion, GateConfig(use_intervals=False))
    verdict = decide(challenger, champion)
    assert not verdict.promote
    assert "fid_classifier of the champion, version 1, has no 95 % interval" in only_reason(verdict)


def test_two_values_without_intervals_decide_alone_and_the_reason_says_so():
    verdict = decide(report(9.0, checkpoint="b"), report(10.0))
    assert verdict.promote
    assert "neither value has a 95 % interval, so chance is not excluded" in only_reason(verdict)
    assert "interval" not in only_reason(decide(report(9.0, checkpoint="b"), report(10.0), use_intervals=False))


def test_intervals_can_be_left_out_of_the_decision():
    assert decide(within(9.9, 5.0, checkpoint="b"), within(10.0, 5.0), use_intervals=False).promote


def test_an_interval_that_is_not_finite_promotes_nobody():
    assert not decide(
        report(1.0, checkpoint="b", intervals={"fid_classifier": (math.nan, math.nan)}), within(10.0, 1.0)
    ).promote


def test_beyond_chance_is_not_enough_if_more_improvement_is_asked_for():
    verdict = decide(within(9.5, 0.1, checkpoint="b"), within(10.0, 0.1), min_improvement=0.1)
    assert not verdict.promote
    assert "at most 9" in only_reason(verdict)


@pytest.mark.parametrize("metric", ["precision", "recall", "density", "coverage", "is"])
def test_higher_is_better_for_some_metrics(metric):
    low, high = (report(checkpoint=name, **{f"{metric}_vgg16": value}) for name, value in (("a", 0.5), ("b", 0.6)))
    assert decide(high, low, metric=metric).promote
    verdict = decide(low, high, metric=metric)
    assert not verdict.promote
    assert "0.5 against 0.6, 16.67% lower; asked for more than 0.6" in only_reason(verdict)


@pytest.mark.parametrize(("value", "promote"), [(0.55, True), (0.549, False)])
def test_the_improvement_of_a_metric_where_higher_is_better(value, promote):
    verdict = decide(
        report(checkpoint="b", recall_vgg16=value), report(recall_vgg16=0.5), metric="recall", min_improvement=0.1
    )
    assert verdict.promote is promote
    assert "at least 0.55 (10.00% above)" in only_reason(verdict)


def test_an_improvement_that_no_model_can_reach_says_so():
    verdict = decide(
        report(checkpoint="b", recall_vgg16=1.0), report(recall_vgg16=0.95), metric="recall", min_improvement=0.1
    )
    assert not verdict.promote
    assert "more than the 1 that is possible: lower registry.gate.min_improvement" in only_reason(verdict)


@pytest.mark.parametrize(("value", "promote"), [(-0.0021, False), (-0.0023, True)])
def test_the_improvement_over_a_negative_champion_goes_downwards(value, promote):
    """KID is unbiased and may be negative."""
    verdict = decide(
        report(checkpoint="b", kid_vgg16=value), report(kid_vgg16=-0.002), metric="kid", min_improvement=0.1
    )
    assert verdict.promote is promote


def test_the_protocol_of_the_metric_decides_not_that_of_the_report():
    """Other metrics and their settings do not matter."""
    one = report(9.0, checkpoint="b", protocol="p2", protocols={"fid_classifier": "q", "kid_classifier": "r"})
    assert decide(one, report(10.0, protocols={"fid_classifier": "q"})).promote
    verdict = decide(one, report(10.0, protocol="p2", protocols={"fid_classifier": "q2"}))
    assert not verdict.promote
    assert "under protocol q, the champion, version 1, under q2" in only_reason(verdict)


def test_a_report_without_protocols_of_its_metrics_counts_by_its_own():
    assert not decide(report(9.0, checkpoint="b", protocols={"fid_classifier": "q"}), report(10.0)).promote
    assert decide(report(9.0, checkpoint="b", protocols={"fid_classifier": "p1"}), report(10.0)).promote


def test_another_feature_network_is_no_comparison():
    verdict = decide(report(None, checkpoint="b", fid_inception=1.0), report(10.0))
    assert not verdict.promote
    assert "Measured as fid_inception, the champion, version 1, as fid_classifier" in only_reason(verdict)


def test_comparable_tells_whether_the_champion_must_be_measured_again():
    one = report(protocols={"fid_classifier": "q", "kid_classifier": "r"}, kid_classifier=1.0)
    fid, kid = GateConfig(metric="fid"), GateConfig(metric="kid")
    assert comparable(one, report(protocols={"fid_classifier": "q"}), fid)
    assert not comparable(one, report(protocols={"fid_classifier": "q2"}), fid)
    assert not comparable(one, report(protocols={"fid_classifier": "q"}, images="f2"), fid)
    assert not comparable(one, report(protocols={"fid_classifier": "q"}), kid)  # it has none: to be measured


@pytest.mark.parametrize(("metrics", "gate"), [(["pr"], "recall"), (["fid", "pr"], "coverage"), (["is"], "is")])
def test_a_config_may_gate_on_the_parts_of_a_metric(metrics, gate):
    assert configured(metrics, gate).registry.gate.metric == gate


@pytest.mark.parametrize(
    ("metrics", "gate"), [(["fid", "pr"], "pr"), (["fid", "truncation"], "truncation"), (["fid"], "recall")]
)
def test_a_config_may_not_gate_on_what_has_no_single_value(metrics, gate):
    with pytest.raises(ConfigError, match=f"registry.gate.metric={gate}: not among"):
        configured(metrics, gate)


def configured(metrics, gate):
    data = {"source": "digits", "resolution": 32}
    return build(
        {"name": "t", "data": data, "evaluation": {"metrics": metrics}, "registry": {"gate": {"metric": gate}}}
    )


@pytest.mark.parametrize(
    ("promote", "aliases", "shown"),
    [
        (True, ("champion",), "promoted: Why."),
        (False, ("challenger",), "not promoted: Why."),
        (False, (), "not promoted: Why."),
        (True, ("previous",), "not champion now (alias previous); when it was judged it was promoted: Why."),
        (True, (), "not champion now (alias none); when it was judged it was promoted: Why."),
        (False, ("champion",), "champion now, by another decision; when it was judged it was not promoted: Why."),
    ],
)
def test_a_verdict_is_shown_with_what_the_registry_says_now(promote, aliases, shown):
    verdict = Verdict(promote=promote, reasons=("Why.",), champion=None, challenger="2")
    assert describe_verdict(verdict, aliases) == shown


finite = st.floats(0, 1e6)


@given(finite, finite, st.floats(0, 0.9))
def test_promotion_means_strictly_lower_and_never_both_ways(a, b, min_improvement):
    there = decide(report(a, checkpoint="x"), report(b, checkpoint="y"), min_improvement=min_improvement).promote
    back = decide(report(b, checkpoint="y"), report(a, checkpoint="x"), min_improvement=min_improvement).promote
    assert not (there and back)
    assert not there or a < b


@given(finite, finite, st.floats(0, 1e5), st.floats(0, 1e5))
def test_intervals_only_ever_make_promotion_harder(a, b, half_a, half_b):
    one, other = within(a, half_a, checkpoint="x"), within(b, half_b, checkpoint="y")
    assert decide(one, other).promote <= decide(one, other, use_intervals=False).promote


# --- the champion's own images, beside the verdict ---


@pytest.mark.parametrize(
    ("challenger", "champion", "says"),
    [
        (
            within(12.0, 0.5),
            within(10.0, 0.5),
            r"12 \[11\.5, 12\.5\] against the champion's 10 .*20\.00% higher: it has forgotten",
        ),
        (within(10.1, 0.5), within(10.0, 0.5), "1.00% higher, within what chance explains"),
        (within(8.0, 0.5), within(10.0, 0.5), r"20\.00% lower; this does not decide"),
        (report(8.0, protocol="p2"), report(10.0), "fid cannot be compared"),
        (report(None), report(10.0), "fid cannot be compared"),
    ],
)
def test_forgetting_is_said_in_words(challenger, champion, says):
    sentence = describe_old_reals(challenger, champion, GateConfig())
    assert re.search(says, sentence), sentence
    assert sentence.startswith("On the champion's own images")


values = st.one_of(st.floats(0, 100), st.sampled_from([5.0, math.nan, math.inf]))
halves = st.one_of(st.none(), st.floats(0, 10))
places = st.sampled_from(["p", "q"])


SAYS = {
    "checkpoint": "same checkpoint",
    "features": "Measured as",
    "protocol": "Evaluated under protocol",
    "images": "Measured against the images",
    "interval": "no 95 % interval",
}


@given(
    st.tuples(values, halves, places, places, places, st.just("a")),
    st.tuples(values, halves, places, places, places, st.sampled_from(["b", "b", "b", "a"])),
    st.sampled_from(["fid", "precision"]),
    st.booleans(),
)
def test_a_comparison_never_contradicts_the_gate(first, second, metric, use_intervals):
    """Whatever the gate promotes is better, beyond chance where that can be tested, and compares; and the other way round.

    What the gate does not compare has an obstacle for each of its reasons.
    """

    def measured(value, half, protocol, images, network, checkpoint):
        key = f"{metric}_{network}"
        intervals = {} if half is None or not math.isfinite(value) else {key: (value - half, value + half)}
        return report(
            None, checkpoint=checkpoint, images=images, intervals=intervals, protocols={key: protocol}, **{key: value}
        )

    challenger, champion = measured(*first), measured(*second)
    verdict = decide(challenger, champion, metric=metric, min_improvement=0, use_intervals=use_intervals)
    found = difference(challenger, champion, metric, use_intervals=use_intervals)
    back = difference(champion, challenger, metric, use_intervals=use_intervals)
    assert verdict.promote == (found.better is True and found.beyond_chance is not False)
    assert found.obstacles == back.obstacles
    assert (found.better, back.better) in {(None, None), (True, False), (False, True)}
    assert found.beyond_chance == back.beyond_chance
    if math.isfinite(found.value):  # or else the gate has no other reason
        reasons = verdict.reasons[:1] if "checkpoint" in found.obstacles else verdict.reasons
        given_ones = {obstacle for obstacle, words in SAYS.items() if any(words in reason for reason in reasons)}
        assert given_ones == set(found.obstacles)


def test_a_value_that_one_of_two_reports_lacks_has_no_difference():
    assert difference(report(), report(None, kid_classifier=1.0), "fid") is None
