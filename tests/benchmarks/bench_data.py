"""`make bench-data`: measures the data layer.

It compares loading with Pillow, WebDataset and memcpy, and payload formats with each other. It also measures sharding,
how sharding scales with the number of images, and how long the trainer waits for data.

The loaders take turns on one core in one process, a fixed time each, round after round. Only the ratios within one
round count: absolute times depend on the machine and on its load.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from benchmarks.bench_sharding import bench_scale, bench_sharding, bench_wait
from benchmarks.pictures import crops, files, write_folder, write_tars
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stylegan.config.sections import DataConfig
from stylegan.data import payload
from stylegan.data.loading.loader import batches, load_images
from stylegan.data.loading.order import sample_indices
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source

Batches = Iterator[tuple[Tensor, Any]]
IMAGES = {32: 8192, 128: 1024, 256: 384}  # number of images by resolution: at most a second for the slowest loader
GOALS = {32: "50", 256: "10"}


class Files(Dataset[tuple[Tensor, int]]):
    """The original files, read one by one as by torchvision's ImageFolder with PILToTensor."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        with open(path, "rb") as file:
            pixels = np.array(Image.open(file).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), int(path.parent.name)


def from_files(paths: list[Path], batch: int) -> Batches:
    """Yield endless batches from torch's loader in this process."""
    while True:
        yield from DataLoader(Files(paths), batch_size=batch, shuffle=True, drop_last=True)


def from_webdataset(tars: list[str], batch: int, decoder: str) -> Batches:
    """Yield endless batches from WebDataset's pipeline in this process.

    With the decoder `torchrgb8` the pipeline is the one of WebDataset's handbook. Otherwise channels are moved to the
    front once for a whole batch instead of for each image.
    """
    data = (
        wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
        .shuffle(1000)
        .decode(decoder)
        .to_tuple("jpg", "cls")
    )
    if decoder == "torchrgb8":
        pipeline = data.batched(batch, partial=False)
    else:
        pipeline = data.batched(batch, partial=False).map_tuple(
            lambda images: torch.from_numpy(np.ascontiguousarray(to_planes(images)))
        )
    while True:
        yield from pipeline


def to_planes(images: np.ndarray) -> np.ndarray:
    """Return a batch of images [H, W, C] as [N, C, H, W]."""
    return np.stack(images).transpose(0, 3, 1, 2)


def from_memory(pixels: np.ndarray, batch: int, *, fresh: bool) -> Batches:
    """Yield endless batches of raw pixels, copied within memory: the upper limit of any loader.

    A batch gets fresh memory, or the same memory every time.
    """
    out = np.empty_like(pixels[:batch])
    for number in count():
        start = number * batch % (len(pixels) - batch + 1)
        target = np.empty_like(out) if fresh else out
        np.copyto(target, pixels[start : start + batch])
        yield torch.from_numpy(target), None


def from_shards(shards: ShardSet, batch: int) -> Batches:
    """Yield endless batches from the product's loader: random order, from its cache."""
    resolution = shards.resolutions[-1]
    table = load_images(shards, resolution)

    def order() -> Iterator[np.ndarray]:
        for start in count(0, batch):
            yield sample_indices(shards.num_images, seed=0, stage=resolution, start=start, count=batch)

    return batches(table, order())


def rate(source: Batches, batch: int, *, images: int = 0, seconds: float = 0.0) -> float:
    """Return the images per second over so many images or seconds, whichever takes longer."""
    start, done = time.perf_counter(), 0
    while done < images or time.perf_counter() - start < seconds:
        shown, _ = next(source)
        assert shown.dtype == torch.uint8
        done += batch
    return done / (time.perf_counter() - start)


def first_pass(shards: ShardSet, batch: int, cache: Path) -> float:
    """Return the images per second of opening a data set and reading each image once, with an empty cache."""
    os.environ["STYLEGAN_CACHE"] = str(cache / uuid.uuid4().hex)
    start = time.perf_counter()
    source = from_shards(shards, batch)
    images = shards.num_images // batch * batch
    rate(source, batch, images=images)
    return images / (time.perf_counter() - start)


def bench_loader(options: argparse.Namespace) -> None:
    """Measure images per second on one core, and ratios to the faster of WebDataset's pipelines in the same round."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # all threads of a loader share one core
    try:
        for resolution in options.resolutions:
            with tempfile.TemporaryDirectory() as folder:
                compare_loaders(options, resolution, Path(folder))
    finally:
        os.sched_setaffinity(0, cores)


def compare_loaders(options: argparse.Namespace, resolution: int, folder: Path) -> None:
    """Measure all loaders at one resolution, and print a table."""
    # Write the same images as files, tars and shards.
    number = int(IMAGES.get(resolution, 512) * options.size)
    paths = write_folder(folder / "files", files(number, resolution, options.images))
    tars = write_tars(folder / "tars", paths)
    data = DataConfig(source=str(folder / "files"), resolution=resolution, duplicates="keep")
    shards = write_shards(open_source(data), data, str(folder / "root"))

    # Open all loaders.
    os.environ["STYLEGAN_CACHE"] = str(folder / "sustained")
    pixels = np.ascontiguousarray(load_images(shards, resolution).images[:])  # fills the cache
    ways: dict[str, Batches] = {
        "Pillow, ImageFolder": from_files(paths, options.batch),
        "WebDataset torchrgb8": from_webdataset(tars, options.batch, "torchrgb8"),
        "WebDataset rgb8, batch moved": from_webdataset(tars, options.batch, "rgb8"),
        "ours, sustained": from_shards(shards, options.batch),
        "memcpy, new memory": from_memory(pixels, options.batch, fresh=True),
        "memcpy": from_memory(pixels, options.batch, fresh=False),
    }

    # Warm up (page cache, decoders, shuffle buffers), then measure in turns.
    rates: dict[str, list[float]] = {}
    for source in ways.values():
        rate(source, options.batch, seconds=options.seconds / 4)
    for _ in range(options.rounds):
        for name, source in ways.items():
            rates.setdefault(name, []).append(rate(source, options.batch, seconds=options.seconds))
        rates.setdefault("ours, first pass", []).append(first_pass(shards, options.batch, folder / "cache"))
    report_loaders(
        rates, f"{resolution}x{resolution}, {number} images, batch {options.batch}, {options.rounds} rounds", resolution
    )


def report_loaders(rates: dict[str, list[float]], title: str, resolution: int) -> None:
    """Print the rates of all loaders, and their ratios to WebDataset and memcpy."""
    yardstick = [
        max(pair) for pair in zip(rates["WebDataset torchrgb8"], rates["WebDataset rgb8, batch moved"], strict=True)
    ]
    print(
        f"\nLoading {title} (goal: {GOALS.get(resolution, '-')} x WebDataset sustained, "
        "1 x in the first pass, half of memcpy)"
    )
    print("| way | median img/s (min-max) | x WebDataset | of memcpy |\n|---|---|---|---|")
    for name, found in rates.items():
        to_wds = statistics.median(a / b for a, b in zip(found, yardstick, strict=True))
        to_copy = statistics.median(a / b for a, b in zip(found, rates["memcpy"], strict=True))
        print(
            f"| {name} | {statistics.median(found):.0f} ({min(found):.0f}-{max(found):.0f}) "
            f"| {to_wds:.2f} | {to_copy:.1%} |"
        )


Codec = tuple[Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]]


def with_pillow(kind: str, **options: object) -> Codec:
    """Return the functions that encode and decode a lossless format of Pillow."""

    def encode(pixels: np.ndarray) -> bytes:
        file = BytesIO()
        Image.fromarray(pixels).save(file, kind, **options)
        return file.getvalue()

    return encode, lambda data: np.asarray(Image.open(BytesIO(data), formats=[kind]))


def codecs(resolution: int) -> dict[str, Codec]:
    """Return all formats by name; sizes are compared with the raw pixels."""
    png = {f"PNG, zlib {level}": with_pillow("PNG", compress_level=level) for level in (0, 1, 6)}
    webp = {
        f"WebP lossless, quality {quality}, method {method}": with_pillow(
            "WEBP", lossless=True, quality=quality, method=method, exact=True
        )
        for quality, method in ((0, 0), (50, 1), (80, 4))
    }
    raw: Codec = (
        lambda pixels: payload.npy_header(pixels.shape) + pixels.tobytes(),
        lambda data: payload.decode(data, "npy"),
    )
    product: Codec = (
        lambda pixels: payload.encode(pixels, resolution),
        lambda data: payload.decode(data, payload.suffix(resolution)),
    )
    return {"raw npy": raw, **png, **webp, f"the product's {payload.suffix(resolution)}": product}


def bench_payload(options: argparse.Namespace) -> None:
    """Measure size and speed of lossless payloads on one thread.

    The column `at 100 MB/s` is the rate of a first pass that reads at this speed and decodes.
    """
    for resolution in (16, 32, 64, 128, 256):
        pictures = list(crops(max(8, min(256, 2**21 // resolution**2)), resolution, resolution))
        seconds: dict[str, list[tuple[float, float]]] = {}
        sizes = {}

        # Measure all formats in turns.
        for _ in range(options.rounds):
            for name, (encode, decode) in codecs(resolution).items():
                start = time.perf_counter()
                encoded = [encode(pixels) for pixels in pictures]
                middle = time.perf_counter()
                for data in encoded:
                    decode(data)
                end = time.perf_counter()
                seconds.setdefault(name, []).append(((middle - start) / len(pictures), (end - middle) / len(pictures)))
                sizes[name] = sum(map(len, encoded)) / len(pictures)

        # Print a table.
        print(f"\nPayload of {resolution}x{resolution} photographs, {len(pictures)} of them, {options.rounds} rounds")
        print(
            "| format | bytes | of raw | encode img/s | decode img/s (min-max) | read and decode at 100 MB/s |\n"
            "|---|---|---|---|---|---|"
        )
        for name, turns in seconds.items():
            encode_s, decode_s = (statistics.median(turn[which] for turn in turns) for which in (0, 1))
            spread = f"({1 / max(turn[1] for turn in turns):.0f}-{1 / min(turn[1] for turn in turns):.0f})"
            both = 1 / (decode_s + sizes[name] / 100e6)
            share = sizes[name] / sizes["raw npy"]
            print(
                f"| {name} | {sizes[name]:.0f} | {share:.0%} | {1 / encode_s:.0f} "
                f"| {1 / decode_s:.0f} {spread} | {both:.0f} |"
            )


# `scale` comes first: the peak memory of a child is at least the memory of the process that started it.
PARTS = {
    "scale": bench_scale,
    "sharding": bench_sharding,
    "loader": bench_loader,
    "payload": bench_payload,
    "wait": bench_wait,
}


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Benchmark of the data layer.")
    parser.add_argument("parts", nargs="*", choices=PARTS, help="what to measure; all by default")
    parser.add_argument(
        "--images", metavar="ZIP", help="JPEG files of 32x32, used at 32x32; other sizes use photographs"
    )
    parser.add_argument(
        "--resolutions", type=int, nargs="+", default=[32, 128, 256], help="sizes in `loader`, `sharding`"
    )
    parser.add_argument("--size", type=float, default=1.0, help="factor for the images in `loader` and `sharding`")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn in `loader`")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="number of processes in `sharding` and `scale`",
    )
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[2_000, 10_000],
        help="numbers of images in `scale`, such as 10000 100000 1000000",
    )
    parser.add_argument("--steps", type=int, default=20, help="steps of a stage in `wait`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Pillow {Image.__version__}, {platform.processor() or platform.machine()}")
    for part in PARTS:
        if part in (options.parts or PARTS):
            PARTS[part](options)


if __name__ == "__main__":
    main()
