"""Linear separability (Karras et al. 2019, section 4.2): can a hyperplane in latent space tell whether an image has an attribute?

Of each attribute the half of the images whose classifier is surest is kept, a linear SVM is fitted to their latents, and the score
is exp(sum over attributes of H(Y|X)), Y the classifier's answer and X the SVM's. 1 is perfect; each attribute that the latents tell
nothing about doubles it at most. Where StyleGAN's code calls an attribute whose SVM fails perfect, it is an error here.

Attributes of the form "is of class k", of three classes or more, exclude each other. A classifier is then surer of each "no" than of
any "yes", and the surest half would hold no "yes" at all: of these, half of each answer is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from stylegan.errors import StepError, one_line


@dataclass(frozen=True)
class AttributeScore:
    """One attribute: share of the kept images that have it, H(Y|X) in nats in both spaces, or why it cannot be scored."""

    name: str
    share: float
    entropy_w: float | None = None
    entropy_z: float | None = None
    error: str | None = None


def score_attribute(
    name: str, logits: np.ndarray, *, w: np.ndarray, z: np.ndarray, exclusive: bool = False
) -> AttributeScore:
    """The score of logits [N] (positive: has the attribute) over latents w and z [N, L]; `exclusive` keeps half of each answer."""
    has = logits > 0
    parts = (np.flatnonzero(has), np.flatnonzero(~has)) if exclusive else (np.arange(len(logits)),)
    kept = np.concatenate([part[most_confident(np.abs(logits[part]))] for part in parts])
    answers = has[kept]
    share = float(answers.mean())
    try:
        return AttributeScore(
            name, share, conditional_entropy_of(w[kept], answers), conditional_entropy_of(z[kept], answers)
        )
    except StepError as error:
        return AttributeScore(name, share, error=str(error))


def separability(scores: Sequence[AttributeScore]) -> tuple[float, float]:
    """exp(sum of entropies), in w and in z.

    Raises:
        StepError, fit to be a reason for skipping: an attribute has none.
    """
    failed = [f"{score.name}: {score.error}" for score in scores if score.error]
    if failed:
        more = f" ({len(failed) - 1} more)" if len(failed) > 1 else ""
        raise StepError(f"{len(failed)} of {len(scores)} attributes cannot be scored; {failed[0]}{more}")
    return tuple(float(np.exp(sum(getattr(score, key) for score in scores))) for key in ("entropy_w", "entropy_z"))  # type: ignore[return-value]


def most_confident(confidence: np.ndarray) -> np.ndarray:
    """Indices of the half of [N] values that is largest (ties: the earlier), in descending order."""
    return np.argsort(-confidence, kind="stable")[: len(confidence) // 2]


def conditional_entropy_of(latents: np.ndarray, answers: np.ndarray) -> float:
    """H(Y|X) in nats for latents [N, L], the classifier's answers Y [N] and those X of an SVM that is fitted to the same points.

    Raises:
        StepError: all answers are the same, or the SVM cannot be fitted.
    """
    if len(np.unique(answers)) < 2:
        has = "have" if answers.any() else "lack"
        raise StepError(f"all {len(answers)} confident images {has} it: there is nothing to separate")
    try:
        with warnings.catch_warnings():
            # v1 also takes what 1,000 iterations give.
            warnings.simplefilter("ignore", ConvergenceWarning)
            predicted = LinearSVC(random_state=0).fit(latents, answers).predict(latents)
    except ValueError as error:
        raise StepError(f"the linear SVM failed: {one_line(error)}") from error
    return conditional_entropy(answers, predicted)


def conditional_entropy(y: np.ndarray, x: np.ndarray) -> float:
    """H(Y|X) in nats of two label vectors [N]; at least 0."""
    y_index, x_index = (np.unique(labels, return_inverse=True)[1] for labels in (y, x))
    joint = np.zeros((y_index.max() + 1, x_index.max() + 1))
    np.add.at(joint, (y_index, x_index), 1 / len(y))
    given = joint / joint.sum(axis=0)
    seen = joint > 0
    return max(0.0, float(-np.sum(joint[seen] * np.log(given[seen]))))
