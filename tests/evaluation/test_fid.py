"""Moments and the Frechet distance."""

import numpy as np
import pytest
import scipy.linalg

from stylegan.errors import StepError
from stylegan.evaluation.fid import Moments, frechet_distance

RNG = np.random.default_rng(0)


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 1000) -> Moments:
    """Moments that stand for a Gaussian."""
    return Moments(count, np.asarray(mean, float), np.asarray(covariance, float) * (count - 1))


def sample(count: int = 200, size: int = 8) -> np.ndarray:
    return RNG.standard_normal((count, size)) @ RNG.standard_normal((size, size)) + RNG.standard_normal(size)


def test_moments_are_numpys() -> None:
    values = sample()
    moments = Moments.of(values.astype(np.float32))
    assert moments.mean.dtype == moments.covariance.dtype == np.float64
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(values, rowvar=False), atol=1e-5)


@pytest.mark.parametrize("cuts", [[1], [100], [7, 8, 150]])
def test_merged_parts_are_the_whole(cuts: list[int]) -> None:
    values = sample() + 1e4  # a large mean cancels in a naive sum of squares
    first, *rest = (Moments.of(part) for part in np.split(values, cuts))
    for part in rest:
        first = first.merge(part)
    whole = Moments.of(values)
    assert first.count == 200
    np.testing.assert_allclose(first.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(first.covariance, whole.covariance, rtol=1e-7, atol=1e-9)


def test_moments_survive_their_file() -> None:
    moments = Moments.of(sample())
    found = Moments.from_npz(moments.to_npz())
    assert found.count == moments.count
    assert np.array_equal(found.mean, moments.mean)
    assert np.array_equal(found.m2, moments.m2)


def test_distance_to_itself_is_zero() -> None:
    moments = Moments.of(sample())
    assert frechet_distance(moments, moments) < 1e-6


def test_distance_to_itself_is_zero_with_dead_and_equal_features() -> None:
    """A singular covariance, where roots of eigenvalues would leave 1e-7 per dead feature."""
    values = 100 * sample()
    values[:, 1], values[:, 2], values[:, 3] = 0, values[:, 0], values[:, 0]
    moments = Moments.of(values)
    assert frechet_distance(moments, moments) < 1e-6


def test_distance_is_symmetric() -> None:
    a, b = Moments.of(sample()), Moments.of(sample())
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_distance_of_independent_gaussians_is_the_closed_form() -> None:
    """sum of (difference of means)^2 + (difference of standard deviations)^2."""
    a = gaussian(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0]))
    b = gaussian(np.array([1.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4)


def test_distance_of_correlated_gaussians_is_that_of_scipys_root() -> None:
    a, b = Moments.of(sample()), Moments.of(sample())
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_too_few_images_for_the_features_are_refused() -> None:
    enough, few = Moments.of(sample(9)), Moments.of(sample(8))
    frechet_distance(enough, enough)
    with pytest.raises(StepError, match="8 generated images are too few for a covariance of 8 features; at least 9"):
        frechet_distance(enough, few)
    with pytest.raises(StepError, match="8 reference images"):
        frechet_distance(few, enough)
