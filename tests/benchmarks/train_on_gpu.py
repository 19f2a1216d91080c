"""Trains runs of a config on one GPU, on a machine that has torch and little else, and shows what came of them.

    cd tests && PYTHONPATH=..:. python -m benchmarks.train_on_gpu OUT ../configs/ssgan-cifar10.yaml \\
        --set data.source=/path/to/cifar10-train.zip --set model.fmap_max=512 --set training.total_kimg=3000 \\
        --variant rotation --variant plain training.rotation=null

Shards, all stages, and the evaluation are those of `stylegan run`, with the same keys and folders, so a second call goes
on where the first one was stopped. Ray, Prefect and MLflow are not needed. The packages that are: scikit-learn, and
those that `bench_gpu.py` lists for itself and for tests.
OUT gets a table for RESULTS.md with the speed of each stage and the metrics, the last grid of each run, the curves, and
the forgetting curves if the config has a probe. `--minutes` stops training early: what was trained by then is shown.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch
from benchmarks.bench import require_device
from benchmarks.bench_gpu import commit, driver_version

from stylegan.config.file import load
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.engine import evaluate
from stylegan.evaluation.page.chart_picture import draw_charts
from stylegan.evaluation.page.charts import curve_chart
from stylegan.pipeline.run import Run
from stylegan.training.curves import PATHS, STATS, Row, mean_speed, read_rows
from stylegan.training.loop import train_stage
from stylegan.training.samples import sample_grids
from stylegan.training.schedule import Stage
from stylegan.training.state import Checkpoint
from stylegan.training.stop import StageStopped
from stylegan.verbs.forgetting import PICTURE, pictured_together

CURVES = {
    "quick/fid": "quick FID",
    "loss/d": "loss of D",
    "loss/g": "loss of G",
    "time/img_per_sec": "images per second",
}


@dataclass
class Trained:
    """Collects what came of a run.

    Attributes:
        name: of the variant.
        run: its folders.
        rows: the points of its curves in each stage that has any.
        metrics: of its evaluation, empty if it was stopped before.
        skipped: why others could not be measured.
        seconds: that the evaluation took.
    """

    name: str
    run: Run
    rows: dict[Stage, list[Row]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def all_rows(self) -> list[Row]:
        """Return the points of all stages."""
        return [row for rows in self.rows.values() for row in rows]


def make_runs(options: argparse.Namespace) -> list[Trained]:
    """Shard the images, unless they are, and return the runs of all variants, not trained yet."""
    variants = options.variant or [["run"]]
    runs = []
    for name, *overrides in variants:
        config = load(
            str(options.config),
            [f"name={name}", f"ray.gpus_per_worker={int(options.device == 'cuda')}", *options.set, *overrides],
        )
        source = open_source(config.data, config.storage.root)
        with get_context("spawn").Pool(options.processes) as pool:  # a fork would copy the state of CUDA
            shards = write_shards(source, config.data, config.storage.root, pmap=pool.imap)
        runs.append(Trained(name, Run(config, shards)))
    return runs


def train(trained: Trained, device: str, deadline: float) -> Checkpoint | None:
    """Train all stages, and return the last checkpoint; None if the time was up before."""
    checkpoint: Checkpoint | None = None
    for stage in trained.run.stages:
        try:
            checkpoint = train_stage(
                trained.run.job(stage, checkpoint), device=device, stop=lambda: time.monotonic() > deadline
            )
        except StageStopped:
            checkpoint = None
        rows = read_rows(f"{trained.run.stage_uri(stage)}/{STATS}")
        if rows:
            trained.rows[stage] = rows
            print(
                f"{trained.name}, {stage.name}: {rows[-1]['nimg'] / 1000:,.0f} kimg, {mean_speed(rows):,.0f} img/s",
                flush=True,
            )
        if checkpoint is None:
            return None
    return checkpoint


def measure(trained: Trained, checkpoint: Checkpoint, device: str) -> None:
    """Evaluate the last checkpoint as `stylegan run` does, without figures."""
    run, start = trained.run, time.monotonic()
    report = evaluate(checkpoint.uri, run.shards, run.config.evaluation, root=run.root, device=device)
    trained.metrics, trained.skipped, trained.seconds = report.metrics, report.skipped, time.monotonic() - start
    print(f"{trained.name}: evaluated in {trained.seconds:.0f} s: {report.metrics}", flush=True)


def table(runs: Sequence[Trained], options: argparse.Namespace) -> str:
    """Return the section for RESULTS.md."""
    cuda = options.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else platform.machine()
    facts = [f"driver {driver_version()}"] if cuda else []
    facts += [f"torch {torch.__version__}", datetime.now(UTC).strftime("%Y-%m-%d"), f"commit {commit()}"]
    lines = [
        f"## Runs on one {device}",
        "",
        f"`python -m benchmarks.train_on_gpu {shlex.join(options.arguments)}`, {', '.join(facts)}. img/s is the mean over the "
        "points of the curves, waits for data, probes, grids and checkpoints included.",
        "",
        "| run | resolution | batch | images until | img/s | steps made by |",
        "|---|---|---|---|---|---|",
    ]
    for trained in runs:
        for stage, rows in trained.rows.items():
            paths = Counter(PATHS[int(row["metrics"]["time/path"])] for row in rows if "time/path" in row["metrics"])
            cells = trained.name, stage.resolution, stage.batch, f"{rows[-1]['nimg'] / 1000:,.0f} kimg"
            shares = ", ".join(f"{path} {count / sum(paths.values()):.0%}" for path, count in paths.most_common())
            lines.append("| " + " | ".join(map(str, (*cells, f"{mean_speed(rows):,.0f}", shares))) + " |")
    names = sorted({name for trained in runs for name in trained.metrics})
    if names:
        lines += ["", "| metric | " + " | ".join(run.name for run in runs) + " |", "|---" * (len(runs) + 1) + "|"]
        lines += [
            f"| {name} | "
            + " | ".join(f"{run.metrics[name]:.4g}" if name in run.metrics else "" for run in runs)
            + " |"
            for name in names
        ]
        lines.append("| seconds of the evaluation | " + " | ".join(f"{run.seconds:.0f}" for run in runs) + " |")
    reasons = {f"- {name}: {reason}": None for run in runs for name, reason in run.skipped.items()}
    if reasons:
        lines += ["", "Not measured:", "", *reasons]
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Trained], out: Path) -> None:
    """Write the last grid of each run, the curves, and the forgetting curves where there are any."""
    for trained in runs:
        for stage in trained.rows:
            grids = sample_grids(trained.run.stage_uri(stage))
            if grids:
                shutil.copy(grids[max(grids)], out / f"{trained.name}-{stage.resolution}.png")
    points = {
        title: {
            run.name: [(row["nimg"] / 1000, row["metrics"][name]) for row in run.all_rows if name in row["metrics"]]
            for run in runs
        }
        for name, title in CURVES.items()
    }
    charts = {
        title: curve_chart(series, x_name="kimg", log_y=title == CURVES["quick/fid"])
        for title, series in points.items()
        if any(series.values())
    }
    if charts:
        draw_charts("Curves", charts).save(out / "curves.png")
    forgetting = pictured_together({run.name: run.all_rows for run in runs})
    if forgetting:
        forgetting.save(out / PICTURE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure from the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="train_on_gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of table.md and the pictures")
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all variants")
    parser.add_argument(
        "--variant",
        action="append",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="a run; may be repeated; default: run",
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="after which no variant trains on, evaluations included"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: only to see that it works")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that shard")
    options = parser.parse_args(arguments)
    options.arguments = arguments
    require_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)

    runs = make_runs(options)
    deadline = time.monotonic() + 60 * options.minutes
    for trained in runs:
        checkpoint = train(trained, options.device, deadline)
        if checkpoint is not None:
            measure(trained, checkpoint, options.device)
        # Written after each run, because a machine that is lent may be gone before the last one.
        (options.out / "table.md").write_text(table(runs, options))
        draw(runs, options.out)
    print((options.out / "table.md").read_text())


if __name__ == "__main__":
    main()
