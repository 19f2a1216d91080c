"""Moments, the Fréchet distance and its interval."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import torch_fidelity

from stylegan.errors import StepError
from stylegan.evaluation.metrics import fid as fid_module
from stylegan.evaluation.metrics.fid import GroupMoments, Moments, frechet_distance, frechet_interval
from stylegan.evaluation.metrics.numerics import Estimate

RNG = np.random.default_rng(0)


def gaussian(mean: np.ndarray, covariance: np.ndarray, count: int = 1000) -> Moments:
    """Return the moments of a Gaussian."""
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
    values = sample() + 1e4  # with a large mean, a naive sum of squares loses its digits
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
    """A singular covariance adds no error."""
    values = 100 * sample()
    values[:, 1], values[:, 2], values[:, 3] = 0, values[:, 0], values[:, 0]
    moments = Moments.of(values)
    assert frechet_distance(moments, moments) < 1e-6


def test_distance_is_symmetric() -> None:
    a, b = Moments.of(sample()), Moments.of(sample())
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_distance_of_independent_gaussians_is_the_closed_form() -> None:
    """It is the sum of (difference of means)^2 + (difference of standard deviations)^2."""
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


def test_other_features_are_refused() -> None:
    with pytest.raises(StepError, match="reference vectors have 8 features, generated ones 7"):
        frechet_distance(Moments.of(sample()), Moments.of(sample(size=7)))
    with pytest.raises(StepError, match="reference vectors have 8 features, generated ones 7"):
        GroupMoments(8).add(sample(size=7))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    values = sample()
    values[5, 2] = value
    for take in (Moments.of, GroupMoments(8).add):
        with pytest.raises(StepError, match="1 of 200 image feature vectors hold NaN or infinity, first number 5"):
            take(values)


def test_no_features_are_refused() -> None:
    with pytest.raises(StepError, match="there are no image features"):
        Moments.of(np.empty((0, 8)))


def test_a_part_taken_off_leaves_the_rest() -> None:
    values = sample() + 1e4
    rest, expected = (
        Moments.of(values).without(Moments.of(values[::3])),
        Moments.of(np.delete(values, np.s_[::3], axis=0)),
    )
    assert rest.count == expected.count
    np.testing.assert_allclose(rest.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(rest.covariance, expected.covariance, rtol=1e-7, atol=1e-9)


def test_nothing_merged_with_something_is_that() -> None:
    nothing, something = Moments(0, np.zeros(8), np.zeros((8, 8))), Moments.of(sample())
    assert nothing.merge(something) is something.merge(nothing) is something


SPECTRA = {
    "flat": np.ones(40),
    "falling": np.exp(-np.arange(40.0)),
    "slowly falling": 1 / np.arange(1, 41.0) ** 4,
    "cliff": np.repeat([1, 1e-10], 20),
    "half empty": np.repeat([1.0, 0.0], 20),
}


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(SPECTRA)),
    st.sampled_from(sorted(SPECTRA)),
    st.sampled_from([0, 1e-6, 1e-3, 1]),
    st.integers(0, 2**31),
)
def test_distance_is_exact_for_almost_singular_and_almost_equal_covariances(
    first: str, second: str, change: float, seed: int
) -> None:
    """The expected value comes from singular values of the roots of the covariances: exact to the last digits."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    turned = basis + change * rng.standard_normal((40, 40)) / 6
    roots = basis * np.sqrt(SPECTRA[first]), turned * np.sqrt(SPECTRA[second])
    a, b = (gaussian(np.zeros(40), root @ root.T) for root in roots)
    traces = sum(np.square(root).sum() for root in roots)
    expected = traces - 2 * np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-11 * traces)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6, abs=1e-11 * traces)


def test_distance_to_itself_is_zero_in_any_scale() -> None:
    for scale in (1e-6, 1.0, 1e6):
        moments = Moments.of(scale * sample(50, 40))
        assert frechet_distance(moments, moments) <= 1e-12 * np.trace(moments.covariance)


def test_distance_equals_torch_fidelity() -> None:
    functions = torch_fidelity("metric_fid")
    a, b = sample(300, 30), sample(200, 30)
    statistics = [functions.fid_features_to_statistics(torch.from_numpy(values)) for values in (a, b)]
    expected = functions.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-6)


def grouped(values: np.ndarray, cuts: list[int], groups: int = 5) -> list[Moments]:
    """Return the groups of a set that arrives in parts."""
    found = GroupMoments(values.shape[1], groups=groups)
    for part in np.split(values, cuts):
        if len(part):
            found.add(part)
    return found.groups


def test_every_fifth_sample_is_in_one_of_five_groups() -> None:
    values = sample()
    for number, found in enumerate(grouped(values, [])):
        expected = Moments.of(values[number::5])
        assert found.count == expected.count == 40
        np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cuts", [[1], [64], [3, 70, 199]])
def test_groups_do_not_depend_on_chunks(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    values = sample()
    monkeypatch.setattr(fid_module, "BLOCK", 64)
    for expected, found in zip(grouped(values, []), grouped(values, cuts), strict=True):
        assert found.count == expected.count
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9)
        np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-6)


def test_groups_can_be_read_before_the_last_sample() -> None:
    values = sample()
    found = GroupMoments(8, groups=5)
    found.add(values[:150])
    assert [moments.count for moments in found.groups] == [30] * 5
    found.add(values[150:])
    assert [moments.count for moments in found.groups] == [40] * 5


def test_interval_is_the_jackknife_of_whole_sets() -> None:
    """Sets without one or two groups are measured anew, from their vectors."""
    reference, values = Moments.of(sample()), sample()
    numbers = np.arange(200) % 5

    def without(*left_out: int) -> float:
        return frechet_distance(reference, Moments.of(values[~np.isin(numbers, left_out)]))

    value = without()
    singles, pairs = (np.array([without(*(g, (g + 1) % 5)[:n]) for g in range(5)]) for n in (1, 2))
    expected = Estimate.from_jackknife(value, singles, pairs, lowest=0.0)
    found = frechet_interval(reference, grouped(values, []), value)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_interval_never_goes_below_zero() -> None:
    values = sample(20)
    assert frechet_interval(Moments.of(values), grouped(values, []), 0.0).low == 0


@pytest.mark.parametrize("count", [2, 3, 5])
def test_interval_of_very_few_images_is_finite(count: int) -> None:
    """There are more groups than images."""
    values = sample(count, 1)
    groups = grouped(values, [], groups=40)
    assert [moments.count for moments in groups] == [1] * count
    assert np.isfinite(frechet_interval(Moments.of(values), groups, 1.0).high)
