"""Linear separability (Karras et al. 2019, section 4.2): can a hyperplane in latent space tell the classes of the images?

The paper scores 40 binary attributes of faces, exp(sum of 40 entropies). Here the class of the data set is one attribute with K
values: the linear SVM is one-versus-rest and the joint distribution K x K; for K = 2 this is exactly the paper's score of one
attribute. 1 is perfect, K says that latents tell nothing about the class.
"""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from stylegan.errors import StepError


def most_confident(confidence: np.ndarray) -> np.ndarray:
    """Indices of the half of [N] values that is largest (ties: the earlier), in descending order."""
    return np.argsort(-confidence, kind="stable")[: len(confidence) // 2]


def separability(latents: np.ndarray, classes: np.ndarray) -> float:
    """exp H(Y|X) for latents [N, L], the classifier's classes Y [N] and the SVM's classes X on the same points.

    Raises:
        StepError, fit to be a reason for skipping: one class only, or the SVM cannot be fitted.
    """
    if len(np.unique(classes)) < 2:
        raise StepError(f"all {len(classes)} confident images are of one class: there is nothing to separate")
    try:
        with warnings.catch_warnings():
            # v1 also takes what 1,000 iterations give.
            warnings.simplefilter("ignore", ConvergenceWarning)
            predicted = LinearSVC(random_state=0).fit(latents, classes).predict(latents)
    except ValueError as error:
        raise StepError(f"the linear SVM failed: {' '.join(str(error).split())}") from error
    return float(np.exp(conditional_entropy(classes, predicted)))


def conditional_entropy(y: np.ndarray, x: np.ndarray) -> float:
    """H(Y|X) in nats of two label vectors [N]; at least 0."""
    y_index, x_index = (np.unique(labels, return_inverse=True)[1] for labels in (y, x))
    joint = np.zeros((y_index.max() + 1, x_index.max() + 1))
    np.add.at(joint, (y_index, x_index), 1 / len(y))
    given = joint / joint.sum(axis=0)
    seen = joint > 0
    return max(0.0, float(-np.sum(joint[seen] * np.log(given[seen]))))
