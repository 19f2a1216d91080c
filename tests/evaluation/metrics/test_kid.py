"""The kernel distance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import torch_fidelity

from stylegan.errors import StepError
from stylegan.evaluation.metrics.kid import kernel_distance


def sample(count: int, *, size: int = 6, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, size)) + shift).astype(np.float32)


def by_pairs(real: np.ndarray, fake: np.ndarray) -> float:
    """Return the distance by its definition, pair by pair."""
    x, y = real.astype(float), fake.astype(float)

    def mean(a: np.ndarray, b: np.ndarray, *, same: bool) -> float:
        kernels = [(p @ q / len(p) + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return float(np.mean(kernels))

    return mean(x, x, same=True) + mean(y, y, same=True) - 2 * mean(x, y, same=False)


def test_one_subset_of_everything_is_the_definition() -> None:
    real, fake = sample(12), sample(12, shift=0.5, seed=1)
    assert kernel_distance(real, fake, subsets=1, seed=0).value == pytest.approx(by_pairs(real, fake), rel=1e-9)


def test_distance_equals_torch_fidelity_with_the_same_seed() -> None:
    functions = torch_fidelity("metric_kid")
    real, fake = sample(150, size=32), sample(120, size=32, shift=0.3, seed=1)
    expected = functions.kid_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), kid_subsets=7, kid_subset_size=100, rng_seed=5, verbose=False
    )
    found = kernel_distance(real, fake, subsets=7, size=100, seed=5)
    assert found.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)


def test_subsets_are_as_large_as_the_smaller_set_at_most() -> None:
    real, fake = sample(40), sample(30, shift=0.5, seed=1)
    capped, exact, smaller = (kernel_distance(real, fake, subsets=3, size=size, seed=0) for size in (1000, 30, 29))
    assert capped == exact != smaller


def test_distance_is_unbiased() -> None:
    """Between sets of one distribution it is zero on average, however small they are."""
    distances = [
        kernel_distance(sample(20, seed=2 * i), sample(20, seed=2 * i + 1), subsets=1, seed=0).value for i in range(300)
    ]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(300)
    assert np.min(distances) < 0


@settings(max_examples=25)
@given(st.floats(0.2, 2), st.integers(0, 2**31))
def test_distance_grows_with_the_shift(shift: float, seed: int) -> None:
    real, near, far = (
        sample(200, seed=seed),
        sample(200, shift=shift, seed=seed + 1),
        sample(200, shift=shift + 0.5, seed=seed + 1),
    )
    found = [kernel_distance(real, fake, subsets=4, size=100, seed=0).value for fake in (near, far)]
    assert found[0] < found[1]


def test_interval_is_as_wide_as_other_generated_sets_differ() -> None:
    real = sample(400)
    estimates = [
        kernel_distance(real, sample(200, shift=0.2, seed=seed), subsets=20, size=100, seed=0) for seed in range(1, 50)
    ]
    half_width = 1.98 * np.std([e.value for e in estimates], ddof=1)
    assert 0.75 * half_width < np.mean([e.high - e.low for e in estimates]) / 2 < 1.3 * half_width
    assert all(e.low < e.value < e.high for e in estimates)


def test_what_cannot_be_compared_is_refused() -> None:
    good, broken = sample(10), sample(10)
    broken[3, 1] = np.nan
    for real, fake, message in [
        (good, broken, "1 of 10 generated feature vectors hold NaN or infinity, first number 3"),
        (broken, good, "1 of 10 reference feature vectors"),
        (good, good[:, :5], "reference vectors have 6 features, generated ones 5"),
        (good[:1], good, "needs two images on each side; there are 1 reference, 10 generated"),
        (good, good[:0], "there are no generated features"),
    ]:
        with pytest.raises(StepError, match=message):
            kernel_distance(real, fake, seed=0)
