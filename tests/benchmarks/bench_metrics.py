"""`make bench-metrics`: measures metrics from finished features on, in about three minutes.

`python -m benchmarks.bench_metrics [memory] [frechet] [pairs]` in tests/ runs single parts:

- `frechet`: Frechet distance here and by scipy's square root of a matrix, in turns in one process.
- `memory`: peak memory of streaming statistics, each number of samples in a process of its own.
- `pairs`: kernel distance, and precision and recall.

Absolute times depend on the machine and on its load.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import scipy
import scipy.linalg
import torch

from stylegan.evaluation.metrics.fid import GroupMoments, Moments, frechet_distance, frechet_interval
from stylegan.evaluation.metrics.kid import kernel_distance
from stylegan.evaluation.metrics.precision_recall import Manifold, manifold_metrics

CHUNK = 256  # samples added to the streaming statistics at a time
T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Call a function and return the seconds it took and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def features(count: int, size: int, *, seed: int) -> np.ndarray:
    """Return random features [count, size], float32, whose variances fall by six orders of magnitude."""
    values = np.random.default_rng(seed).standard_normal((count, size), np.float32)
    values *= np.logspace(0, -3, size, dtype=np.float32)
    return values


def turned(values: np.ndarray) -> np.ndarray:
    """Return the same features in another basis, so that all are correlated."""
    size = values.shape[1]
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))
    return values @ basis.astype(np.float32)


def with_sqrtm(a: Moments, b: Moments) -> float:
    """Compute the Frechet distance the usual way: by the real part of the root of the product of covariances."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root.real))


def bench_frechet(options: argparse.Namespace) -> None:
    """Measure the distance from moments on; `again` compares with the same reference, whose root is kept."""
    reference, generated = (
        Moments.of(turned(features(options.samples, options.features, seed=seed))) for seed in (1, 2)
    )
    seconds: dict[str, list[float]] = {"scipy": [], "ours": [], "again": []}
    frechet_distance(generated, reference)  # the first call starts threads
    for _ in range(options.rounds):
        fresh = Moments(reference.count, reference.mean, reference.m2)
        ways = {"scipy": with_sqrtm, "ours": frechet_distance, "again": frechet_distance}
        values = {}
        for name, way in ways.items():
            spent, values[name] = timed(lambda way=way, fresh=fresh: way(fresh, generated))  # type: ignore[misc]
            seconds[name].append(spent)

    # Print a table.
    print(f"\nFrechet distance of {options.features} features, {options.rounds} rounds in turns")
    print("| way | median s (min-max) | ratio | value |\n|---|---|---|---|")
    for name, spent in seconds.items():
        ratio = statistics.median(s / o for s, o in zip(seconds["scipy"], spent, strict=True))
        print(
            f"| {name} | {statistics.median(spent):.2f} ({min(spent):.2f}-{max(spent):.2f}) "
            f"| {ratio:.1f} | {values[name]:.9g} |"
        )

    # Special cases.
    spent, _ = timed(lambda: frechet_distance(reference, reference))
    print(f"to itself, where digits cancel and singular values are taken: {spent:.2f} s")
    bench_interval(reference, options)


def bench_interval(reference: Moments, options: argparse.Namespace) -> None:
    """Measure the interval: streaming 16 groups, and computing the distances without them."""
    generated = turned(features(options.samples, options.features, seed=2))
    groups = GroupMoments(options.features)
    streaming, _ = timed(lambda: (groups.add(generated), groups.groups))
    spent, estimate = timed(
        lambda: frechet_interval(reference, groups.groups, frechet_distance(reference, Moments.of(generated)))
    )
    print(
        f"interval {estimate.low:.6g} to {estimate.high:.6g}: "
        f"{streaming:.1f} s for {options.samples} samples, then {spent:.1f} s"
    )


def stream(count: int, size: int) -> float:
    """Compute moments and groups of `count` samples in chunks; return the peak memory of this process in MiB."""
    torch.set_num_threads(1)
    rng, moments, groups = np.random.default_rng(0), None, GroupMoments(size)
    for start in range(0, count, CHUNK):
        part = rng.standard_normal((min(CHUNK, count - start), size), np.float32)
        groups.add(part)
        moments = Moments.of(part) if moments is None else moments.merge(Moments.of(part))
    assert moments is not None
    assert moments.count == count
    assert len(groups.groups) == 16
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bench_memory(options: argparse.Namespace) -> None:
    """Measure the memory of streaming statistics; ten times the samples must not need more."""
    context = multiprocessing.get_context("spawn")
    print(f"\nPeak memory of streaming moments with 16 groups, {options.stream_features} features")
    for count in (10_000, 100_000):
        with context.Pool(1) as pool:
            print(f"{count:7d} samples: {pool.apply(stream, (count, options.stream_features)):.0f} MiB")


def bench_pairs(options: argparse.Namespace) -> None:
    """Measure the metrics that compare samples in pairs."""
    print(f"\n{options.samples} real and {options.samples} generated samples")
    real, fake = (features(options.samples, options.features, seed=seed) for seed in (1, 2))
    spent, kid = timed(lambda: kernel_distance(real, fake, seed=0))
    print(f"KID, 100 subsets of 1000, {options.features} features, with interval: {spent:.1f} s ({kid.value:.3g})")
    real, fake = (features(options.samples, 2 * options.features, seed=seed) for seed in (1, 2))
    spent, manifold = timed(lambda: Manifold.of(real))
    again, found = timed(lambda: manifold_metrics(manifold, fake))
    values = (
        f"{found.precision.value:.3f}, {found.recall.value:.3f}, {found.density.value:.3f}, {found.coverage.value:.3f}"
    )
    print(f"precision, recall, density and coverage, {2 * options.features} features: {spent + again:.1f} s ({values})")
    print(f"  of these for the manifold of the reals, which is kept: {spent:.1f} s")


# `memory` comes first: the peak memory of a child is at least the memory of the process that started it.
PARTS = {"memory": bench_memory, "frechet": bench_frechet, "pairs": bench_pairs}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Benchmark of the metrics, from features on.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "all"], default="all", help="what to measure")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--stream-features", type=int, default=256)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, scipy {scipy.__version__}, {platform.processor() or platform.machine()}, "
        f"{options.threads} thread(s)"
    )
    for part in PARTS:
        if "all" in options.parts or part in options.parts:
            PARTS[part](options)


if __name__ == "__main__":
    main()
