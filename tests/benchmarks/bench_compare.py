"""`make bench-compare`: measures `stylegan compare` with its page, on runs with many points and sample grids.

The runs are written as training writes them and lie on a local disk. Time and memory are those of the whole command in a
process of its own, from its start to its end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from stylegan import storage
from stylegan.config.file import build, dump
from stylegan.config.tree import Config
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.report import Report
from stylegan.images import png_bytes
from stylegan.pipeline.run import Run

GOAL_SECONDS, GOAL_MB, GOAL_PAGE_MB = 20, 500, 20
GAMMAS = (0.1, 0.5, 1, 2, 5, 10, 20, 50)


def write_run(root: str, number: int, *, points: int, grids: int, side: int) -> str:
    """Write one run with its curves, sample grids and report, and return its folder."""
    config = _config(root, number, kimg=points)
    shards = write_shards(open_source(config.data), config.data, config.storage.root)
    run = Run(config, shards)
    (stage,) = run.stages
    uri = run.stage_uri(stage)
    rng = np.random.default_rng(number)
    lines = [json.dumps(_point(kimg, number, rng)) + "\n" for kimg in range(1, points + 1)]
    storage.write_bytes(storage.join(uri, "stats.jsonl"), "".join(lines).encode())
    pictures = _pictures(rng, side)
    for place in range(grids):
        kimg = points * (place + 1) // grids
        storage.write_bytes(storage.join(uri, "samples", f"{kimg:06d}.png"), pictures[place % len(pictures)])
    storage.write_bytes(storage.join(run.uri, "config.yaml"), dump(config).encode())
    fid = 20 + 10 * math.sin(number)
    report = Report(
        protocol="bench",
        dataset_fingerprint=shards.fingerprint,
        checkpoint_uri=storage.join(uri, f"checkpoint-{points:06d}000"),
        metrics={"fid_classifier": fid, "precision_classifier": 0.6, "recall_classifier": 0.3 + number / 100},
        intervals={"fid_classifier": (fid - 1, fid + 1)},
    )
    storage.write_json(storage.join(run.uri, "report.json"), report.model_dump(mode="json"))
    return run.uri


def _config(root: str, number: int, *, kimg: int) -> Config:
    return build(
        {
            "name": f"bench-{number}",
            "seed": number % 3,
            "storage": {"root": root},
            "data": {"source": "digits", "resolution": 4, "channels": 1},
            "training": {
                "start_resolution": 4,
                "batch": 8,
                "stable_kimg": kimg,
                "r1_gamma": GAMMAS[number % len(GAMMAS)],
                "learning_rate": round(0.001 * (1 + number), 3),
            },
            "evaluation": {"num_images": 10},
            "ray": {"gpus_per_worker": 1},
        }
    )


def _point(kimg: int, number: int, rng: np.random.Generator) -> dict[str, Any]:
    names = ("loss/d", "loss/g", "loss/r1", "scores/real", "scores/fake")
    metrics = {name: float(rng.normal(1 / (1 + kimg / 50), 0.05)) for name in names}
    if kimg % 5 == 0:
        metrics |= {"quick/fid_classifier": 20 + 10 * math.sin(number) + 500 / kimg + float(rng.normal(0, 1))}
    metrics |= {"time/img_per_sec": 100.0 + number, "time/sec_per_kimg": 1000 / (100.0 + number), "time/path": 3.0}
    return {"nimg": kimg * 1000, "resolution": 4, "metrics": metrics}


def _pictures(rng: np.random.Generator, side: int) -> list[bytes]:
    """Return a few PNG files that are as hard to pack as a grid of photographs; to draw all would take long."""
    small = [Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)) for _ in range(4)]
    return [png_bytes(image.resize((side, side), Image.Resampling.BICUBIC)) for image in small]


@dataclass(frozen=True)
class Cost:
    """What one command took: seconds of the clock, seconds of processor time, and at most so many MB of memory."""

    seconds: float
    processor: float
    megabytes: float


def measure(folders: list[str], out: Path) -> Cost:
    """Compare runs by the command, in a process of its own."""
    command = [sys.executable, "-m", "flows.cli.main", "compare", *folders, "--out", str(out)]
    here = Path(__file__).resolve().parents[2]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(here)}) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"stylegan compare ended with exit code {process.returncode}")
    seconds = time.perf_counter() - start
    memory = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    return Cost(seconds, usage.ru_utime + usage.ru_stime, memory)


def main() -> int:
    """Write the runs, compare them, and print time, memory and size beside the goals; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--grids", type=int, default=50)
    parser.add_argument("--side", type=int, default=640, help="pixels of a sample grid")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folders = [
            write_run(f"{folder}/root", number, points=options.points, grids=options.grids, side=options.side)
            for number in range(options.runs)
        ]
        page = Path(folder, "page.html")
        found = [measure(folders, page) for _ in range(options.repeats)]
        size = page.stat().st_size / 1e6
    seconds, processor = median(cost.seconds for cost in found), median(cost.processor for cost in found)
    megabytes = max(cost.megabytes for cost in found)
    print(f"{options.runs} runs x {options.points} points x {options.grids} grids of {options.side} pixels")
    print(
        f"time    {seconds:7.1f} s    goal: less than {GOAL_SECONDS} s (median of {options.repeats}; {processor:.1f} s of CPU)"
    )
    print(f"memory  {megabytes:7.0f} MB   goal: less than {GOAL_MB} MB")
    print(f"page    {size:7.1f} MB   goal: less than {GOAL_PAGE_MB} MB")
    return 0 if seconds < GOAL_SECONDS and megabytes < GOAL_MB and size < GOAL_PAGE_MB else 1


if __name__ == "__main__":
    raise SystemExit(main())
