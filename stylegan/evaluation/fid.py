"""Frechet distance between two sets of features (Heusel et al. 2017), from mergeable float64 moments."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from stylegan.errors import StepError


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and sum of squared deviations `m2` [D, D] of feature vectors, in float64."""

    count: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Moments of [N >= 1, D] vectors of any float type."""
        values = np.asarray(features, np.float64)
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(len(values), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan et al. 1983)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, m2)

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], divided by N - 1 as np.cov does."""
        return self.m2 / (self.count - 1)

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


def require_enough(count: int, num_features: int, what: str) -> None:
    """Raise StepError, fit to be a reason for skipping, if a covariance from `count` images would be singular."""
    if count <= num_features:
        raise StepError(
            f"{count} {what} images are too few for a covariance of {num_features} features; at least {num_features + 1} are needed, "
            "better ten times as many: raise evaluation.num_images or add images"
        )


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), at least 0.

    The trace of the root is the sum of the singular values of S_a^(1/2) S_b^(1/2): real and symmetric by construction, and exact
    to about 1e-15 of the largest variance even for singular covariances, where roots of eigenvalues lose half of the digits.

    Raises:
        StepError: no more images than features on one side.
    """
    require_enough(a.count, len(a.mean), "reference")
    require_enough(b.count, len(b.mean), "generated")
    cov_a, cov_b = a.covariance, b.covariance
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(float(distance), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric positive semidefinite root."""
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
