"""Arithmetic that metrics share: named random streams, exact float32, 95 % intervals, and checks of features."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, t

from stylegan.errors import StepError

NORMAL_95 = float(norm.ppf(0.975))


def stream(*key: str | int, device: str = "cpu") -> torch.Generator:
    """Return a new random generator whose numbers depend on its name alone, e.g. stream(seed, "fid", chunk, "z")."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    return torch.Generator(device).manual_seed(seed)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 convolutions and products in full precision and deterministically, also on GPUs.

    TF32 keeps 10 bits of the mantissa. With it two images that differ by `ppl_epsilon` = 1e-4 would be equal.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Estimate:
    """A value and the two ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def from_replicates(cls, value: float, replicates: np.ndarray, *, lowest: float = -math.inf) -> Estimate:
        """Return `value` with the interval that R >= 2 bootstrap replicates give it.

        The interval reaches Student's t times the standard deviation of the replicates to either side. It is centred on
        the value and not on the replicates: resampling repeats samples, which moves the mean of a distance upwards but
        keeps its spread.

        Args:
            value: the value of the set itself.
            replicates: values of the R resampled sets.
            lowest: the smallest value that the quantity can have; no end is below it.
        """
        margin = float(t.ppf(0.975, len(replicates) - 1) * np.std(replicates, ddof=1))
        return cls(value, max(value - margin, lowest), value + margin)

    @classmethod
    def of_mean(cls, values: np.ndarray) -> Estimate:
        """Return the mean of [N >= 2] independent values with its normal interval."""
        mean, margin = float(np.mean(values)), NORMAL_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return cls(mean, mean - margin, mean + margin)

    @classmethod
    def of_share(cls, hits: np.ndarray) -> Estimate:
        """Return the share of true values among [N >= 1] independent outcomes with its Wilson interval (Wilson 1927).

        This interval is never empty and never leaves [0, 1], not even for shares of 0 and 1.
        """
        count, share, z2 = len(hits), float(np.mean(hits)), NORMAL_95**2
        centre = (share + z2 / (2 * count)) / (1 + z2 / count)
        margin = math.sqrt(share * (1 - share) * z2 / count + (z2 / (2 * count)) ** 2) / (1 + z2 / count)
        return cls(share, max(min(centre - margin, share), 0.0), min(max(centre + margin, share), 1.0))


# P(X <= k) of a Poisson variable with mean 1. Larger k add less than float64 can hold.
_POISSON = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(18)])


def poisson_weights(first: int, count: int, *, replicates: int, seed: int) -> np.ndarray:
    """Return how often each bootstrap replicate contains each sample: uint8 [count, replicates], mean 1.

    The weights of a sample depend on its number and the seed alone. A set may therefore be cut into chunks anywhere,
    and any worker may count them (the Poisson bootstrap: Hanley and MacGibbon 2006; Chamandy et al. 2012).

    Args:
        first, count: the samples first ... first + count - 1.
        replicates: the number of replicates.
        seed: of all weights of one evaluation.
    """
    key = int.from_bytes(hashlib.sha256(repr((seed, "bootstrap")).encode()).digest()[:16], "big")

    # Philox counts in blocks of four numbers. Each sample owns whole blocks, at a position that its number gives.
    blocks = -(-replicates // 4)
    raw = np.random.Philox(key=key, counter=first * blocks).random_raw(count * blocks * 4)

    # Invert the distribution function at uniform numbers in [0, 1).
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    weights = np.searchsorted(_POISSON, uniform, side="right").astype(np.uint8)
    return weights.reshape(count, blocks * 4)[:, :replicates]


def require_features(features: np.ndarray, what: str) -> np.ndarray:
    """Return the features [N, D] unchanged if there is at least one vector and all values are finite.

    Args:
        features: feature vectors.
        what: names the set in the message: reference, generated, image.

    Raises:
        StepError: no vectors, or a value that is not finite.
    """
    if len(features) == 0:
        raise StepError(
            f"there are no {what} features: at least one image is needed; raise evaluation.num_images or add images"
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise StepError(
            f"{len(bad)} of {len(features)} {what} feature vectors hold NaN or infinity, first number {bad[0]}; "
            "evaluate an earlier checkpoint, or check the images and the weights of the feature network"
        )
    return features


def require_same_width(reference: int, generated: int) -> None:
    """Raise StepError unless the vectors of both sets have the same number of features."""
    if reference != generated:
        raise StepError(
            f"reference vectors have {reference} features, generated ones {generated}; take both from one feature network"
        )
