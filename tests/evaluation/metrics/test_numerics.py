"""Named random streams, exact arithmetic and intervals."""

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from stylegan.evaluation.metrics.numerics import (
    NORMAL_95,
    Estimate,
    deletions,
    exact_float32,
    group_numbers,
    stream,
    tf32,
)


def test_a_stream_depends_on_its_name_alone() -> None:
    torch.manual_seed(5)
    first = torch.randn(4, generator=stream(1, "fid", 0))
    torch.manual_seed(6)
    assert torch.equal(first, torch.randn(4, generator=stream(1, "fid", 0)))


def test_streams_of_other_names_differ() -> None:
    keys = [(1, "fid", 0), (1, "fid", 1), (2, "fid", 0), (1, "ppl", 0), (1, "fid0"), ("1", "fid", 0)]
    assert len({stream(*key).initial_seed() for key in keys}) == len(keys)


def test_exact_arithmetic_ends_with_the_block() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.deterministic
        assert torch.get_float32_matmul_precision() == "high"
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_allowed_in_its_block_alone() -> None:
    with exact_float32():
        with tf32(True):
            assert torch.get_float32_matmul_precision() == "high"
            assert torch.backends.cudnn.allow_tf32
        with tf32(False):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32


def test_group_of_a_sample_depends_on_its_number_alone() -> None:
    parts = [group_numbers(first, count, 4) for first, count in ((0, 3), (3, 6), (9, 1))]
    assert np.concatenate(parts).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_deletions_are_all_then_without_one_then_without_two_neighbours() -> None:
    missing = [np.flatnonzero(~row).tolist() for row in deletions(4)]
    assert missing == [[], [0], [1], [2], [3], [0, 1], [1, 2], [2, 3], [0, 3]]


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    """For groups of one sample this is exact, and the interval is around the value and not around the replicates."""
    values = np.random.default_rng(0).standard_normal(50)
    left = deletions(50)
    replicates = left @ values / left.sum(axis=1)
    margin = 2.0095752 * values.std(ddof=1) / np.sqrt(50)  # Student's t with 49 degrees of freedom
    for pairs in (None, replicates[51:]):
        found = Estimate.from_jackknife(replicates[0], replicates[1:51] + (7 if pairs is None else 0), pairs)
        assert (found.value, found.low, found.high) == pytest.approx(
            (values.mean(), values.mean() - margin, values.mean() + margin)
        )


def test_jackknife_stays_within_the_bounds_of_the_quantity() -> None:
    found = Estimate.from_jackknife(0.5, np.array([0.0, 1.0]), lowest=0, highest=1)
    assert (found.low, found.high) == (0, 1)


def test_pairs_correct_noise_of_the_second_order() -> None:
    """The variance of the squared length of a mean near zero is known; single deletions count it twice."""
    left, ratios = deletions(20), {"single": list[float](), "pairs": list[float]()}
    for seed in range(200):
        groups = np.random.default_rng(seed).standard_normal((20, 100))
        squares = np.square(left @ groups / left.sum(axis=1, keepdims=True)).sum(axis=1)
        for name, pairs in (("single", None), ("pairs", squares[21:])):
            found = Estimate.from_jackknife(squares[0], squares[1:21], pairs)
            ratios[name].append(((found.high - found.value) / 2.093) ** 2 / (2 * 100 / 20**2))
    assert 1.7 < np.mean(ratios["single"]) < 2.3
    assert 0.8 < np.mean(ratios["pairs"]) < 1.25


def test_intervals_of_means_and_shares_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    means = [Estimate.of_mean(rng.exponential(2.0, 200)) for _ in range(600)]
    shares = [Estimate.of_share(rng.random(200) < 0.03) for _ in range(600)]
    for estimates, truth in ((means, 2.0), (shares, 0.03)):
        assert 0.92 < np.mean([e.low <= truth <= e.high for e in estimates]) < 0.98


@pytest.mark.parametrize(("hits", "low", "high"), [(np.ones(20, bool), 0.8389, 1), (np.zeros(20, bool), 0, 0.1611)])
def test_shares_of_all_and_none_are_not_certain(hits: np.ndarray, low: float, high: float) -> None:
    found = Estimate.of_share(hits)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_trimmed_mean_has_the_error_of_the_winsorised_values() -> None:
    """By hand: of 0 ... 9, 1 to 8 count, and the others are replaced by 1 and 8."""
    values = np.arange(10.0)
    found = Estimate.of_trimmed_mean(values, 1.0, 8.0)
    deviation = np.std([1, 1, 2, 3, 4, 5, 6, 7, 8, 8], ddof=1)
    assert found.value == 4.5
    assert found.high - 4.5 == pytest.approx(2.364624 * deviation / (0.8 * np.sqrt(10)))  # t, 7 degrees of freedom


def test_trimmed_mean_without_outliers_is_the_mean() -> None:
    values = np.random.default_rng(0).standard_normal(5000)
    trimmed, plain = Estimate.of_trimmed_mean(values, values.min(), values.max()), Estimate.of_mean(values)
    assert trimmed.value == plain.value
    assert trimmed.high == pytest.approx(plain.high, abs=1e-4)


def test_the_quantile_of_the_normal_distribution_is_exact() -> None:
    assert float(ndtri(0.975)) == NORMAL_95
