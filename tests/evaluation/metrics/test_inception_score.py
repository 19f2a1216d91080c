"""The Inception Score of posteriors that arrive in chunks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import torch_fidelity

from stylegan.errors import StepError
from stylegan.evaluation.metrics.inception_score import SplitScores


def log_posteriors(count: int, num_classes: int = 7, *, seed: int = 0) -> np.ndarray:
    logits = torch.randn(count, num_classes, generator=torch.Generator().manual_seed(seed))
    return torch.log_softmax(2 * logits, dim=1).numpy()


def scores(values: np.ndarray, *, splits: int = 10, cuts: tuple[int, ...] = ()) -> SplitScores:
    """Return the scores of a set that arrives in parts."""
    found = SplitScores(len(values), splits=splits)
    for part in np.split(values, cuts):
        found.add(part)
    return found


@pytest.mark.parametrize("count", [100, 137])
def test_score_equals_torch_fidelity(count: int) -> None:
    """This holds for splits of slightly different sizes too."""
    values = log_posteriors(count)
    expected = torch_fidelity("metric_isc").isc_features_to_metric(torch.from_numpy(values), splits=10, shuffle=False)
    mean, deviation = scores(values).score()
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert deviation == pytest.approx(expected["inception_score_std"], rel=1e-5)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 83), max_size=5).map(sorted))
def test_chunks_change_nothing(cuts: list[int]) -> None:
    values = log_posteriors(83)
    whole, parts = scores(values), scores(values, cuts=tuple(cuts))
    assert parts.score() == pytest.approx(whole.score(), rel=1e-9)
    assert parts.interval().high == pytest.approx(whole.interval().high, rel=1e-9)


def test_certain_and_even_posteriors_score_the_number_of_classes() -> None:
    """Probabilities of 0, whose logarithm is -inf, contribute nothing."""
    with np.errstate(divide="ignore"):
        certain = np.log(np.tile(np.eye(4), (10, 1)))
    assert scores(certain, splits=10).score() == pytest.approx((4, 0))


def test_equal_posteriors_score_one() -> None:
    mean, deviation = scores(np.tile(log_posteriors(1), (40, 1))).score()
    assert (mean, deviation) == pytest.approx((1, 0))


def test_splits_follow_the_order() -> None:
    """With two sorted classes, no split contains both."""
    certain = np.repeat(np.log(np.eye(2) + 1e-300), 20, axis=0)
    assert scores(certain, splits=2).score()[0] == pytest.approx(1)
    assert scores(certain, splits=1).score()[0] == pytest.approx(2)


def test_interval_is_as_wide_as_other_samples_differ() -> None:
    estimates = [scores(log_posteriors(400, seed=seed), splits=2).interval() for seed in range(60)]
    half_width = 1.98 * np.std([e.value for e in estimates], ddof=1)
    assert 0.75 * half_width < np.mean([e.high - e.low for e in estimates]) / 2 < 1.3 * half_width
    assert all(1 <= e.low < e.value < e.high for e in estimates)
    assert estimates[0].value == scores(log_posteriors(400), splits=2).score()[0]


def test_wrong_numbers_of_samples_are_refused() -> None:
    with pytest.raises(StepError, match="19 samples are too few for an inception score over 10 splits; at least 20"):
        SplitScores(19)
    found = SplitScores(20)
    found.add(log_posteriors(15))
    with pytest.raises(StepError, match="of 20 samples was requested after 15 samples"):
        found.score()
    with pytest.raises(StepError, match="set up for 20 samples and got 21"):
        found.add(log_posteriors(6))


def test_what_is_not_a_posterior_is_refused() -> None:
    found, broken = SplitScores(40), log_posteriors(10)
    broken[4, 0] = np.nan
    found.add(log_posteriors(10))
    with pytest.raises(StepError, match="1 of 10 generated images hold NaN, first number 14"):
        found.add(broken)
    with pytest.raises(StepError, match="7 features, generated ones 6"):
        found.add(log_posteriors(5, 6))
