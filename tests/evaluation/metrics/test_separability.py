"""Linear separability of attributes in latent space."""

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from stylegan.errors import StepError
from stylegan.evaluation.metrics.separability import (
    AttributeScore,
    conditional_entropy,
    most_confident,
    score_attribute,
    separability,
    separate,
)

RNG = np.random.default_rng(0)
LN2 = math.log(2)


def test_an_attribute_cut_by_a_hyperplane_has_no_entropy() -> None:
    latents = RNG.standard_normal((400, 3))
    score = score_attribute("smiling", latents[:, 0], w=latents, z=RNG.standard_normal((400, 3)))
    assert score.entropy_w == pytest.approx(0)
    assert score.entropy_z is not None
    assert score.entropy_z > 0.5
    assert score.share == pytest.approx(0.5, abs=0.1)


def test_an_attribute_that_latents_tell_nothing_about_has_one_bit() -> None:
    latents, logits = RNG.standard_normal((8000, 2)), RNG.standard_normal(8000)
    assert score_attribute("a", logits, w=latents, z=latents).entropy_w == pytest.approx(LN2, rel=0.02)


def test_a_band_that_no_hyperplane_cuts_lies_between() -> None:
    latents = RNG.standard_normal((2000, 2))
    assert 0.4 < separate(latents, np.abs(latents[:, 0]) > 0.67)[0] <= LN2


def test_the_hyperplane_points_towards_the_images_that_have_the_attribute() -> None:
    latents = RNG.standard_normal((2000, 3))
    axis = np.array([0.6, 0, -0.8])
    normal = score_attribute("smiling", latents @ axis, w=latents, z=latents).normal
    assert normal is not None
    assert np.linalg.norm(normal) == pytest.approx(1)
    assert normal @ axis > 0.99
    assert score_attribute("smiling", -(latents @ axis), w=latents, z=latents).normal @ axis < -0.99


def test_latents_that_are_all_alike_have_no_hyperplane() -> None:
    score = score_attribute("a", np.array([-1.0, 1.0] * 50), w=np.zeros((100, 3)), z=RNG.standard_normal((100, 3)))
    assert score.entropy_w == pytest.approx(LN2)
    assert score.normal is None


def test_the_surest_half_of_each_attribute_is_what_counts() -> None:
    """The other half contradicts the hyperplane and is ignored."""
    latents = np.linspace(-1, 1, 400)[:, None]
    logits = np.sign(latents[:, 0]) * 5
    logits[::2] = -np.sign(latents[::2, 0])
    assert score_attribute("a", logits, w=latents, z=latents).entropy_w == pytest.approx(0)


def test_of_classes_half_of_each_answer_counts() -> None:
    """One image in ten is of the class, with the least confident answers of all: v1's rule would keep none of them."""
    latents = np.linspace(0, 1, 1000)[:, None]
    logits = np.where(latents[:, 0] > 0.9, 1.0, -5.0) * (1 + latents[:, 0])
    assert (
        score_attribute("is a 3", logits, w=latents, z=latents).error
        == "all 500 confident images lack it: there is nothing to separate"
    )
    score = score_attribute("is a 3", logits, w=latents, z=latents, exclusive=True)
    assert score.share == pytest.approx(0.1)
    assert score.entropy_w is not None
    never = score_attribute("is a 4", np.full(1000, -1.0), w=latents, z=latents, exclusive=True)
    assert never.error == "all 500 confident images lack it: there is nothing to separate"


def test_the_most_confident_half_is_kept() -> None:
    assert most_confident(np.array([0.1, 0.9, 0.5, 0.9, 0.2])).tolist() == [1, 3]


def test_the_score_is_two_to_the_sum_of_bits() -> None:
    scores = [
        AttributeScore("a", 0.5, entropy_w=LN2, entropy_z=0.0),
        AttributeScore("b", 0.5, entropy_w=2 * LN2, entropy_z=LN2),
    ]
    assert separability(scores) == pytest.approx((8, 2))


def test_without_a_w_there_is_the_score_in_z_alone() -> None:
    latents = RNG.standard_normal((400, 3))
    score = score_attribute("smiling", latents[:, 0], z=latents)
    assert (score.entropy_w, score.normal, score.error) == (None, None, None)
    assert separability([score, AttributeScore("b", 0.5, entropy_z=LN2)]) == (None, pytest.approx(2))


def test_entropy_by_hand() -> None:
    """x = 0: y is 0 once, 1 once (ln 2); x = 1: y is always 1."""
    assert conditional_entropy(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])) == pytest.approx(0.5 * LN2)


def test_entropy_is_that_of_the_papers_formula() -> None:
    """H(Y|X) is H(Y) - I(X; Y), and 2^(bits) is exp(nats)."""
    y, x = RNG.integers(0, 2, 500), RNG.integers(0, 2, 500)
    x[:300] = y[:300]
    share = np.bincount(y) / 500
    bits = (-np.sum(share * np.log(share)) - mutual_info_score(y, x)) / LN2
    assert 2**bits == pytest.approx(math.exp(conditional_entropy(y, x)))


@pytest.mark.parametrize(("logit", "word"), [(1.0, "have"), (-1.0, "lack")])
def test_an_attribute_that_all_images_share_is_an_error_and_not_perfect(logit: float, word: str) -> None:
    latents = RNG.standard_normal((20, 3))
    score = score_attribute("bald", np.full(20, logit), w=latents, z=latents)
    assert (score.entropy_w, score.entropy_z) == (None, None)
    assert score.error == f"all 10 confident images {word} it: there is nothing to separate"
    fine = AttributeScore("young", 0.5, entropy_w=0.1, entropy_z=0.1)
    with pytest.raises(StepError, match="1 of 2 attributes cannot be scored; bald: all 10 confident images"):
        separability([fine, score])


def test_a_failing_svm_is_an_error_and_not_perfect() -> None:
    latents = np.full((10, 3), np.nan)
    score = score_attribute("a", np.array([-1.0, 1.0] * 5), w=latents, z=latents)
    assert score.error is not None
    assert score.error.startswith("the linear SVM failed: Input X contains NaN")
