"""`make bench-serving`: what recording a small generator gains when it is served (`serving/recorded.py`).

An image is drawn by `paint`, as everywhere, and by the recording, in turn, round after round; then by the recording on as
many threads as there are processors. Only the ratios within one run count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from stylegan.config.sections import ModelConfig
from stylegan.drawing.draw import given_noise, of_seed, paint
from stylegan.networks.generator import Generator
from stylegan.serving.recorded import record


def main() -> None:
    """Print a row for each resolution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=30, help="of each variant in a round")
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(
        f"torch {torch.__version__}, {threads} processors; median of {options.rounds} rounds of {options.images} images"
    )
    print("resolution   paint ms   recorded ms   times as fast   images/s on all threads, over paint")
    for resolution in options.resolutions:
        print(_row(resolution, options.rounds, options.images, threads), flush=True)


def _row(resolution: int, rounds: int, images: int, threads: int) -> str:
    torch.manual_seed(0)
    model = ModelConfig(latent_size=64, mapping_layers=4, mapping_fmaps=64, fmap_base=256, fmap_max=64)
    generator = Generator(model, resolution=resolution, channels=3).eval().requires_grad_(False)
    repeat, latents = record(generator), of_seed(generator, 0, None)
    assert repeat is not None
    noise = given_noise(latents.noise)

    def seconds(draw: Callable[[], object]) -> float:
        begun = time.perf_counter()
        draw()
        return time.perf_counter() - begun

    def by_paint() -> None:
        for _ in range(images):
            paint(generator, latents.ws, noise)

    def by_recording() -> None:
        for _ in range(images):
            repeat(latents.ws, noise)

    with ThreadPoolExecutor(threads) as pool:

        def by_all() -> None:
            list(pool.map(lambda _: by_recording(), range(threads)))

        by_paint()
        by_all()  # the first calls take longer
        taken = [(seconds(by_paint), seconds(by_recording), seconds(by_all)) for _ in range(rounds)]
    ratios = statistics.median(a / b for a, b, _ in taken), statistics.median(threads * a / c for a, _, c in taken)
    plain, quick = (statistics.median(column) / images * 1000 for column in (list(zip(*taken, strict=True))[:2]))
    return f"{resolution:10}   {plain:8.2f}   {quick:11.2f}   {ratios[0]:13.2f}   {ratios[1]:.2f}"


if __name__ == "__main__":
    main()
