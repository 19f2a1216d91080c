"""Inception Score (Salimans et al. 2016): exp(mean KL(p(y|x) || p(y))), averaged over equal splits of the images.

The posteriors arrive in chunks, and only sums of them are kept.
"""

from __future__ import annotations

import numpy as np

from stylegan.errors import StepError
from stylegan.evaluation.metrics.numerics import Estimate, deletions, group_numbers, require_same_width

GROUPS = 50  # of the jackknife


class SplitScores:
    """Sums of `total` posteriors in `splits` equal parts, in the order of the samples.

    Memory: splits (1 + G) K numbers for G groups of the jackknife and K classes, however large `total` is.

    Raises:
        StepError: a split would contain fewer than two samples.
    """

    def __init__(self, total: int, *, splits: int = 10) -> None:
        if total < 2 * splits:
            raise StepError(
                f"{total} samples are too few for an inception score over {splits} splits; at least {2 * splits} are needed"
            )
        self.total, self.count, self._groups = total, 0, min(GROUPS, total)
        self._ends = np.arange(1, splits + 1) * total // splits
        # Column 0 is the set itself, the others are the groups; here and below.
        self._counts = np.zeros((splits, 1 + self._groups))
        self._entropies = np.zeros((splits, 1 + self._groups))  # sums of sum_k p log p
        self._posteriors: np.ndarray | None = None  # sums of p, [splits, 1 + G, K]

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

        # Each sample counts in the set itself and in its group.
        p = np.exp(values)
        entropies = np.sum(p * np.where(p > 0, values, 0), axis=1)
        own = group_numbers(first, len(p), self._groups)[:, None] == np.arange(self._groups)
        weights = np.concatenate([np.ones((len(p), 1)), own], axis=1)

        # Add each sample to the sums of its split.
        if self._posteriors is None:
            self._posteriors = np.zeros((*self._counts.shape, p.shape[1]))
        numbers = np.searchsorted(self._ends, np.arange(first, self.count), side="right")
        for split in np.unique(numbers):
            rows = numbers == split
            self._counts[split] += weights[rows].sum(axis=0)
            self._entropies[split] += entropies[rows] @ weights[rows]
            self._posteriors[split] += weights[rows].T @ p[rows]

    def score(self) -> tuple[float, float]:
        """Return mean and standard deviation over splits. Raises StepError unless all `total` samples were added."""
        if self._posteriors is None or self.count != self.total:
            raise StepError(f"the inception score of {self.total} samples was requested after {self.count} samples")
        scores = self._scores(self._counts[:, 0], self._entropies[:, 0], self._posteriors[:, 0])
        return float(scores.mean()), float(scores.std())

    def interval(self) -> Estimate:
        """Return the mean over splits with its 95 % interval from a jackknife over the images.

        A group has images of all splits. Noise of the second order is corrected (`Estimate.from_jackknife`).

        Raises:
            StepError: not all `total` samples were added.
        """
        value, _ = self.score()
        assert self._posteriors is not None  # or `score` has raised
        scores = []
        for left in deletions(self._groups)[1:]:
            sums = (part[:, 1:][:, left].sum(axis=1) for part in (self._counts, self._entropies, self._posteriors))
            scores.append(self._scores(*sums).mean())
        singles, pairs = np.split(np.array(scores), 2)
        return Estimate.from_jackknife(value, singles, pairs, lowest=1.0)

    @staticmethod
    def _scores(counts: np.ndarray, entropies: np.ndarray, posteriors: np.ndarray) -> np.ndarray:
        """Return the score of each split, from its sums [splits], [splits] and [splits, K].

        The mean KL divergence is the mean of sum_k p log p minus sum_k q log q, where q is the mean of p.
        """
        counts = np.maximum(counts, 1)  # without a group a tiny split may be empty; its score is 1
        q = posteriors / counts[:, None]
        marginal = np.sum(q * np.log(np.where(q > 0, q, 1)), axis=1)
        scores: np.ndarray = np.exp(entropies / counts - marginal)
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
