"""Inception score (Salimans et al. 2016) of posteriors that stream by: exp(mean KL(p(y|x) || p(y))) over equal splits."""

from __future__ import annotations

import numpy as np

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import Estimate, poisson_weights, require_same_width

REPLICATES = 100  # of the bootstrap


class SplitScores:
    """Sums of `total` posteriors in `splits` equal parts, in the order in which they come.

    Memory: splits (1 + R) K numbers, whatever `total` is. Raises StepError if a split would hold fewer than two samples.
    """

    def __init__(self, total: int, *, splits: int = 10, seed: int = 0) -> None:
        if total < 2 * splits:
            raise StepError(
                f"{total} samples are too few for an inception score over {splits} splits; at least {2 * splits} are needed"
            )
        self.total, self.count, self._seed = total, 0, seed
        self._ends = np.arange(1, splits + 1) * total // splits
        self._weights = np.zeros(
            (splits, 1 + REPLICATES)
        )  # the first column is the set itself, the others are replicates
        self._entropies = np.zeros((splits, 1 + REPLICATES))  # weighted sums of sum_k p log p
        self._posteriors: np.ndarray | None = None  # weighted sums of p, [splits, 1 + R, K]

    def add(self, log_posteriors: np.ndarray) -> None:
        """The next samples [N, K]: logarithms of probabilities, -inf for 0.

        Raises:
            StepError: a value that is not a number, another K, or more samples than `total`.
        """
        values = np.asarray(log_posteriors, np.float64)
        first, self.count = self.count, self.count + len(values)
        self._require_valid(values, first)
        p = np.exp(values)
        entropies = np.sum(p * np.where(p > 0, values, 0), axis=1)
        replicates = poisson_weights(first, len(p), replicates=REPLICATES, seed=self._seed)
        weights = np.concatenate([np.ones((len(p), 1)), replicates], axis=1)
        if self._posteriors is None:
            self._posteriors = np.zeros((*self._weights.shape, p.shape[1]))
        numbers = np.searchsorted(self._ends, np.arange(first, self.count), side="right")
        for split in np.unique(numbers):
            rows = numbers == split
            self._weights[split] += weights[rows].sum(axis=0)
            self._entropies[split] += entropies[rows] @ weights[rows]
            self._posteriors[split] += weights[rows].T @ p[rows]

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over splits. Raises StepError unless all `total` samples were added."""
        scores = self._scores()[:, 0]
        return float(scores.mean()), float(scores.std())

    def interval(self) -> Estimate:
        """The mean with its 95 % interval from the Poisson bootstrap over samples, which stay in their splits."""
        scores = self._scores().mean(axis=0)
        return Estimate.from_replicates(float(scores[0]), scores[1:], lowest=1.0)

    def _scores(self) -> np.ndarray:
        """[splits, 1 + R]. The mean KL is the mean of sum_k p log p minus sum_k q log q, with q the mean of p."""
        if self._posteriors is None or self.count != self.total:
            raise StepError(f"the inception score of {self.total} samples was asked for after {self.count}")
        counts = np.maximum(self._weights, 1)  # a replicate of a tiny split may be empty: its score is then 1
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
