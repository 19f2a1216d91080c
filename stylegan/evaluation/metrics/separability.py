"""Linear separability (Karras et al. 2019, section 4.2): how well a hyperplane in latent space predicts attributes.

For each attribute, a classifier labels the images, and the half that it is most confident about is kept. A linear SVM
is fitted to the latents of these images. The score is exp(sum over attributes of H(Y|X)), where Y is the classifier's
answer and X the SVM's. 1 is perfect; an attribute that the latents say nothing about at most doubles the score.

There are two differences from StyleGAN v1:

- If the SVM of an attribute fails, v1 counts the attribute as perfect. Here it is an error.
- Attributes of the form "is of class k", with three classes or more, exclude each other. A classifier is then more
  confident in each "no" than in any "yes", and the most confident half would contain no "yes" at all. Half of each
  answer is kept instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stylegan.errors import StepError, one_line, shown


@dataclass(frozen=True)
class AttributeScore:
    """The score of one attribute.

    `share` is the share of the kept images that have the attribute. `entropy_w` and `entropy_z` are H(Y|X) in nats in
    both spaces; they are None if `error` says why the attribute cannot be scored, the first also of a generator that has no
    w. `normal` [L] is the unit normal of the
    hyperplane in w, towards the images that have the attribute, and None also where w does not vary at all.
    """

    name: str
    share: float
    entropy_w: float | None = None
    entropy_z: float | None = None
    error: str | None = None
    normal: np.ndarray | None = field(default=None, compare=False, repr=False)


def score_attribute(
    name: str, logits: np.ndarray, *, w: np.ndarray | None = None, z: np.ndarray, exclusive: bool = False
) -> AttributeScore:
    """Score one attribute.

    Args:
        name: of the attribute.
        logits: the classifier's outputs [N]; positive means that the image has the attribute.
        w, z: latents [N, L] of the images; no w of a generator that has none.
        exclusive: the attribute is one of at least three classes; keep half of each answer.
    """
    # Keep the most confident half of all images, or of each answer.
    has = logits > 0
    parts = (np.flatnonzero(has), np.flatnonzero(~has)) if exclusive else (np.arange(len(logits)),)
    kept = np.concatenate([part[most_confident(np.abs(logits[part]))] for part in parts])
    answers = has[kept]
    share = float(answers.mean())

    # Fit both SVMs.
    try:
        entropy_w, normal = (None, None) if w is None else separate(w[kept], answers)
        entropy_z, _ = separate(z[kept], answers)
        return AttributeScore(name, share, entropy_w, entropy_z, normal=normal)
    except StepError as error:
        return AttributeScore(name, share, error=str(error))


def separability(scores: Sequence[AttributeScore]) -> tuple[float | None, float]:
    """Return the separability in w (None without a w) and in z: exp(sum of entropies).

    Raises:
        StepError: an attribute could not be scored. The message becomes the skip reason.
    """
    failed = [f"{shown(score.name)}: {score.error}" for score in scores if score.error]
    if failed:
        more = f" ({len(failed) - 1} more)" if len(failed) > 1 else ""
        raise StepError(f"{len(failed)} of {len(scores)} attributes cannot be scored; {failed[0]}{more}")

    in_w, in_z = [score.entropy_w for score in scores], [score.entropy_z for score in scores]
    return None if None in in_w else _score(in_w), _score(in_z)


def _score(entropies: Sequence[float | None]) -> float:
    return float(np.exp(sum(entropy for entropy in entropies if entropy is not None)))


def most_confident(confidence: np.ndarray) -> np.ndarray:
    """Return the indices of the largest half of the values [N], largest first; of equal values the earlier first."""
    return np.argsort(-confidence, kind="stable")[: len(confidence) // 2]


def separate(latents: np.ndarray, answers: np.ndarray) -> tuple[float, np.ndarray | None]:
    """Fit a linear SVM to latents and a classifier's answers.

    Args:
        latents: [N, L].
        answers: the classifier's answers [N].

    Returns:
        H(Y|X) in nats of the points that the SVM was fitted to, Y the classifier's answers and X the SVM's; and the unit
        normal [L] of the SVM's hyperplane, towards the positive answers. None: no hyperplane, as latents are all alike.

    Raises:
        StepError: all answers are the same, or the SVM cannot be fitted.
    """
    from sklearn.exceptions import ConvergenceWarning  # takes a second
    from sklearn.svm import LinearSVC

    if len(np.unique(answers)) < 2:
        has = "have" if answers.any() else "lack"
        raise StepError(f"all {len(answers)} confident images {has} it: there is nothing to separate")
    try:
        with warnings.catch_warnings():
            # As v1 does, accept the SVM after 1,000 iterations whether it has converged or not.
            warnings.simplefilter("ignore", ConvergenceWarning)
            svm = LinearSVC(random_state=0).fit(latents, answers)
            predicted = svm.predict(latents)
    except ValueError as error:
        raise StepError(f"the linear SVM failed: {one_line(error)}") from error
    length = float(np.linalg.norm(svm.coef_[0]))
    return conditional_entropy(answers, predicted), svm.coef_[0] / length if length > 0 else None


def conditional_entropy(y: np.ndarray, x: np.ndarray) -> float:
    """Return H(Y|X) in nats of two label vectors [N]; at least 0."""
    y_index, x_index = (np.unique(labels, return_inverse=True)[1] for labels in (y, x))
    joint = np.zeros((y_index.max() + 1, x_index.max() + 1))
    np.add.at(joint, (y_index, x_index), 1 / len(y))
    given = joint / joint.sum(axis=0)
    seen = joint > 0
    return max(0.0, float(-np.sum(joint[seen] * np.log(given[seen]))))
