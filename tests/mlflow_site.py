"""A server of MLflow with fabricated runs, logged by the product itself, and a browser that opens its pages."""

import functools
import io
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.registry import versions
from stylegan.registry.gate import judge
from stylegan.tracking.open_run import open_run
from stylegan.tracking.runs import TrackedRun

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SHARDS = ShardSet(
    uri="/nowhere/datasets/f",
    fingerprint="f1",
    num_images=1797,
    resolutions=(4, 8),
    label_names=("a", "b"),
    num_rejected=3,
)
STEPS = range(0, 60, 3)  # kimg of the points of a curve


def grid(run: int, kimg: int) -> bytes:
    """Return a sample grid as a PNG file: tiles that take shape as a run goes on."""
    rows, columns = np.mgrid[0:64, 0:96]
    waves = 128 + 100 * np.sin(rows / (3 + run)) * np.cos(columns / (4 + run)) * min(1.0, kimg / 60)
    noise = np.random.default_rng(kimg).normal(0, 60 / (1 + kimg), waves.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def report_of(folder: Path, number: int, fid: float) -> Report:
    """Return a report with an interval and a figure; the model gets better with its number."""
    figure = folder / f"grid-{number}.png"
    figure.write_bytes(grid(number, 60))
    return Report(
        protocol="p1",
        dataset_fingerprint="f1",
        checkpoint_uri=str(folder / f"checkpoint-{number}"),
        metrics={"fid_classifier": fid, "recall_classifier": 0.41 + 0.05 * number},
        intervals={"fid_classifier": (fid - 0.2, fid + 0.2)},
        figures={"grid": str(figure)},
        skipped={},
    )


def log_run(config: Config, folder: Path, number: int) -> tuple[TrackedRun, Report]:
    """Log a whole run as the pipeline does: curves, quick metrics, sample grids and report."""
    run = open_run(config, f"tiny-{number:04}", SHARDS)
    rows = []
    for kimg in STEPS:
        metrics = {
            "loss/d": 1.2 - 0.1 * math.log1p(kimg) / (1 + number),
            "loss/g": 0.8 + 0.05 * math.log1p(kimg),
            "loss/r1": 0.1 / (1 + kimg),
            "scores/real": 0.5,
            "scores/fake": -0.5 + kimg / 200,
            "progress/resolution": 4 if kimg < 30 else 8,
            "time/img_per_sec": 900.0 + 10 * number + kimg,
        }
        rows.append({"nimg": kimg * 1000 + 500, "resolution": 8, "metrics": metrics})
    run.log_rows(rows)
    fid = 3.8 - 0.9 * number
    quick = [{"nimg": kimg * 1000, "metrics": {"quick/fid_classifier": fid + 40 / (1 + kimg)}} for kimg in STEPS]
    run.log_quick(quick)
    for kimg in (0, 30, 57):
        run.log_sample(kimg, grid(number, kimg))
    report = report_of(folder, number, fid)
    run.log_report(report, nimg=60_000)
    run.finish("FINISHED")
    return run, report


def register_run(config: Config, run: TrackedRun, report: Report) -> None:
    """Register the model of a run, judge it and move the aliases, as the pipeline does."""
    checkpoint = Path(report.checkpoint_uri)
    checkpoint.mkdir(exist_ok=True)
    torch.manual_seed(0)
    generator = Generator(config.model, resolution=8, channels=1, num_labels=0)
    (checkpoint / "generator.safetensors").write_bytes(save_generator(generator, ()))
    version = versions.register(
        config,
        mlflow_run_id=run.mlflow_run_id,
        checkpoint=str(checkpoint),
        shards=SHARDS,
        report=report,
        key=checkpoint.name,
    )
    now = versions.champion(config)
    verdict = judge(
        report,
        now[1] if now else None,
        config.registry.gate,
        challenger_version=version.version,
        champion_version=now[0] if now else None,
    )
    versions.apply_verdict(config, verdict, "g1")


@contextmanager
def serving(store: str, artifacts: str) -> Iterator[str]:
    """Run MLflow's server on a store; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", store, "--artifacts-destination", artifacts]
    server = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    try:
        _wait_for(url, server)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise RuntimeError(f"MLflow's server did not answer at {url} (exit code {server.poll()})")


def open_page(url: str, picture: Path, *, height: int = 2400, seconds: int = 30) -> str:
    """Open a page in a headless browser, save what it shows as a picture, and return its DOM as text."""
    profile = picture.with_suffix(".profile")
    browser = functools.partial(subprocess.run, capture_output=True, text=True, timeout=240, check=True)
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += [f"--window-size=1600,{height}", f"--virtual-time-budget={seconds * 1000}"]
    return browser([*command, f"--screenshot={picture}", "--dump-dom", url]).stdout


def is_blank(picture: Path) -> bool:
    """Return whether a picture has next to nothing on it: fewer than a hundred colours, or one that covers nearly all."""
    colours = Image.open(picture).convert("RGB").getcolors(1 << 24)
    return len(colours) < 100 or max(colours)[0] > 0.995 * sum(number for number, _ in colours)
