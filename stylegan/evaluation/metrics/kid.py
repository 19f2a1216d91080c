"""Kernel distance, KID (Binkowski et al. 2018): the unbiased squared MMD of a cubic kernel, averaged over subsets.

Subsets are drawn as torch-fidelity draws them: with equal seeds both give the same number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import Estimate, poisson_weights, require_features, require_same_width

REPLICATES = 100  # of the bootstrap


def kernel_distance(real: np.ndarray, fake: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int) -> Estimate:
    """Mean over subsets of the kernel distance of real [N, D] and generated [M, D] features; not multiplied by 1000.

    The interval is that of the Poisson bootstrap over the generated images: every replicate weighs each of them in all subsets,
    where pairs of an image with itself stay left out. The reals are taken as they are. It is not the spread over subsets, which
    are much smaller than the sets; for that take the standard deviation of `subset_distances`.

    Raises:
        StepError: fewer than two images, values that are not finite, or sets of different D.
    """
    weights = poisson_weights(0, len(fake), replicates=REPLICATES, seed=seed)
    weights = np.concatenate([np.ones_like(weights[:, :1]), weights], axis=1)
    pairs = _subsets(real, fake, subsets=subsets, size=size, seed=seed)
    distances = np.mean([_squared_mmd(real[r], fake[f], weights[f]) for r, f in pairs], axis=0)
    return Estimate.from_replicates(float(distances[0]), distances[1:])


def subset_distances(
    real: np.ndarray, fake: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int
) -> np.ndarray:
    """[subsets]: the distances whose mean `kernel_distance` is; their standard deviation is what papers print after the mean."""
    pairs = _subsets(real, fake, subsets=subsets, size=size, seed=seed)
    return np.concatenate([_squared_mmd(real[r], fake[f], np.ones((len(f), 1))) for r, f in pairs])


def _subsets(
    real: np.ndarray, fake: np.ndarray, *, subsets: int, size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of min(size, N, M) reals and as many generated images, without replacement, for every subset."""
    require_features(real, "reference")
    require_features(fake, "generated")
    require_same_width(real.shape[1], fake.shape[1])
    size = min(size, len(real), len(fake))
    if size < 2:
        raise StepError(
            f"the kernel distance needs two images on each side; there are {len(real)} reference, {len(fake)} generated ones"
        )
    rng = np.random.RandomState(seed % 2**32)  # the legacy generator: its numbers never change between versions
    for _ in range(subsets):
        generated = rng.choice(len(fake), size, replace=False)
        yield rng.choice(len(real), size, replace=False), generated


def _squared_mmd(real: np.ndarray, fake: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] unbiased estimates for real and generated [m, D], in each of which generated image i counts weights[i, r] times (w [m, R]).

    With w = 1: sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 sum_{ij} k(x_i, y_j) / m^2.
    """
    x, y, w = (np.asarray(part, np.float64) for part in (real, fake, weights))
    m = len(x)
    k_xx, k_yy, k_xy = _cubic_kernel(x, x), _cubic_kernel(y, y), _cubic_kernel(x, y)
    within_reals = (k_xx.sum() - np.trace(k_xx)) / (m * (m - 1))
    # A replicate of a tiny subset may hold no pair: both sums are then 0, and so is the term.
    num_pairs = np.maximum(np.square(w.sum(axis=0)) - np.square(w).sum(axis=0), 1)
    within_fakes = (np.einsum("ir,ir->r", w, k_yy @ w) - np.square(w).T @ np.diagonal(k_yy)) / num_pairs
    between = k_xy.mean(axis=0) @ w / np.maximum(w.sum(axis=0), 1)
    estimates: np.ndarray = within_reals + within_fakes - 2 * between
    return estimates


def _cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, M]: (a.b / D + 1)^3."""
    base = a @ b.T / a.shape[1] + 1
    cube: np.ndarray = base * base * base
    return cube
