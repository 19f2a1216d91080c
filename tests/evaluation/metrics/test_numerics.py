"""Named random streams, exact arithmetic, intervals and the weights of the bootstrap."""

import numpy as np
import pytest
import torch

from stylegan.evaluation.metrics.numerics import Estimate, exact_float32, poisson_weights, stream


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


def test_weights_of_a_sample_depend_on_its_number_and_the_seed_alone() -> None:
    whole = poisson_weights(0, 100, replicates=6, seed=1)
    parts = [poisson_weights(first, count, replicates=6, seed=1) for first, count in ((0, 1), (1, 32), (33, 67))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(poisson_weights(0, 100, replicates=6, seed=2), whole)


def test_weights_are_poisson_with_mean_one_and_independent() -> None:
    weights = poisson_weights(10**9, 20_000, replicates=5, seed=0)
    shares = np.bincount(weights.ravel(), minlength=5)[:5] / weights.size
    np.testing.assert_allclose(shares, np.exp(-1) / np.array([1, 1, 2, 6, 24]), atol=0.006)
    correlations = np.corrcoef(np.concatenate([weights[1:], weights[:-1]], axis=1), rowvar=False)
    assert np.abs(correlations - np.eye(10)).max() < 0.03


def test_weights_have_not_changed() -> None:
    """The intervals of existing reports were computed with these weights."""
    assert poisson_weights(7, 2, replicates=5, seed=4).tolist() == [[0, 3, 3, 1, 0], [0, 0, 0, 0, 0]]


def test_interval_of_replicates_is_around_the_value_and_not_around_them() -> None:
    found = Estimate.from_replicates(1.0, np.array([4.0, 5.0, 6.0]), lowest=-1.0)
    assert (found.value, found.low) == (1, -1)
    assert found.high == pytest.approx(1 + 4.302653)  # Student's t with two degrees of freedom, standard deviation 1


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
