"""Precision, recall, density, coverage and realism."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import torch_fidelity

from stylegan.errors import StepError
from stylegan.evaluation.metrics import precision_recall
from stylegan.evaluation.metrics.numerics import Estimate
from stylegan.evaluation.metrics.precision_recall import Manifold, manifold_metrics, realism


def sample(count: int, *, size: int = 8, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, size)) + shift).astype(np.float32)


def values(
    real: np.ndarray | Manifold, fake: np.ndarray, *, k: int = 3, k_dc: int = 5, groups: int = precision_recall.GROUPS
) -> dict[str, float]:
    """Return the metrics without their intervals."""
    found = manifold_metrics(real, fake, k=k, k_dc=k_dc, groups=groups)
    return {name: getattr(found, name).value for name in ("precision", "recall", "density", "coverage")}


def by_definition(real: np.ndarray, fake: np.ndarray, *, k: int = 3, k_dc: int = 5) -> dict[str, float]:
    """Return the metrics by their definitions, from whole matrices of distances."""

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None].astype(float) - b[None], axis=2)

    def radii(a: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(a, a), axis=1)[:, k]

    between = distances(fake, real)
    near = between <= radii(real, k_dc)
    return {
        "precision": (between <= radii(real, k)).any(axis=1).mean(),
        "recall": (between <= radii(fake, k)[:, None]).any(axis=0).mean(),
        "density": near.sum(axis=1).mean() / k_dc,
        "coverage": near.any(axis=0).mean(),
    }


@settings(max_examples=25)
@given(st.integers(7, 60), st.integers(7, 60), st.floats(0, 2), st.integers(1, 6), st.integers(1, 6))
def test_metrics_are_the_definitions(num_real: int, num_fake: int, shift: float, k: int, k_dc: int) -> None:
    real, fake = sample(num_real), sample(num_fake, shift=shift, seed=1)
    assert values(real, fake, k=k, k_dc=k_dc) == pytest.approx(by_definition(real, fake, k=k, k_dc=k_dc))


def test_precision_and_recall_equal_torch_fidelity() -> None:
    real, fake = sample(300, size=16), sample(200, size=16, shift=0.4, seed=1)
    expected = torch_fidelity("metric_prc").prc_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), verbose=False
    )
    found = values(real, fake)
    assert 0.2 < found["precision"] < 0.95
    assert (found["precision"], found["recall"]) == pytest.approx((expected["precision"], expected["recall"]), rel=1e-4)


@pytest.mark.parametrize("tile", [1, 4, 37])
def test_tiles_change_nothing(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = sample(50), sample(40, shift=0.3, seed=1)
    expected, deep = values(real, fake), realism(real, fake)
    monkeypatch.setattr(precision_recall, "TILE", tile)
    assert values(real, fake) == pytest.approx(expected)
    np.testing.assert_allclose(realism(real, fake), deep, rtol=1e-9)


def test_a_kept_manifold_gives_the_same() -> None:
    real, fake = sample(50), sample(40, shift=0.3, seed=1)
    kept = Manifold.of(real)
    assert values(kept, fake) == values(real, fake)
    assert np.array_equal(realism(kept, fake), realism(real, fake))
    with pytest.raises(ValueError, match="has 5 neighbours, 6 are needed"):
        manifold_metrics(kept, fake, k_dc=6)


def test_nearest_neighbours_are_others() -> None:
    manifold = Manifold.of(np.array([[0.0], [1.0], [3.0], [7.0]]), neighbours=2)
    assert manifold.nearest.sqrt().tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]


def test_a_set_lies_in_its_own_manifold() -> None:
    """The border belongs to the balls: each contains its centre and k other points."""
    real = sample(100, size=512)
    assert values(real, real) == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1})


def test_rounding_does_not_decide_about_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of another size change the last digits of the products."""
    real = sample(100, size=512)
    kept = Manifold.of(real)
    for tile in (1, 3, 17):
        monkeypatch.setattr(precision_recall, "TILE", tile)
        assert values(kept, real)["density"] == pytest.approx(6 / 5)


def test_copies_are_at_no_distance() -> None:
    copies = np.repeat(sample(30, size=500), 4, axis=0)
    assert Manifold.of(copies).nearest[:, :3].max() == 0 < Manifold.of(copies).nearest[:, 3].min()


def test_sets_apart_have_nothing_in_common() -> None:
    assert values(sample(50), sample(50, shift=20, seed=1)) == dict.fromkeys(
        ("precision", "recall", "density", "coverage"), 0
    )


def test_a_collapsed_generator_is_precise_and_covers_nothing() -> None:
    """All images are the same, so far from the origin that in float32 the distances would be rounding errors."""
    real = sample(200, size=64) + np.float32(1000)
    found = values(real, np.repeat(real[:1], 50, axis=0))
    assert found["precision"] == 1
    assert found["recall"] == 1 / 200  # the image itself
    assert found["coverage"] < 0.2


def test_near_points_far_from_the_origin_keep_their_distances() -> None:
    points = np.array([[4096.0], [4096.25], [4097.0], [4099.0]])
    assert Manifold.of(points, neighbours=1).nearest[:, 0].sqrt().tolist() == pytest.approx(
        [0.25, 0.25, 0.75, 2], rel=1e-6
    )


def test_realism_is_the_largest_ratio_of_radius_to_distance_over_the_smaller_balls() -> None:
    real, fake = sample(31), sample(20, shift=0.5, seed=1)
    between = np.linalg.norm(fake[:, None].astype(float) - real[None], axis=2)
    radii = np.sort(np.linalg.norm(real[:, None].astype(float) - real[None], axis=2), axis=1)[:, 3]
    kept = radii <= np.median(radii)
    assert kept.sum() == 16
    np.testing.assert_allclose(realism(real, fake), (radii[kept] / between[:, kept]).max(axis=1), rtol=1e-6)


def test_realism_falls_with_the_distance_and_is_finite_for_copies() -> None:
    real = 10 * sample(100)
    centre = real[Manifold.of(real).radii(3).argmin()]
    copy, near, far = realism(real, np.stack([centre, centre + 1, centre + 50]))
    assert np.isfinite(copy)
    assert copy > 1e3 > near > far > 0
    assert np.isfinite(realism(np.repeat(real, 4, axis=0), real)).all()  # balls without extent


def test_intervals_hold_their_values() -> None:
    found = manifold_metrics(sample(60), sample(40, shift=0.5, seed=1))
    for estimate in (found.precision, found.recall, found.density, found.coverage):
        assert estimate.low < estimate.value < estimate.high
    assert found.density.high - found.density.low < 4


@pytest.mark.parametrize(("num_fake", "shift", "tile"), [(60, 0.3, 2048), (60, 0.3, 7), (20, 0.0, 2048)])
def test_recall_and_coverage_are_jackknifed_over_the_generated_images(
    num_fake: int, shift: float, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets without a group are measured anew; 20 images are fewer than the groups, so each is one."""
    monkeypatch.setattr(precision_recall, "TILE", tile)
    real, fake = sample(50), sample(num_fake, shift=shift, seed=1)
    found, groups = manifold_metrics(real, fake), min(precision_recall.GROUPS, num_fake)
    without = [by_definition(real, fake[np.arange(num_fake) % groups != group]) for group in range(groups)]
    for name in ("recall", "coverage"):
        estimate = getattr(found, name)
        replicates = np.array([values[name] for values in without])
        expected = Estimate.from_jackknife(estimate.value, replicates, lowest=0, highest=1)
        assert replicates.std() > 0
        assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("tile", [2048, 7])
def test_without_a_jackknife_the_values_are_the_same(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of the intervals that it would give are not there, and no neighbour is searched for it."""
    monkeypatch.setattr(precision_recall, "TILE", tile)
    real, fake = sample(50), sample(60, shift=0.3, seed=1)
    assert values(real, fake, groups=0) == values(real, fake)
    monkeypatch.setattr(Manifold, "radii_without", None)
    monkeypatch.setattr(Estimate, "from_jackknife", None)
    found, plain = manifold_metrics(real, fake, groups=0), Manifold.of
    assert np.isnan([found.recall.low, found.recall.high, found.coverage.low, found.coverage.high]).all()
    assert found.precision.low < found.precision.high
    asked = []
    monkeypatch.setattr(
        Manifold, "of", lambda features, **given: (asked.append(given["neighbours"]), plain(features, **given))[1]
    )
    manifold_metrics(real, fake, groups=0)
    assert asked == [5, 3]


def test_copies_among_generated_images_are_left_out_with_their_group() -> None:
    real = sample(50)
    fake = np.repeat(sample(30, shift=0.2, seed=1), 2, axis=0)[np.random.default_rng(0).permutation(60)]
    without = [by_definition(real, fake[np.arange(60) % 32 != group])["recall"] for group in range(32)]
    found = manifold_metrics(real, fake).recall
    expected = Estimate.from_jackknife(found.value, np.array(without), lowest=0, highest=1)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_what_cannot_be_compared_is_refused() -> None:
    good, broken = sample(10), sample(10)
    broken[3, 1] = np.inf
    for real, fake, message in [
        (good[:5], good, "5 reference images have no 5 nearest others; at least 6 are needed"),
        (good, good[:3], "3 generated images have no 3 nearest others"),
        (good, good[:0], "there are no generated features"),
        (good, good[:, :5], "reference vectors have 8 features, generated ones 5"),
        (good, broken, "1 of 10 generated feature vectors hold NaN or infinity, first number 3"),
    ]:
        with pytest.raises(StepError, match=message):
            manifold_metrics(real, fake)
    with pytest.raises(StepError, match="1 of 10 generated feature vectors"):
        realism(good, broken)
