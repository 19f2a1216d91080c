"""Intervals are as wide as chance makes their values differ, for sets of one generator; seeds are fixed.

The bounds are those of the error of the ratio with so few sets, about a tenth. `make bench-intervals` measures more.
"""

import pytest
from benchmarks.bench_intervals import Case, compare, fid, inception_score, kid, manifold, paths, spreads

from stylegan.evaluation.metrics.numerics import Estimate


def test_a_spread_compares_widths_with_values() -> None:
    """Of three pairs one differs by more than chance, so one in six orders of two sets promotes."""
    found = compare([Estimate(value, value - 1, value + 1) for value in (0.0, 1.0, 2.0)])
    assert (found.mean, found.ratio, found.false_promotion) == pytest.approx((1, 1 / 1.959964, 1 / 6))


@pytest.mark.parametrize(
    ("case", "draws"),
    [
        (fid(1600, 64), 50),  # near zero, 25 images for each feature
        (fid(1600, 64, shift=0.5), 50),
        (kid(300, 16, subsets=4, subset_size=150), 60),
        (kid(300, 16, shift=0.3, subsets=4, subset_size=150), 60),
        (inception_score(400, 10, splits=2), 60),
        (paths(2000, 1), 100),
        (paths(2000, 2), 100),  # heavy tails
    ],
    ids=lambda value: f"{value.metric}: {value.sets}" if isinstance(value, Case) else str(value),
)
def test_intervals_are_as_wide_as_values_differ(case: Case, draws: int) -> None:
    for name, found in spreads(case, draws).items():
        assert 0.8 < found.ratio < 1.35, (name, found)
        assert found.false_promotion < 0.05, (name, found)


def test_intervals_of_precision_and_density_fit_and_those_of_recall_and_coverage_are_not_too_narrow() -> None:
    """Recall and coverage depend on all generated images in a way that makes the jackknife too wide, on average."""
    found = spreads(manifold(300, 16, num_reals=900), 60)
    for name in ("precision", "density"):
        assert 0.7 < found[name].ratio < 1.35, (name, found[name])
    for name in ("recall", "coverage"):
        assert 0.9 < found[name].ratio < 2.6, (name, found[name])
        assert found[name].false_promotion < 0.05, (name, found[name])
