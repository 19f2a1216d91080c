"""Arithmetic that metrics share: named random streams, exact float32, 95 % intervals, and checks of features."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from stylegan.errors import StepError

NORMAL_95 = 1.959963984540054  # the quantile of the standard normal distribution at 0.975


def _student_95(freedom: int) -> float:
    """Return the quantile of Student's t at 0.975 for some degrees of freedom."""
    from scipy.special import stdtrit  # a second, which reading a finished report must not take; scipy.stats takes two

    return float(stdtrit(freedom, 0.975))


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


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Let GPUs round the factors of float32 convolutions and products to TF32 within this block, or leave all as it is.

    Processes on CPUs must not enable it: there it would change the products of some CPUs too.
    """
    if not enabled:
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@dataclass(frozen=True)
class Estimate:
    """A value and the two ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def from_jackknife(
        cls,
        value: float,
        singles: np.ndarray,
        pairs: np.ndarray | None = None,
        *,
        lowest: float = -math.inf,
        highest: float = math.inf,
    ) -> Estimate:
        """Return `value` with the interval of a delete-a-group jackknife (Tukey 1958; Kott 2001).

        The samples are in G groups of equal size (see `group_numbers`), which are left out in turn. The interval
        reaches Student's t with G - 1 degrees of freedom times the standard error to either side. Leaving samples out
        moves a biased statistic like a distance, but all values alike, so only their spread counts.

        A statistic that is quadratic in the samples, like a distance near zero, has noise of the second order, the
        interaction of two samples. The jackknife counts it twice (Efron and Stein 1981), and a bootstrap even three
        times. Values without two groups measure that noise, and it is taken off once.

        Args:
            value: of all samples.
            singles: values without each of the G >= 2 groups.
            pairs: values without the groups g and g + 1 (the last: G - 1 and 0), [G]. None for statistics whose noise
                of the second order does not matter; without effect for G = 2.
            lowest, highest: the bounds of the quantity; no end is beyond them.
        """
        groups = len(singles)
        variance = (groups - 1) / groups * np.square(singles - singles.mean()).sum()
        if pairs is not None and groups > 2:
            # Efron and Stein 1981, section 4: terms that contain two groups, without those that contain one.
            both = value - (groups - 1) / groups * (singles + np.roll(singles, -1)) + (groups - 2) / groups * pairs
            variance = max(variance - groups * (groups - 1) / 2 * np.var(both, ddof=1), variance / 2)
        margin = _student_95(groups - 1) * float(np.sqrt(variance))
        return cls(value, max(value - margin, lowest), min(value + margin, highest))

    @classmethod
    def of_trimmed_mean(cls, values: np.ndarray, low: float, high: float) -> Estimate:
        """Return the mean of the values in [low, high], two of the order statistics, with its 95 % interval.

        The cut moves with the values beyond it, so they contribute to the error of the mean. The standard error is that
        of the winsorised values, in which each value beyond the cut is replaced by the cut (Tukey and McLaughlin 1963;
        Yuen 1974).

        Args:
            values: [N], independent; at least two in [low, high].
            low, high: the smallest and the largest value that counts.
        """
        kept = values[(values >= low) & (values <= high)]
        mean, deviation = float(np.mean(kept)), float(np.std(np.clip(values, low, high), ddof=1))
        margin = _student_95(len(kept) - 1) * deviation * math.sqrt(len(values)) / len(kept)
        return cls(mean, mean - margin, mean + margin)

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


def group_numbers(first: int, count: int, groups: int) -> np.ndarray:
    """Return the groups, from 0, of the samples first ... first + count - 1 in a jackknife of so many groups.

    The group of a sample depends on its number alone. A set may therefore be cut into chunks anywhere.
    """
    return np.arange(first, first + count) % groups


def deletions(groups: int) -> np.ndarray:
    """Return which groups count in each value of a jackknife, bool [1 + 2 G, G].

    The rows are: all groups, then all but each one, then all but each one and the next (see `Estimate.from_jackknife`).
    """
    missing = np.eye(groups, dtype=bool)
    return np.concatenate([np.ones((1, groups), bool), ~missing, ~(missing | np.roll(missing, 1, axis=1))])


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
