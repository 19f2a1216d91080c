"""Fréchet distance between two sets of features (Heusel et al. 2017), from mergeable float64 moments.

The trace of (S_a S_b)^(1/2) is the sum of the singular values of R_a' R_b, for any roots S = R R'. With Cholesky's
factor R_a = L, these are the square roots of the eigenvalues of L' S_b L, which is symmetric. Eigenvalues are computed
first, and singular values only where the error of the eigenvalues could show. Neither is enough alone:

| computation | speed against scipy's sqrtm | largest error seen |
|---|---|---|
| eigenvalues | 21 times | 5e-9 of the distance for almost equal sets, 1e-4 if they are almost singular too |
| singular values | 6.4 times | rounding of the traces |
| both, as here | 21 times; 5 times where both are computed | 1e-6 of the distance, or 1e-11 of the traces |

The speeds are those at 2048 features: CPU time on one thread, medians of 5 rounds in turns. The almost equal sets are
features of a trained classifier without and with 1 % of noise. The almost singular ones have rank 60 in 512 dimensions
and noise of 1e-5, and differ by 1 % in scale. The cause of the error is rounding: it moves each eigenvalue by some
epsilons of the largest one, which the square root of a small eigenvalue shows most.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import Estimate, group_numbers, require_features, require_same_width

GROUPS = 16  # of a jackknife
BLOCK = 4096  # samples that are added to the groups of a jackknife at a time
TOLERANCE = 1e-6  # relative error of the distance that eigenvalues may have


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and sum of squared deviations `m2` [D, D] of feature vectors, in float64.

    Moments of parts of a set can be merged, so a set never has to be in memory as a whole.
    """

    count: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Return the moments of feature vectors [N >= 1, D] of any float type.

        Raises:
            StepError: no vectors, or values that are not finite.
        """
        values = require_features(np.asarray(features, np.float64), "image")
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets together (Chan et al. 1983)."""
        if not (self.count and other.count):
            return other if other.count else self
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, m2)

    def without(self, part: Moments) -> Moments:
        """Return the moments of the rest of the set; `part` is less than all of it."""
        count = self.count - part.count
        mean = self.mean - (part.mean - self.mean) * (part.count / count)
        delta = part.mean - mean
        m2 = self.m2 - part.m2 - np.outer(delta, delta) * (count * part.count / self.count)
        return Moments(count, mean, m2)

    @property
    def covariance(self) -> np.ndarray:
        """The covariance [D, D], divided by N - 1 as np.cov does; zeros for a single vector."""
        return self.m2 / max(self.count - 1, 1)

    @cached_property
    def _root(self) -> tuple[np.ndarray, np.ndarray]:
        """A factor L [D, D] and an order [D] with L L' = covariance[order][:, order]. Only L's lower triangle counts.

        L is Cholesky's factor with complete pivoting. It exists for singular covariances too, with zeros in its last
        columns. Its columns go from the largest to the smallest, which makes the eigenvalues in `_distance` accurate.
        The factor is cached, because one reference is compared with many sets.
        """
        from scipy.linalg.lapack import dpstrf  # here, since scipy takes a second that only computing needs

        factor, order, rank, _ = dpstrf(self.covariance.T, lower=1, overwrite_a=1)
        factor[:, rank:] = 0
        return factor, order - 1

    def to_npz(self) -> bytes:
        """Return the moments as the bytes of an .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, count=np.int64(self.count), mean=self.mean, m2=self.m2)
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, data: bytes) -> Moments:
        """Return the moments that `to_npz` has written.

        Raises:
            ValueError, KeyError, OSError, BadZipFile: the bytes are something else.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(int(arrays["count"]), arrays["mean"], arrays["m2"])


class GroupMoments:
    """Moments of the G groups of a jackknife, of a set whose samples arrive in chunks.

    The groups do not depend on the chunks (see `group_numbers`). Memory: G D^2 8 bytes, which are 0.5 GiB for 16 groups
    of 2048 features, and one block of samples.
    """

    def __init__(self, num_features: int, *, groups: int = GROUPS) -> None:
        empty = Moments(0, np.zeros(num_features), np.zeros((num_features, num_features)))
        self._moments = [empty] * groups
        self._next = 0  # number of the next sample
        self._waiting: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        """Add the next samples [N, D]. They are counted in blocks of BLOCK samples.

        Raises:
            StepError: values that are not finite, or another D.
        """
        require_same_width(len(self._moments[0].mean), features.shape[1])
        self._waiting.append(require_features(features, "image"))
        if sum(map(len, self._waiting)) >= BLOCK:
            rows = np.concatenate(self._waiting)
            whole = len(rows) // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                self._add_block(rows[start : start + BLOCK])
            self._waiting = [rows[whole:]]

    @property
    def groups(self) -> list[Moments]:
        """The moments of every group that has a sample."""
        rest, self._waiting = self._waiting, []
        if sum(map(len, rest)):
            self._add_block(np.concatenate(rest))
        return [moments for moments in self._moments if moments.count]

    def _add_block(self, rows: np.ndarray) -> None:
        numbers = group_numbers(self._next, len(rows), len(self._moments))
        for group in np.unique(numbers):
            self._moments[group] = self._moments[group].merge(Moments.of(rows[numbers == group]))
        self._next += len(rows)


def require_enough(count: int, num_features: int, what: str) -> None:
    """Raise StepError if a covariance from `count` images would be singular. The message becomes the skip reason."""
    if count <= num_features:
        raise StepError(
            f"{count} {what} images are too few for a covariance of {num_features} features; at least {num_features + 1} are needed, "
            "better ten times as many: raise evaluation.num_images or add images"
        )


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), at least 0.

    Its error is at most 1e-6 of the distance or, where that is more, 1e-11 of the traces: rounding of singular
    covariances.

    Args:
        a: the reference; several comparisons with it share its factor.
        b: the generated set.

    Raises:
        StepError: a set has no more images than features, or the sets have different D.
    """
    require_same_width(len(a.mean), len(b.mean))
    require_enough(a.count, len(a.mean), "reference")
    require_enough(b.count, len(b.mean), "generated")
    return _distance(a, b)


def frechet_interval(reference: Moments, groups: Sequence[Moments], value: float) -> Estimate:
    """Return the distance of a generated set with its 95 % interval.

    The interval says how much the distance varies over other images from the same generator, by a jackknife with
    correction of the second order (`Estimate.from_jackknife`). The reference stays as it is, as it does when two
    generators are compared. The bias of FID at this number of images is not corrected; comparisons at equal numbers
    share it.

    Args:
        reference: moments of the reals.
        groups: moments of two or more groups of generated images (`GroupMoments`).
        value: the distance of all of them.
    """
    whole = reduce(Moments.merge, groups)
    singles, pairs = [], []
    for group, following in zip(groups, [*groups[1:], groups[0]], strict=True):
        rest = whole.without(group)
        singles.append(_distance(reference, rest))
        if len(groups) > 2:
            pairs.append(_distance(reference, rest.without(following)))
    return Estimate.from_jackknife(value, np.array(singles), np.array(pairs) if pairs else None, lowest=0.0)


def _distance(a: Moments, b: Moments) -> float:
    """Return the distance by eigenvalues, or by singular values if eigenvalues are not accurate enough (see above)."""
    from scipy.linalg.blas import dtrmm

    # tr (S_a S_b)^(1/2) by eigenvalues of L' S_b L.
    covariance, (factor, order) = b.covariance, a._root
    fixed = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(covariance)
    product = dtrmm(1.0, factor, covariance[np.ix_(order, order)].T, side=1, lower=1, overwrite_b=1)
    product = dtrmm(1.0, factor, product, side=0, lower=1, trans_a=1, overwrite_b=1)
    values = torch.linalg.eigvalsh(torch.from_numpy(product.T)).clamp(min=0)
    distance = float(fixed - 2 * values.sqrt().sum())

    # By singular values of R_a' R_b, if rounding of the eigenvalues could show in the distance.
    if 2 * _root_sum_error(values) > TOLERANCE * distance:
        distance = float(fixed - 2 * torch.linalg.svdvals(_unordered(a._root).T @ _unordered(b._root)).sum())
    return max(distance, 0.0)


def _root_sum_error(values: torch.Tensor) -> float:
    """Estimate the error of the sum of the square roots of computed eigenvalues [D], ascending.

    Rounding moves each eigenvalue at random by some epsilons of the largest one. Eigenvalues no larger than that are
    lost: the errors of their roots add up. The errors of the others are independent, and the norm estimates their sum.
    """
    rounding = 8 * torch.finfo(values.dtype).eps * values[-1]
    errors, lost = (values + rounding).sqrt() - values.sqrt(), values <= rounding
    return float(errors[lost].sum() + errors[~lost].norm())


def _unordered(root: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
    """Return R [D, D] with R R' = covariance, from the lower triangle and the order of `Moments._root`."""
    factor, order = root
    unordered = torch.empty(factor.shape, dtype=torch.float64)
    unordered[torch.from_numpy(order).long()] = torch.from_numpy(factor.T).T.tril()
    return unordered
