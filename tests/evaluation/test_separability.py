"""Linear separability of classes in latent space."""

import math

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from stylegan.errors import StepError
from stylegan.evaluation.separability import conditional_entropy, most_confident, separability

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_classes_cut_by_hyperplanes_score_one(num_classes: int) -> None:
    classes = RNG.integers(0, num_classes, 300)
    latents = np.eye(num_classes)[classes] * 4 + RNG.standard_normal((300, num_classes)) * 0.1
    assert separability(latents, classes) == pytest.approx(1.0)


def test_classes_that_latents_tell_nothing_about_score_their_number() -> None:
    assert separability(RNG.standard_normal((4000, 2)), RNG.integers(0, 4, 4000)) == pytest.approx(4, rel=0.02)


def test_a_class_that_no_hyperplane_cuts_scores_between() -> None:
    latents = RNG.standard_normal((2000, 2))
    score = separability(latents, (np.abs(latents[:, 0]) > 0.67).astype(int))
    assert 1.5 < score <= 2


def test_entropy_by_hand() -> None:
    """x = 0: y is 0 once, 1 once (ln 2); x = 1: y is always 1."""
    assert conditional_entropy(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])) == pytest.approx(0.5 * math.log(2))


def test_entropy_is_that_of_the_papers_formula() -> None:
    """H(Y) - I(X; Y), and 2^(bits) is exp(nats)."""
    y, x = RNG.integers(0, 2, 500), RNG.integers(0, 2, 500)
    x[:300] = y[:300]
    share = np.bincount(y) / 500
    bits = (-np.sum(share * np.log(share)) - mutual_info_score(y, x)) / math.log(2)
    assert 2**bits == pytest.approx(math.exp(conditional_entropy(y, x)))


def test_the_most_confident_half_is_kept() -> None:
    assert most_confident(np.array([0.1, 0.9, 0.5, 0.9, 0.2])).tolist() == [1, 3]


def test_one_class_is_a_reason_and_no_score() -> None:
    with pytest.raises(StepError, match="all 10 confident images are of one class"):
        separability(RNG.standard_normal((10, 3)), np.zeros(10, int))


def test_a_failing_svm_is_a_reason_and_no_score() -> None:
    latents = np.full((10, 3), np.nan)
    with pytest.raises(StepError, match="the linear SVM failed: Input X contains NaN"):
        separability(latents, np.arange(10) % 2)
