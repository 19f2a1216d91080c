"""Inception Score (Salimans et al. 2016): exp(mean KL(p(y|x) || p(y))), averaged over equal splits of the images.

The posteriors arrive in chunks, and only sums of them are kept.
"""

from __future__ import annotations

import numpy as np

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import Estimate, poisson_weights, require_same_width

REPLICATES = 100  # of the bootstrap


class SplitScores:
    """Sums of `total` posteriors in `splits` equal parts, in the order of the samples.

    Memory: splits (1 + R) K numbers for R bootstrap replicates and K classes, however large `total` is.

    Raises:
        StepError: a split would contain fewer than two samples.
    """

    def __init__(self, total: int, *, splits: int = 10, seed: int = 0) -> None:
        if total < 2 * splits:
            raise StepError(
                f"{total} samples are too few for an inception score over {splits} splits; at least {2 * splits} are needed"
            )
        self.total, self.count, self._seed = total, 0, seed
        self._ends = np.arange(1, splits + 1) * total // splits
        # Column 0 is the set itself, the others are the replicates; here and below.
        self._weights = np.zeros((splits, 1 + REPLICATES))
        self._entropies = np.zeros((splits, 1 + REPLICATES))  # weighted sums of sum_k p log p
        self._posteriors: np.ndarray | None = None  # weighted sums of p, [splits, 1 + R, K]

    def add(self, log_posteriors: np.ndarray) -> None:
        """Add the next samples.

        Args:
            log_posteriors: logarithms of probabilities [N, K], -inf for 0.

        Raises:
            StepError: a value is NaN, K differs from earlier samples, or there are more samples than `total`.
        """
        values = np.asarray(log_posteriors, np.float64)
        first, self.count = self.count, self.count + len(values)
        self._require_valid(values, first)

        # Weigh each sample once for the set itself, and at random for each replicate.
        p = np.exp(values)
        entropies = np.sum(p * np.where(p > 0, values, 0), axis=1)
        replicates = poisson_weights(first, len(p), replicates=REPLICATES, seed=self._seed)
        weights = np.concatenate([np.ones((len(p), 1)), replicates], axis=1)

        # Add each sample to the sums of its split.
        if self._posteriors is None:
            self._posteriors = np.zeros((*self._weights.shape, p.shape[1]))
        numbers = np.searchsorted(self._ends, np.arange(first, self.count), side="right")
        for split in np.unique(numbers):
            rows = numbers == split
            self._weights[split] += weights[rows].sum(axis=0)
            self._entropies[split] += entropies[rows] @ weights[rows]
            self._posteriors[split] += weights[rows].T @ p[rows]

    def score(self) -> tuple[float, float]:
        """Return mean and standard deviation over splits. Raises StepError unless all `total` samples were added."""
        scores = self._scores()[:, 0]
        return float(scores.mean()), float(scores.std())

    def interval(self) -> Estimate:
        """Return the mean over splits with its 95 % interval from the Poisson bootstrap.

        Each replicate resamples the images within their splits.

        Raises:
            StepError: not all `total` samples were added.
        """
        scores = self._scores().mean(axis=0)
        return Estimate.from_replicates(float(scores[0]), scores[1:], lowest=1.0)

    def _scores(self) -> np.ndarray:
        """Return the scores [splits, 1 + R].

        The mean KL divergence is the mean of sum_k p log p minus sum_k q log q, where q is the mean of p.
        """
        if self._posteriors is None or self.count != self.total:
            raise StepError(f"the inception score of {self.total} samples was requested after {self.count} samples")
        counts = np.maximum(self._weights, 1)  # a replicate of a tiny split may be empty; its score is 1
        q = self._posteriors / counts[..., None]
        marginal = np.sum(q * np.log(np.where(q > 0, q, 1)), axis=2)
        scores: np.ndarray = np.exp(self._entropies / counts - marginal)
        return scores

    def _require_valid(self, values: np.ndarray, first: int) -> None:
        if self.count > self.total:
            raise StepError(f"the inception score was set up for {self.total} samples and got {self.count}")
        if self._posteriors is not None:
            require_same_width(self._posteriors.shape[2], values.shape[1])
        bad = np.flatnonzero(np.isnan(values).any(axis=1))
        if len(bad):
            raise StepError(
                f"log posteriors of {len(bad)} of {len(values)} generated images hold NaN, first number {first + bad[0]}; "
                "evaluate an earlier checkpoint, or check the weights of the network"
            )
