"""The forgetting curve: how well a linear classifier on D's features tells the classes of real images.

SS-GAN (Chen et al. 2019, section 2) shows by it that D, which only has to tell reals from the G of the moment, forgets
what it knew of images, and that self-supervision by rotation keeps it. Nothing here trains: the labels are for measuring only,
and D is left as it was found.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from stylegan.errors import StepError
from stylegan.networks.discriminator import Discriminator
from stylegan.training.step import process_reals

MAX_ITERATIONS = 100  # of L-BFGS; it mostly ends well before
INVERSE_PENALTY = 0.1  # below the usual 1: a small probe has hardly more images than features


def probe_indices(num_images: int, *, count: int, seed: int) -> np.ndarray:
    """Which images of a data set are probed: the same `count` (all, if there are fewer) at every probe of every stage.

    Returns:
        int64 [min(count, num_images)], ascending.
    """
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:count])


def probe(D: Discriminator, images: Tensor, labels: Tensor, *, alpha: float, seed: int, batch: int) -> dict[str, float]:
    """Fit a logistic regression on D's features of one half of the images, score it on the other half.

    Args:
        D: in whatever mode; not changed.
        images: uint8 [N, C, r, r] at D's resolution.
        labels: class numbers, int64 [N].
        alpha: weight of D's newest block, as in training at this moment.
        seed: of the halves, in which each class has its share, and of the order in which D sees the images.
        batch: images that D sees at once. The images of a minibatch-stddev group have one number in common; in a fixed mixture of
            classes, and as large as in training, it is what D is used to and says nothing about the class.

    Returns:
        {"probe/accuracy": share of the second half that is told right, in [0, 1]}.

    Raises:
        StepError: an image has no label, or there are no two classes to tell apart.
    """
    classes = labels.cpu().numpy()
    order = np.random.default_rng(seed).permutation(len(classes))
    by_class = order[np.argsort(classes[order], kind="stable")]
    fit, score = by_class[::2], by_class[1::2]
    _check(classes, fit)
    activations = features(D, images, alpha=alpha, order=order, batch=batch)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=MAX_ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # what the fixed number of iterations gives is compared with the same
        classifier.fit(activations[fit], classes[fit])
    return {"probe/accuracy": float(classifier.score(activations[score], classes[score]))}


@torch.no_grad()
def features(D: Discriminator, images: Tensor, *, alpha: float, order: np.ndarray, batch: int) -> np.ndarray:
    """D's features of uint8 images [N, C, r, r], float64 [N, F], computed in the given order; D in inference for so long."""
    device, was_training = next(D.parameters()).device, D.training
    batch = min(batch, len(order))
    D.eval()
    try:
        parts = []
        for start in range(0, len(order), batch):
            # The last batch is filled up from the first, so that its groups are no smaller.
            rows = torch.from_numpy(order.take(range(start, start + batch), mode="wrap"))
            shown = process_reals(images[rows].to(device), alpha=alpha)
            parts.append(D.features(shown, alpha=alpha).double().cpu())
    finally:
        D.train(was_training)
    found = np.empty((len(order), parts[0].shape[1]))
    found[order] = torch.cat(parts)[: len(order)].numpy()
    return found


def _check(classes: np.ndarray, fit: np.ndarray) -> None:
    cure = "label the data (class folders or dataset.json) or unset snapshots.probe_kimg"
    if (classes < 0).any():
        raise StepError(
            f"snapshots.probe_kimg: {int((classes < 0).sum())} of the {len(classes)} images of the probe have no label; {cure}"
        )
    if len(np.unique(classes[fit])) < 2:
        raise StepError(
            f"snapshots.probe_kimg: the {len(classes)} images of the probe are of fewer than two classes; {cure}"
        )
