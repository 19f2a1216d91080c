"""Frechet distance between two sets of features (Heusel et al. 2017), from mergeable float64 moments."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.linalg.blas import dtrmm
from scipy.linalg.lapack import dpstrf

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import Estimate, poisson_weights, require_features, require_same_width

REPLICATES = 16  # of a bootstrap
BLOCK = 4096  # samples that a bootstrap adds at a time
TOLERANCE = 1e-6  # of the distance, that the fast way may be off


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and sum of squared deviations `m2` [D, D] of feature vectors, in float64."""

    count: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, weights: np.ndarray | None = None) -> Moments:
        """Moments of [N >= 1, D] vectors of any float type, each counted as often as its whole-numbered weight [N] says.

        Raises:
            StepError: no vectors, or values that are not finite.
        """
        values = require_features(np.asarray(features, np.float64), "image")
        if weights is None:
            mean = values.mean(axis=0)
            centred = values - mean
            return cls(len(values), mean, centred.T @ centred)
        count = int(weights.sum(dtype=np.int64))
        held = weights > 0
        values, weights = values[held], weights[held, None].astype(np.float64)
        mean = weights[:, 0] @ values / max(count, 1)
        centred = values - mean
        centred *= np.sqrt(weights)
        return cls(count, mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan et al. 1983)."""
        if not (self.count and other.count):
            return other if other.count else self
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, m2)

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], divided by N - 1 as np.cov does; zeros of a bootstrap replicate that happens to hold a single vector."""
        return self.m2 / max(self.count - 1, 1)

    @cached_property
    def _root(self) -> tuple[np.ndarray, np.ndarray]:
        """L [D, D], of which the lower triangle counts, and an order [D] with L L' = covariance[order][:, order].

        Cholesky's factor with complete pivoting: it exists for singular covariances too, where its last columns are 0, and its
        columns go from the largest to the smallest, which the eigenvalues below owe their accuracy to. Kept: a reference is
        compared with many sets.
        """
        factor, order, rank, _ = dpstrf(self.covariance.T, lower=1, overwrite_a=1)
        factor[:, rank:] = 0
        return factor, order - 1

    def to_npz(self) -> bytes:
        """The bytes of an .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, count=np.int64(self.count), mean=self.mean, m2=self.m2)
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> Moments:
        """What `to_npz` gave. Raises ValueError, KeyError, OSError or BadZipFile for other bytes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(int(arrays["count"]), arrays["mean"], arrays["m2"])


class BootstrapMoments:
    """Moments of R Poisson bootstrap replicates of a set that streams by; its samples are numbered from `first` on.

    Neither chunks nor workers change them: what a replicate holds of a sample depends on the sample's number and the seed
    (`poisson_weights`). Memory: R D^2 8 bytes, 0.5 GiB for 16 replicates of 2048 features, and a block of samples.
    """

    def __init__(self, num_features: int, *, replicates: int = REPLICATES, seed: int, first: int = 0) -> None:
        empty = Moments(0, np.zeros(num_features), np.zeros((num_features, num_features)))
        self._moments = [empty] * replicates
        self._seed, self._next = seed, first
        self._waiting: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        """The next samples [N, D]; large blocks are added at once. Raises StepError for values that are not finite or another D."""
        require_same_width(len(self._moments[0].mean), features.shape[1])
        self._waiting.append(require_features(features, "image"))
        if sum(map(len, self._waiting)) >= BLOCK:
            rows = np.concatenate(self._waiting)
            whole = len(rows) // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                self._add_block(rows[start : start + BLOCK])
            self._waiting = [rows[whole:]]

    def merge(self, other: BootstrapMoments) -> BootstrapMoments:
        """Replicates of both sets together, which must have the same seed and other sample numbers. More samples cannot be added."""
        merged = BootstrapMoments(0, replicates=0, seed=self._seed)
        merged._moments = [a.merge(b) for a, b in zip(self.replicates, other.replicates, strict=True)]
        return merged

    @property
    def replicates(self) -> list[Moments]:
        """Moments of every replicate."""
        rest, self._waiting = self._waiting, []
        if sum(map(len, rest)):
            self._add_block(np.concatenate(rest))
        return self._moments

    def _add_block(self, rows: np.ndarray) -> None:
        rows = rows.astype(np.float64)  # once, not for every replicate
        weights = poisson_weights(self._next, len(rows), replicates=len(self._moments), seed=self._seed)
        self._moments = [moments.merge(Moments.of(rows, weights[:, r])) for r, moments in enumerate(self._moments)]
        self._next += len(rows)


def require_enough(count: int, num_features: int, what: str) -> None:
    """Raise StepError, fit to be a reason for skipping, if a covariance from `count` images would be singular."""
    if count <= num_features:
        raise StepError(
            f"{count} {what} images are too few for a covariance of {num_features} features; at least {num_features + 1} are needed, "
            "better ten times as many: raise evaluation.num_images or add images"
        )


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), at least 0.

    Exact to 1e-6 of itself or, where that is more, to 1e-11 of the traces, which is what rounding of singular covariances leaves.
    Several comparisons with one `a` share its root.

    Raises:
        StepError: no more images than features on one side, or other features on the other.
    """
    require_same_width(len(a.mean), len(b.mean))
    require_enough(a.count, len(a.mean), "reference")
    require_enough(b.count, len(b.mean), "generated")
    return _distance(a, b)


def frechet_interval(reference: Moments, bootstrap: BootstrapMoments, value: float) -> Estimate:
    """The distance `value` of a generated set with its 95 % interval, from the spread of its bootstrap replicates around `value`.

    Replicates hold 63 % of the samples, some more than once, and lie above the value, as every FID of fewer samples does: their
    spread is used and their mean is not. It is the uncertainty of having drawn other images from the same generator; the reference
    is taken as it is, and so is the bias of FID at this number of images, which comparisons at equal numbers share.
    """
    distances = np.array([_distance(reference, replicate) for replicate in bootstrap.replicates])
    return Estimate.from_replicates(value, distances, lowest=0.0)


def _distance(a: Moments, b: Moments) -> float:
    """The distance; the trace of the root is the sum of the singular values of R_a' R_b for any roots S = R R'.

    With R_a = L they are roots of the eigenvalues of L' S_b L, which is symmetric and takes a quarter of the time. Rounding moves
    an eigenvalue by some epsilons of the largest one, one by one at random, which a small one's root shows most; where that could
    be seen in the distance, as in almost singular and almost equal covariances, singular values are computed after all.
    """
    covariance, (factor, order) = b.covariance, a._root
    fixed = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(covariance)
    product = dtrmm(1.0, factor, covariance[np.ix_(order, order)].T, side=1, lower=1, overwrite_b=1)
    product = dtrmm(1.0, factor, product, side=0, lower=1, trans_a=1, overwrite_b=1)
    values = torch.linalg.eigvalsh(torch.from_numpy(product.T)).clamp(min=0)
    distance = float(fixed - 2 * values.sqrt().sum())
    if 2 * _doubt(values) > TOLERANCE * distance:
        distance = float(fixed - 2 * torch.linalg.svdvals(_unordered(a._root).T @ _unordered(b._root)).sum())
    return max(distance, 0.0)


def _doubt(values: torch.Tensor) -> float:
    """How far the sum of the roots of computed eigenvalues [D], ascending, may be off."""
    rounding = 8 * torch.finfo(values.dtype).eps * values[-1]
    errors, lost = (values + rounding).sqrt() - values.sqrt(), values <= rounding
    return float(errors[lost].sum() + errors[~lost].norm())


def _unordered(root: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
    """R [D, D] with R R' = covariance."""
    factor, order = root
    unordered = torch.empty(factor.shape, dtype=torch.float64)
    unordered[torch.from_numpy(order).long()] = torch.from_numpy(factor.T).T.tril()
    return unordered
