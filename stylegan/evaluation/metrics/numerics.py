"""What all metrics share: named random streams, arithmetic without shortcuts, 95 % intervals, and the checks of features."""

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
    """A fresh random generator that depends on its name alone, e.g. stream(seed, "fid", chunk, "z")."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    return torch.Generator(device).manual_seed(seed)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Full float32 convolutions and products, and the same result every time, also on GPUs.

    TF32 keeps 10 bits of mantissa: images that differ by `ppl_epsilon` = 1e-4 would not differ any more.
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
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def from_replicates(cls, value: float, replicates: np.ndarray, *, lowest: float = -math.inf) -> Estimate:
        """`value` with the spread of its R >= 2 bootstrap replicates: plus and minus Student's t times their standard deviation.

        The interval is around the value and not around the replicates: resampling repeats samples, which moves the mean of a
        distance upwards but leaves its spread. No end is below `lowest`, the smallest value that the quantity can have.
        """
        margin = float(t.ppf(0.975, len(replicates) - 1) * np.std(replicates, ddof=1))
        return cls(value, max(value - margin, lowest), value + margin)

    @classmethod
    def of_mean(cls, values: np.ndarray) -> Estimate:
        """Mean of [N >= 2] independent values, with its normal interval."""
        mean, margin = float(np.mean(values)), NORMAL_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return cls(mean, mean - margin, mean + margin)

    @classmethod
    def of_share(cls, hits: np.ndarray) -> Estimate:
        """Share of true ones among [N >= 1] independent outcomes, with Wilson's interval (1927): never empty, never outside [0, 1]."""
        count, share, z2 = len(hits), float(np.mean(hits)), NORMAL_95**2
        centre = (share + z2 / (2 * count)) / (1 + z2 / count)
        margin = math.sqrt(share * (1 - share) * z2 / count + (z2 / (2 * count)) ** 2) / (1 + z2 / count)
        return cls(share, max(min(centre - margin, share), 0.0), min(max(centre + margin, share), 1.0))


# P(X <= k) of a Poisson variable with mean 1; float64 has no more steps after 17.
_POISSON = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(18)])


def poisson_weights(first: int, count: int, *, replicates: int, seed: int) -> np.ndarray:
    """How often each bootstrap replicate holds the samples first ... first + count - 1: uint8 [count, replicates], mean 1.

    The weights of a sample depend on its number and the seed alone, so a set may be cut into chunks anywhere and counted on any
    worker (the Poisson bootstrap: Hanley and MacGibbon 2006; Chamandy et al. 2012).
    """
    key = int.from_bytes(hashlib.sha256(repr((seed, "bootstrap")).encode()).digest()[:16], "big")
    blocks = -(
        -replicates // 4
    )  # Philox counts in blocks of four numbers: a sample owns whole blocks, at a place known beforehand
    raw = np.random.Philox(key=key, counter=first * blocks).random_raw(count * blocks * 4)
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    weights = np.searchsorted(_POISSON, uniform, side="right").astype(np.uint8)
    return weights.reshape(count, blocks * 4)[:, :replicates]


def require_features(features: np.ndarray, what: str) -> np.ndarray:
    """The [N >= 1, D] finite features, as they are. Raises StepError, with `what` as "reference", for others."""
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
    """Raise StepError unless both sets have as many features."""
    if reference != generated:
        raise StepError(
            f"reference vectors have {reference} features, generated ones {generated}; take both from one feature network"
        )
