"""Parts of `make bench-data`: sharding compared with decoding, its growth with the images, and the trainer's wait."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from benchmarks.pictures import files, write_folder, write_zip
from torch import Tensor

from stylegan.config.file import build
from stylegan.config.sections import DataConfig
from stylegan.config.tree import Config
from stylegan.data.decode import crop, decode, prepare
from stylegan.data.loading.loader import load_images, prefetch
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.training import loop
from stylegan.training.job import StageJob
from stylegan.training.schedule import stages

IMAGES = {32: 20_000, 128: 2000, 256: 1000}  # number of images by resolution: some seconds on two cores
PIECE = 64  # files that a process of the yardstick decodes at a time


def workers(number: int) -> Pool:
    """Start processes like Ray's workers: each has imported the modules and has one thread."""
    pool = multiprocessing.get_context("spawn").Pool(number, initializer=torch.set_num_threads, initargs=(1,))
    pool.map(warm, range(number * 4), chunksize=1)
    return pool


def warm(_: int) -> None:
    """Import the modules that sharding needs."""
    import stylegan.data.sharding.write_shards  # noqa: F401

    time.sleep(0.2)


def peak_mib(_: object = None) -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def decode_files(paths: list[str], data: DataConfig, *, levels: bool) -> None:
    """Run the yardstick: decode files to the square at full size or, with `levels`, at every resolution."""
    for path in paths:
        content = Path(path).read_bytes()
        if levels:
            prepare(content, data)
        else:
            crop(decode(content, data.channels, data), data)


def bench_sharding(options: argparse.Namespace) -> None:
    """Measure images per second from files to finished shards, and of decoding alone with as many processes."""
    with workers(options.workers) as pool:
        for resolution in options.resolutions:
            with tempfile.TemporaryDirectory() as folder:
                number = int(IMAGES.get(resolution, 1000) * options.size)
                border = 0 if resolution == 32 and options.images else resolution // 4
                paths = [
                    str(path)
                    for path in write_folder(
                        Path(folder, "files"), files(number, resolution, options.images, border=border)
                    )
                ]
                compare_sharding(options, pool, resolution, paths)


def compare_sharding(options: argparse.Namespace, pool: Pool, resolution: int, paths: list[str]) -> None:
    """Measure sharding and decoding in turns at one resolution, and print a table."""
    folder = Path(paths[0]).parent.parent.parent
    per_shard = max(16, len(paths) // (8 * options.workers))  # several shards for each process, as in a usual data set
    data = DataConfig(
        source=str(folder / "files"),
        resolution=resolution,
        images_per_shard=per_shard,
        incremental=False,
        duplicates="keep",
    )
    pieces = [paths[start : start + PIECE] for start in range(0, len(paths), PIECE)]
    roots = (str(folder / f"root-{number}") for number in range(1000))
    ways: dict[str, Callable[[], object]] = {
        "decode, crop, resize": lambda: list(pool.imap(partial(decode_files, data=data, levels=False), pieces)),
        "and all resolutions": lambda: list(pool.imap(partial(decode_files, data=data, levels=True), pieces)),
        "shards": lambda: write_shards(open_source(data), data, next(roots), pmap=pool.imap),
    }

    # Measure in turns.
    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds.setdefault(name, []).append(time.perf_counter() - start)

    # Print a table.
    print(
        f"\nSharding {resolution}x{resolution}, {len(paths)} images, {options.workers} processes, "
        f"{options.rounds} rounds (goal: 90 %)"
    )
    print("| way | median img/s (min-max) | of decode, crop, resize |\n|---|---|---|")
    for name, spent in seconds.items():
        rates = [len(paths) / s for s in spent]
        ratio = statistics.median(a / b for a, b in zip(seconds["decode, crop, resize"], spent, strict=True))
        print(f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f}) | {ratio:.0%} |")


def grow(count: int, archive: str, processes: int, folder: str) -> dict[str, float]:
    """List, shard and load a data set of `count` images; return the seconds of each step and the peak memory in MiB.

    Run it in a process of its own.
    """
    torch.set_num_threads(1)
    os.environ["STYLEGAN_CACHE"] = str(Path(folder, "cache"))
    data = DataConfig(source=archive, resolution=32)
    found: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        found[name] = time.perf_counter() - start
        found[f"{name} peak"] = peak_mib()

    with step("list"):
        source = open_source(data)
    with workers(processes) as pool:
        with step("shard"):
            shards = write_shards(source, data, folder, pmap=pool.imap)
        found["worker peak"] = max(pool.map(peak_mib, range(4 * processes), chunksize=1))
    with step("load"):
        table = load_images(shards, 32)
        for start in range(0, count, 1024):
            table.images[start : start + 1024]
    with step("repeat"):
        again = write_shards(open_source(data), data, folder)
    assert again == shards
    assert shards.num_images == count
    return found


def bench_scale(options: argparse.Namespace) -> None:
    """Measure growth: time must be proportional to the number of images, memory below 2 GiB in every process."""
    print(f"\nGrowth at 32x32 from a zip of JPEG files, {options.workers} processes (goal: linear, below 2048 MiB)")
    print("| images | list s | shard s | img/s | load s | img/s | repeat s | peak MiB: list | shard | load | worker |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            archive = str(Path(folder, "images.zip"))
            write_zip(Path(archive), count, options.images)
            receiver, sender = context.Pipe(duplex=False)
            # Not a Pool, whose processes may not start children.
            process = context.Process(target=send_growth, args=(sender, count, archive, options.workers, folder))
            process.start()
            found = receiver.recv()
            process.join()
        speeds = (
            f"{found['shard']:.1f} | {count / found['shard']:.0f} | {found['load']:.2f} | {count / found['load']:.0f}"
        )
        memory = " | ".join(f"{found[f'{name} peak']:.0f}" for name in ("list", "shard", "load", "worker"))
        print(f"| {count} | {found['list']:.1f} | {speeds} | {found['repeat']:.1f} | {memory} |", flush=True)


def send_growth(sender: Any, *args: Any) -> None:
    """Run `grow` in a child process and send its result."""
    sender.send(grow(*args))


def make_config(folder: Path, resolution: int, steps: int, batch: int) -> Config:
    """Return the configuration of a stage of `steps` steps without fade-in."""
    return build(
        {
            "name": "bench",
            "data": {"source": str(folder / "files"), "resolution": 64, "duplicates": "keep"},
            "model": {"latent_size": 64, "mapping_fmaps": 64, "fmap_max": 64, "fmap_base": 1024},
            "training": {
                "start_resolution": resolution,
                "batch": batch,
                "stable_kimg": steps * batch / 1000,
                "fade_kimg": 0,
            },
        }
    )


def bench_wait(options: argparse.Namespace) -> None:
    """Measure the share of time that the trainer waits for its next batch, with an empty and with a full cache."""
    print(f"\nThe trainer's wait, batch {options.batch}, {options.steps} steps, narrow networks (goal: below 2 %)")
    print("| stage | cache | s/step | waiting |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "files", files(2048, 64, None))
        data = make_config(folder, 64, options.steps, options.batch).data
        shards = write_shards(open_source(data), data, str(folder / "root"))
        os.environ["STYLEGAN_CACHE"] = str(folder / "cache")
        for resolution in (8, 16, 32, 64):
            for cache in ("empty", "full"):
                step, share = waiting(
                    make_config(folder, resolution, options.steps, options.batch), shards, folder / cache
                )
                print(f"| {resolution}x{resolution} | {cache} | {step:.3f} | {share:.2%} |", flush=True)


def waiting(config: Config, shards: ShardSet, folder: Path) -> tuple[float, float]:
    """Train the first stage; return the seconds per step, and the share of time spent waiting for the loader.

    The first steps are left out, because they fill allocators.
    """
    stage = stages(config)[0]
    waits: list[float] = []
    ends: list[float] = []

    @contextmanager
    def watched(*args: Any, **kwargs: Any) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        with prefetch(*args, **kwargs) as shown:
            yield watch(shown)

    def watch(shown: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        source = iter(shown)
        while True:
            start = time.perf_counter()
            batch = next(source)
            ends.append(time.perf_counter())
            waits.append(ends[-1] - start)
            yield batch

    # Train with the loader watched.
    job = StageJob(
        config=config, stage=stage, shards=shards, key="k", run_id="r", uri=str(folder / stage.name), previous=None
    )
    loop.prefetch, original = watched, loop.prefetch  # type: ignore[assignment]
    try:
        loop.train_stage(job)
    finally:
        loop.prefetch = original

    skipped = 2
    spent = ends[-1] - ends[skipped]
    return spent / (len(ends) - 1 - skipped), sum(waits[skipped + 1 :]) / spent
