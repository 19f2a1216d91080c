"""Measures the forgetting curve: how well a linear classifier on D's features recognises the classes of real images.

D only has to distinguish reals from what G makes at the moment. SS-GAN (Chen et al. 2019, section 2) shows by such a
probe that D forgets what it knew of images, and that self-supervision by rotation prevents that. The probe trains
nothing: labels are used for measuring only, and D stays unchanged. Beside the features that the score is made of, it looks
at what each block of D has computed (Zhang et al. 2016, "Colorful Image Colorization", section 3.2).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from stylegan.errors import StepError
from stylegan.networks.discriminator import AnyDiscriminator
from stylegan.training.step import process_reals

MAX_ITERATIONS = 100  # of L-BFGS, which mostly ends well before
INVERSE_PENALTY = 0.1  # below the usual 1, because a small probe has hardly more images than features
# Numbers for each image that a block's maps are averaged down to. Zhang et al. take 9,000 and a million images; of 1,000
# images of CIFAR-10 a classifier learns no more from 8,192 numbers than from 2,048 and takes five times as long.
MAP_FEATURES = 2048


def probe_indices(num_images: int, *, count: int, seed: int) -> np.ndarray:
    """Choose the images of a data set to probe: the same ones at every probe of every stage.

    Returns:
        int64 [min(count, num_images)], ascending.
    """
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:count])


def probe(
    D: AnyDiscriminator, images: Tensor, labels: Tensor, *, alpha: float, seed: int, batch: int
) -> dict[str, float]:
    """Fit a logistic regression on D's features of one half of the images and score it on the other half; so for each block.

    Args:
        D: in any mode; not changed.
        images: uint8 [N, C, r, r] at D's resolution.
        labels: class numbers, int64 [N].
        alpha: weight of D's newest block, as in training at this moment.
        seed: of the two halves, which both contain every class in proportion, and of the order in which D sees the
            images.
        batch: number of images that D sees at once. The images of a minibatch-stddev group share one feature. In a
            random mixture of classes, and in batches as large as in training, its values are familiar to D and do not
            depend on the class.

    Returns:
        Shares of the second half that are classified correctly, in [0, 1]: `probe/accuracy` by D's features,
        `probe/accuracy/block1` by the averaged maps of its first block, which the images enter, and so on.

    Raises:
        StepError: an image has no label, or the images are of fewer than two classes.
    """
    # Shuffle, and take every second image of each class.
    classes = labels.cpu().numpy()
    order = np.random.default_rng(seed).permutation(len(classes))
    by_class = order[np.argsort(classes[order], kind="stable")]
    fitted, scored = by_class[::2], by_class[1::2]
    _check_classes(classes, fitted)

    # Compute the features of all images, then fit and score a classifier on those of each kind.
    features, *blocks = compute_features(D, images, alpha=alpha, order=order, batch=batch)
    activations = {"probe/accuracy": features}
    activations |= {f"probe/accuracy/block{number}": block for number, block in enumerate(blocks, start=1)}
    accuracies = {}
    for name, values in activations.items():
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=MAX_ITERATIONS))
        with warnings.catch_warnings():
            # A fit that has not converged still compares with the other probes: all have the same number of iterations.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(values[fitted], classes[fitted])
        accuracies[name] = float(classifier.score(values[scored], classes[scored]))
    return accuracies


@torch.no_grad()
def compute_features(
    D: AnyDiscriminator, images: Tensor, *, alpha: float, order: np.ndarray, batch: int
) -> list[np.ndarray]:
    """Compute D's features, and the averaged maps of its blocks, of uint8 images [N, C, r, r] in evaluation mode.

    Args:
        alpha: weight of D's newest block.
        order: the order in which D sees the images, int64 [N].
        batch: number of images that D sees at once.

    Returns:
        The features, float64 [N, F], then those of each block, float32 [N, at most MAP_FEATURES unless it has more
        channels]; rows in the order of `images`.
    """
    device, was_training = next(D.parameters()).device, D.training
    batch = min(batch, len(order))
    D.eval()
    try:
        parts = []
        for start in range(0, len(order), batch):
            # The last batch is filled up from the first one, so that its minibatch-stddev groups are no smaller.
            rows = torch.from_numpy(order.take(range(start, start + batch), mode="wrap"))
            reals = process_reals(images[rows].to(device), alpha=alpha)
            maps, features = D.maps_and_features(reals, alpha=alpha)
            parts.append([features.double().cpu(), *(average(block).cpu() for block in maps)])
    finally:
        D.train(was_training)
    return [_in_order(batches, order) for batches in zip(*parts, strict=True)]


def average(maps: Tensor) -> Tensor:
    """Average maps [N, C, H, H] over squares to the largest side with at most MAP_FEATURES numbers for each image.

    Returns:
        float32 [N, C * side^2].
    """
    side = maps.shape[-1]
    while side > 1 and maps.shape[1] * side**2 > MAP_FEATURES:
        side //= 2
    return F.avg_pool2d(maps.float(), maps.shape[-1] // side).flatten(1)


def _in_order(batches: Sequence[Tensor], order: np.ndarray) -> np.ndarray:
    """Return the rows of batches in the order of the images, without those that fill up the last batch."""
    rows = torch.cat(list(batches))[: len(order)].numpy()
    found = np.empty_like(rows)
    found[order] = rows
    return found


def _check_classes(classes: np.ndarray, fitted: np.ndarray) -> None:
    cure = "label the data (class folders or dataset.json) or unset snapshots.probe_kimg"
    unlabelled = int((classes < 0).sum())
    if unlabelled:
        raise StepError(
            f"snapshots.probe_kimg: {unlabelled} of the {len(classes)} images of the probe have no label; {cure}"
        )
    if len(np.unique(classes[fitted])) < 2:
        raise StepError(
            f"snapshots.probe_kimg: the {len(classes)} images of the probe are of fewer than two classes; {cure}"
        )
