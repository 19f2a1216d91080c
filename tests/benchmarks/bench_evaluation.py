"""`make bench-evaluation`: measures time and memory of an evaluation, in about three minutes.

`python -m benchmarks.bench_evaluation [memory] [features] [scaling]` in tests/ runs single parts:

- `features`: samples per second, from drawing an image to its features. The engine's worker and a plain loop take turns
  in one process. The loop uses the generator of plain.py with the same weights, and the reference version of the
  feature network.
- `scaling`: the same chunks on one and on two Ray workers.
- `memory`: peak memory of driver and worker in a whole evaluation, each number of samples in processes of its own.

Only the ratios within one run count: absolute times depend on the machine and on its load.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.bench_metrics import timed
from benchmarks.plain import Draws, PlainGenerator
from public_weights import file_bytes, inception_state
from reference import torch_fidelity
from torch import Tensor

from stylegan.cluster.parallel_map import parallel_map
from stylegan.cluster.session import RAY_ENV
from stylegan.config.file import build
from stylegan.config.sections import EvaluationConfig, ModelConfig
from stylegan.config.tree import Config
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.engine import evaluate
from stylegan.evaluation.features.embedded import obtain_features
from stylegan.evaluation.features.spaces import Network, Spaces
from stylegan.evaluation.generate import GENERATED, SampleChunk, Subject, batch_size, sha256
from stylegan.evaluation.work import measure_chunk
from stylegan.images import to_float, to_uint8
from stylegan.networks.generator import Generator
from stylegan.networks.inception import NUM_FEATURES
from stylegan.networks.weights import load_generator, save_generator

Way = Callable[[int], np.ndarray]  # number of samples -> features


def configured(resolution: int) -> Config:
    """Return a configuration with digits as grey images of this size; a worker has one CPU."""
    return build({"name": "bench", "data": {"source": "digits", "resolution": resolution, "channels": 1}})


def prepare(folder: Path, model: ModelConfig, resolution: int) -> tuple[str, ShardSet]:
    """Write a checkpoint with random weights and a data set; return the checkpoint's URI and the shards."""
    torch.manual_seed(0)
    uri = folder / f"checkpoint-{resolution}"
    uri.mkdir()
    (uri / "generator.safetensors").write_bytes(save_generator(Generator(model, resolution=resolution, channels=1), ()))
    data = configured(resolution).data
    return str(uri), write_shards(open_source(data), data, str(folder))


def subject_of(uri: str, shards: ShardSet, network: Network) -> Subject:
    """Return a generator and the one feature network that measures it."""
    path = f"{uri}/generator.safetensors"
    return Subject(
        path, sha256(Path(path).read_bytes()), None, shards, (), Spaces({"pooled": network}), EvaluationConfig(), "cpu"
    )


def chunks_of(subject: Subject, count: int) -> list[SampleChunk]:
    """Return the chunks of work for `count` samples."""
    return [SampleChunk(subject, GENERATED, (("pooled", count),), index) for index in range(-(-count // 256))]


def plain_loop(uri: str, look: Callable[[Tensor], Tensor], resolution: int) -> Way:
    """Return a function that computes features as a script would, one batch after the other.

    It draws a batch of images, quantises them to eight bits and computes features; in NCHW and single precision.
    """
    own, _ = load_generator(Path(uri, "generator.safetensors").read_bytes())
    G = PlainGenerator(own.model, resolution=resolution, channels=1)
    assert not G.load_state_dict(own.state_dict(), strict=False).missing_keys

    def draw(size: int) -> Tensor:
        draws = Draws.random(G, size)
        return to_uint8(G.synthesis(G.mapping(draws.z1)[:, None].repeat(1, G.num_layers, 1), draws.noise, alpha=1.0))

    @torch.no_grad()
    def run(count: int) -> np.ndarray:
        sizes = [min(batch_size(resolution), count - start) for start in range(0, count, batch_size(resolution))]
        return np.concatenate([look(draw(size)).numpy() for size in sizes])

    return run


def bench_features(options: argparse.Namespace, folder: Path) -> None:
    """Measure the samples per second of one process."""
    # Two feature networks, as the engine runs them and as the plain loop does.
    uri, shards = prepare(folder, ModelConfig(fmap_max=options.fmap_max), options.resolution)
    small = obtain_features(EvaluationConfig(), shards, root=str(folder))
    inception = folder / "inception.pth"
    inception.write_bytes(file_bytes(inception_state()))
    extractor = torch_fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    reference = extractor("inception", ["2048"], feature_extractor_weights_path=inception)
    networks = {
        "classifier": (Network("classifier", (small.uri,), small.sha256, small.network.num_features), options.samples),
        "inception": (
            Network("inception", (str(inception),), sha256(inception.read_bytes()), NUM_FEATURES),
            options.samples // 16,
        ),
    }
    looks: dict[str, Callable[[Tensor], Tensor]] = {
        "classifier": lambda images: small.network.pooled(to_float(images)),
        "inception": lambda images: reference(images.repeat(1, 3, 1, 1))[0],
    }

    # Measure both ways in turns.
    print(
        f"\nSamples per second, {options.resolution}x{options.resolution}, fmap_max {options.fmap_max}, "
        f"{options.rounds} rounds in turns"
    )
    print("| network | plain (min-max) | engine (min-max) | ratio |\n|---|---|---|---|")
    for name, (network, count) in networks.items():
        chunks = chunks_of(subject_of(uri, shards, network), count)
        ways: dict[str, Way] = {
            "plain": plain_loop(uri, looks[name], options.resolution),
            "engine": lambda count, chunks=chunks: np.concatenate([measure_chunk(chunk)["pooled"] for chunk in chunks]),  # type: ignore[misc]
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for round_number in range(options.rounds + 1):  # the first round loads networks
            for way, run in ways.items():
                seconds, found = timed(lambda run=run, count=count: run(count))  # type: ignore[misc]
                assert found.shape == (count, network.num_features)
                rates[way] += [count / seconds] if round_number else []
        ratio = statistics.median(e / p for e, p in zip(rates["engine"], rates["plain"], strict=True))
        cells = [f"{statistics.median(rate):.1f} ({min(rate):.1f}-{max(rate):.1f})" for rate in rates.values()]
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")


def on_ray(workers: int) -> None:
    """Start Ray with so many CPUs, one for each worker."""
    import ray

    os.environ.update(RAY_ENV)
    ray.init("local", num_cpus=workers, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)


def scale(workers: int, chunks: list[SampleChunk], resolution: int) -> tuple[float, str]:
    """Return the seconds and a digest of all features; run it in a driver of its own."""
    on_ray(workers)
    config = configured(resolution)
    for _ in parallel_map(
        lambda _: (time.sleep(2), measure_chunk(chunks[0])), range(workers), config
    ):  # each worker loads all
        pass
    seconds, parts = timed(lambda: list(parallel_map(measure_chunk, chunks, config)))
    return seconds, hashlib.sha256(b"".join(part["pooled"].tobytes() for part in parts)).hexdigest()


def bench_scaling(options: argparse.Namespace, folder: Path) -> None:
    """Compare one worker with two, in turns."""
    uri, shards = prepare(folder, ModelConfig(fmap_max=options.fmap_max), options.resolution)
    small = obtain_features(EvaluationConfig(), shards, root=str(folder))
    network = Network("classifier", (small.uri,), small.sha256, small.network.num_features)
    chunks, found = (
        chunks_of(subject_of(uri, shards, network), 2 * options.samples),
        dict[int, list[float]]({1: [], 2: []}),
    )
    digests = set()
    for _ in range(options.scaling_rounds):
        for workers in found:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, digest = pool.apply(scale, (workers, chunks, options.resolution))
            found[workers].append(seconds)
            digests.add(digest)
    assert len(digests) == 1, "the features depend on the number of workers"
    rates = {workers: statistics.median(2 * options.samples / s for s in seconds) for workers, seconds in found.items()}
    speedups = [one / two for one, two in zip(found[1], found[2], strict=True)]
    print(f"\n{len(chunks)} chunks on Ray, {options.scaling_rounds} rounds in turns; the features are equal bit by bit")
    print(
        f"1 worker {rates[1]:.1f} samples/s, 2 workers {rates[2]:.1f}: {statistics.median(speedups):.2f} times", end=" "
    )
    print(f"({min(speedups):.2f}-{max(speedups):.2f})")


def whole(uri: str, shards: ShardSet, root: str, count: int) -> tuple[float, float, float]:
    """Return the seconds of an evaluation, and the peak memory of driver and worker in MiB.

    Run it in a process of its own.
    """
    torch.set_num_threads(1)
    on_ray(1)
    config = configured(max(shards.resolutions))

    def pmap(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return parallel_map(function, items, config)

    evaluation = EvaluationConfig(metrics=("fid",), num_images=count)
    seconds, _ = timed(lambda: evaluate(uri, shards, evaluation, root=root, pmap=pmap))
    (of_worker,) = pmap(lambda _: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, [None])
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, of_worker


def bench_memory(options: argparse.Namespace, folder: Path) -> None:
    """Measure the memory of FID of a tiny generator, with its interval; ten times the samples must not need more."""
    uri, shards = prepare(folder, ModelConfig(latent_size=16, mapping_layers=2, mapping_fmaps=16, fmap_max=8), 8)
    print(
        "\nPeak memory of an evaluation (fid with an interval over 16 groups, 8x8)\n"
        "| samples | driver MiB | worker MiB | s |\n|---|---|---|---|"
    )
    for count in (10_000, 10_000, 100_000):  # the first run trains the classifier
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, driver, worker = pool.apply(whole, (uri, shards, str(folder), count))
        print(f"| {count:,} | {driver:.0f} | {worker:.0f} | {seconds:.1f} |")


# `memory` comes first: the peak memory of a child is at least the memory of the process that started it.
PARTS = {"memory": bench_memory, "features": bench_features, "scaling": bench_scaling}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Benchmark of the evaluation's passes.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "all"], default="all", help="what to measure")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--fmap-max", type=int, default=128)
    parser.add_argument(
        "--samples", type=int, default=1024, help="number of samples; a sixteenth for Inception, twice for scaling"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scaling-rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {options.threads} thread(s)")
    for part in PARTS:
        if "all" in options.parts or part in options.parts:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["STYLEGAN_CACHE"] = folder
                PARTS[part](options, Path(folder))


if __name__ == "__main__":
    main()
