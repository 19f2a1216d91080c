"""Kernel distance, KID (Binkowski et al. 2018): unbiased squared MMD of a cubic kernel, averaged over random subsets.

The subsets are those of torch-fidelity: with equal seeds both programs give the same number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import (
    Estimate,
    deletions,
    group_numbers,
    require_features,
    require_same_width,
)

GROUPS = 50  # of the jackknife


def kernel_distance(real: np.ndarray, fake: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int) -> Estimate:
    """Return the kernel distance of two sets of features, averaged over subsets and not multiplied by 1000.

    The interval is that of a jackknife over the generated images, with correction of the second order
    (`Estimate.from_jackknife`). Images that are left out are missing in all subsets. The reals stay as they are. The
    interval is not the spread over subsets, which papers print after the mean: the subsets are much smaller than the
    sets.

    Args:
        real, fake: features of real [N, D] and of generated [M, D] images.
        subsets: the number of subsets.
        size: images of each kind in a subset; no more than N and M.
        seed: of the subsets.

    Raises:
        StepError: fewer than two images, values that are not finite, or sets of different D.
    """
    # Column 0 weighs every image once: it is the distance itself. The others leave groups out.
    groups = max(min(GROUPS, len(fake)), 2)
    weights = deletions(groups)[:, group_numbers(0, len(fake), groups)].T
    subset_pairs = _subsets(real, fake, subsets=subsets, size=size, seed=seed)
    distances = np.mean([_squared_mmd(real[r], fake[f], weights[f]) for r, f in subset_pairs], axis=0)
    singles, pairs = distances[1 : 1 + groups], distances[1 + groups :]
    return Estimate.from_jackknife(float(distances[0]), singles, pairs)


def _subsets(
    real: np.ndarray, fake: np.ndarray, *, subsets: int, size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of each subset: min(size, N, M) reals and as many generated images, without replacement."""
    require_features(real, "reference")
    require_features(fake, "generated")
    require_same_width(real.shape[1], fake.shape[1])
    size = min(size, len(real), len(fake))
    if size < 2:
        raise StepError(
            f"the kernel distance needs two images on each side; there are {len(real)} reference, {len(fake)} generated ones"
        )
    rng = np.random.RandomState(seed % 2**32)  # the legacy generator: the same numbers in every version of NumPy
    for _ in range(subsets):
        generated = rng.choice(len(fake), size, replace=False)
        yield rng.choice(len(real), size, replace=False), generated


def _squared_mmd(real: np.ndarray, fake: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return R unbiased estimates of the squared MMD for real x and generated y [m, D].

    In estimate r the generated image i counts weights[i, r] times, 0 or 1 (weights [m, R]). If all weights are 1, the estimate
    is sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 sum_{ij} k(x_i, y_j) / m^2.
    """
    x, y, w = (np.asarray(part, np.float64) for part in (real, fake, weights))
    m = len(x)
    k_xx, k_yy, k_xy = _cubic_kernel(x, x), _cubic_kernel(y, y), _cubic_kernel(x, y)
    within_reals = (k_xx.sum() - np.trace(k_xx)) / (m * (m - 1))
    # Without a group a tiny subset may contain no pair. Its sum is then 0, and the divisor 1 makes the term 0.
    num_pairs = np.maximum(np.square(w.sum(axis=0)) - np.square(w).sum(axis=0), 1)
    within_fakes = (np.einsum("ir,ir->r", w, k_yy @ w) - np.square(w).T @ np.diagonal(k_yy)) / num_pairs
    between = k_xy.mean(axis=0) @ w / np.maximum(w.sum(axis=0), 1)
    estimates: np.ndarray = within_reals + within_fakes - 2 * between
    return estimates


def _cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return k(a, b) = (a.b / D + 1)^3 for every pair, [N, M]."""
    base = a @ b.T / a.shape[1] + 1
    cube: np.ndarray = base * base * base
    return cube
