"""`make bench-intervals`: measures whether the 95 % intervals of metrics are as wide as chance makes the metrics differ.

A generator is a distribution of features here. Many sets of images are drawn from it and compared with the same reals,
as the gate does with two models. For each metric and size the table has:

- `ratio`: the mean half width of the interval over 1.96 standard deviations of the value over the sets; 1 is right.
- `false promotion`: the share of pairs of sets of which the gate would call one better than the other although one
  generator made both; 0.025 is right.

`python -m benchmarks.bench_intervals [fid] [kid] [is] [pr] [ppl]` in tests/ measures single metrics. The seeds are fixed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stylegan.evaluation.metrics.fid import GroupMoments, Moments, frechet_distance, frechet_interval
from stylegan.evaluation.metrics.inception_score import SplitScores
from stylegan.evaluation.metrics.kid import kernel_distance
from stylegan.evaluation.metrics.numerics import NORMAL_95, Estimate
from stylegan.evaluation.metrics.ppl import path_length
from stylegan.evaluation.metrics.precision_recall import Manifold, manifold_metrics

# Draws one set of a generator and returns its estimates by name.
Measure = Callable[[np.random.Generator], dict[str, Estimate]]


@dataclass(frozen=True)
class Case:
    """One metric on sets of one kind and size."""

    metric: str
    sets: str
    measure: Measure


@dataclass(frozen=True)
class Spread:
    """The widths of the intervals of a value, compared with its spread over many sets of one generator."""

    mean: float
    ratio: float
    false_promotion: float


def compare(estimates: Sequence[Estimate]) -> Spread:
    """Compare the intervals of independent sets of one generator with the spread of their values."""
    values = np.array([estimate.value for estimate in estimates])
    widths = np.array([estimate.high - estimate.low for estimate in estimates]) / 2
    one, other = np.triu_indices(len(values), 1)
    beyond = np.abs(values[one] - values[other]) > np.hypot(widths[one], widths[other])
    ratio = widths.mean() / (NORMAL_95 * values.std(ddof=1))
    return Spread(float(values.mean()), float(ratio), float(beyond.mean() / 2))  # either of a pair may be the better


def spreads(case: Case, draws: int) -> dict[str, Spread]:
    """Measure so many sets of a case; return the spread of each value by name."""
    found = [case.measure(np.random.default_rng([seed, 1])) for seed in range(draws)]
    return {name: compare([estimates[name] for estimates in found]) for name in found[0]}


def features(rng: np.random.Generator, count: int, size: int, *, shift: float = 0.0) -> np.ndarray:
    """Draw features [count, size] like those of a classifier: ten classes, correlated, none negative, float32.

    `shift` makes the images of each class differ more than they should.
    """
    fixed = np.random.default_rng(0)
    mixing, centres = fixed.standard_normal((32, size)) / 6, fixed.standard_normal((10, 32))
    hidden = (1 + shift) * rng.standard_normal((count, 32)) + centres[rng.integers(0, 10, count)]
    return np.maximum(hidden @ mixing + 0.3 * rng.standard_normal((count, size)), 0).astype(np.float32)


def reals(count: int, size: int) -> np.ndarray:
    """Return the real features, the same in every call."""
    return features(np.random.default_rng(1), count, size)


def fid(num_images: int, size: int, *, shift: float = 0.0) -> Case:
    """Return the case of a Frechet distance with so many images on each side."""
    reference = Moments.of(reals(num_images, size))

    def measure(rng: np.random.Generator) -> dict[str, Estimate]:
        generated = features(rng, num_images, size, shift=shift)
        groups = GroupMoments(size)
        groups.add(generated)
        value = frechet_distance(reference, Moments.of(generated))
        return {"fid": frechet_interval(reference, groups.groups, value)}

    return Case("fid", f"{size} features, {num_images:,} images, {_moved(shift)}", measure)


def kid(num_images: int, size: int, *, shift: float = 0.0, subsets: int = 20, subset_size: int = 400) -> Case:
    """Return the case of a kernel distance with so many images on each side."""
    real = reals(num_images, size)

    def measure(rng: np.random.Generator) -> dict[str, Estimate]:
        fake = features(rng, num_images, size, shift=shift)
        return {"kid": kernel_distance(real, fake, subsets=subsets, size=subset_size, seed=0)}

    sets = f"{size} features, {num_images:,} images, {subsets} subsets of {subset_size}, {_moved(shift)}"
    return Case("kid", sets, measure)


def inception_score(num_images: int, num_classes: int, *, splits: int = 10) -> Case:
    """Return the case of an Inception Score."""

    def measure(rng: np.random.Generator) -> dict[str, Estimate]:
        logits = 2 * rng.standard_normal((num_images, num_classes))
        scores = SplitScores(num_images, splits=splits)
        scores.add(torch.log_softmax(torch.from_numpy(logits), dim=1).numpy())
        return {"is": scores.interval()}

    return Case("is", f"{num_classes:,} classes, {num_images:,} images, {splits} splits", measure)


def manifold(num_images: int, size: int, *, num_reals: int, shift: float = 0.0) -> Case:
    """Return the case of precision, recall, density and coverage."""
    real = Manifold.of(reals(num_reals, size))

    def measure(rng: np.random.Generator) -> dict[str, Estimate]:
        found = manifold_metrics(real, features(rng, num_images, size, shift=shift))
        return {name: getattr(found, name) for name in ("precision", "recall", "density", "coverage")}

    return Case("pr", f"{size} features, {num_images:,} images, {num_reals:,} reals, {_moved(shift)}", measure)


def paths(num_lengths: int, sigma: float) -> Case:
    """Return the case of a path length whose single lengths are log-normal; large `sigma` makes heavy tails."""

    def measure(rng: np.random.Generator) -> dict[str, Estimate]:
        return {"ppl": path_length(rng.lognormal(0, sigma, num_lengths).astype(np.float32))}

    return Case("ppl", f"{num_lengths:,} lengths, log-normal with sigma {sigma:g}", measure)


def cases() -> Iterator[Case]:
    """Yield all cases of the table."""
    for num_images, size in ((640, 64), (1600, 64), (6400, 64), (3200, 128)):
        yield fid(num_images, size)
    yield fid(1600, 64, shift=0.1)
    yield fid(1600, 64, shift=0.5)
    yield kid(800, 64)
    yield kid(800, 64, shift=0.1)
    yield kid(800, 64, shift=0.5)
    for num_images, num_classes in ((500, 10), (5000, 10), (5000, 200)):
        yield inception_score(num_images, num_classes)
    yield manifold(500, 16, num_reals=500)
    yield manifold(500, 64, num_reals=5000)
    yield manifold(1500, 64, num_reals=1500)
    yield manifold(1000, 64, num_reals=4000, shift=-0.3)
    for num_lengths in (300, 2000, 20_000):
        for sigma in (0.5, 1, 2):
            yield paths(num_lengths, sigma)


def _moved(shift: float) -> str:
    return f"spread {1 + shift:g} times" if shift else "generator equal to the reals"


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Benchmark of the intervals of metrics.")
    names = ["fid", "kid", "is", "pr", "ppl"]
    parser.add_argument("metrics", nargs="*", choices=[*names, "all"], default="all", help="what to measure")
    parser.add_argument("--draws", type=int, default=100, help="sets of each case")
    options = parser.parse_args()
    chosen = names if "all" in options.metrics else options.metrics
    print(f"{options.draws} sets of each case: the ratio is known to {1 / np.sqrt(2 * options.draws):.0%}\n")
    print("| value | sets | mean | ratio | false promotion |\n|---|---|---|---|---|")
    for case in cases():
        if case.metric in chosen:
            for name, spread in spreads(case, options.draws).items():
                print(
                    f"| {name} | {case.sets} | {spread.mean:.4g} | {spread.ratio:.2f} | {spread.false_promotion:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
