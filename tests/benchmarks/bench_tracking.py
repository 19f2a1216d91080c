"""Measure how long our own queries and MLflow's pages take in an experiment of 200 runs with 300 points and 50 grids each."""

from __future__ import annotations

import argparse
import io
import json
import platform
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import mlflow
import mlflow_site
from PIL import Image

from stylegan.config.file import build
from stylegan.config.tree import Config
from stylegan.registry import versions
from stylegan.registry.contents import list_registered, list_versions
from stylegan.tracking.connection import connect, resolve_uri, sqlite_file
from stylegan.tracking.links import comparison_url
from stylegan.tracking.open_run import open_run
from stylegan.tracking.presentation import find_run_before
from stylegan.tracking.removal import list_runs

METRICS = (
    "loss/d",
    "loss/g",
    "loss/r1",
    "scores/real",
    "scores/fake",
    "progress/kimg",
    "time/img_per_sec",
    "quick/fid_classifier",
)


def make_config(folder: Path, seed: int = 0) -> Config:
    """Return the config of a run whose storage is below a folder."""
    tree = {
        "name": "bench",
        "seed": seed,
        "storage": {"root": str(folder / "root")},
        "data": {"source": "digits", "resolution": 8, "channels": 1},
        "training": {"batch": 4},
        "evaluation": {"num_images": 10},
    }
    return build(tree)


def fabricate(folder: Path, runs: int, points: int, grids: int) -> list[str]:
    """Fill a store with finished runs and a version of each; return MLflow's ids of the runs.

    The runs are opened by the product itself; their points and pictures are written past MLflow, which would take hours.
    """
    buffer = io.BytesIO()
    Image.new("L", (160, 160), 90).save(buffer, "PNG")
    png = buffer.getvalue()
    ids = []
    for number in range(runs):
        run = open_run(make_config(folder, number), f"bench-{number:010x}", mlflow_site.SHARDS)
        run.stop_system_metrics()
        images = Path(run.client.get_run(run.mlflow_run_id).info.artifact_uri.removeprefix("file://"), "images")
        images.mkdir(parents=True)
        for grid in range(grids):
            for end in ("png", "webp"):
                name = f"samples+step+{grid * points // grids}+timestamp+1795801999806+0000-{grid:04}+{end}.{end}"
                (images / name.replace("+png.png", ".png").replace("+webp.webp", "+compressed.webp")).write_bytes(png)
        run.client.set_tag(run.mlflow_run_id, "mlflow.loggedImages", "true")
        run.finish("FINISHED")
        ids.append(run.mlflow_run_id)
    _write_points(folder, ids, points)
    _register(folder, ids)
    return ids


def _write_points(folder: Path, ids: list[str], points: int) -> None:
    file = sqlite_file(resolve_uri(make_config(folder)))
    now = int(time.time() * 1000)
    with sqlite3.connect(file) as database:
        for number, run in enumerate(ids):
            rows = [
                (name, 1 / (1 + step) + number / 1000, now + step, run, step, 0)
                for name in METRICS
                for step in range(points)
            ]
            sql = "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) values (?, ?, ?, ?, ?, ?)"
            database.executemany(sql, rows)
            last = [row for row in rows if row[4] == points - 1]
            database.executemany(sql.replace("metrics", "latest_metrics", 1), last)


def _register(folder: Path, ids: list[str]) -> None:
    client, name = connect(resolve_uri(make_config(folder))), "bench"
    client.create_registered_model(name)
    for number, run in enumerate(ids):
        tags = {
            "stylegan.key": f"k{number}",
            "stylegan.registered": "2026-01-01T00:00:00Z",
            "stylegan.run_id": f"bench-{number:010x}",
            "stylegan.metrics": json.dumps({"fid_classifier": 5.0 - number / 100}),
        }
        client.create_model_version(name, str(folder / "model"), run_id=run, tags=tags)
    client.set_registered_model_alias(name, "champion", str(len(ids)))


def timed(name: str, work: Callable[[], object], repeats: int = 3) -> tuple[str, float]:
    """Return the name and the least seconds of some repeats."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return name, min(seconds)


def post(url: str, body: dict) -> bytes:
    """Return the answer to a request of MLflow's page."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return bytes(answer.read())


def measure(folder: Path, ids: list[str]) -> list[tuple[str, float]]:
    """Time our queries on the store, then the requests of MLflow's pages through its server."""
    config, last = make_config(folder, len(ids) - 1), f"bench-{len(ids) - 1:010x}"
    client = connect(resolve_uri(config))
    rows = [
        timed("open a finished run again", lambda: open_run(config, last, mlflow_site.SHARDS)),
        timed("find the run before it", lambda: find_run_before(client, ids[-1])),
        timed("find a version by its key", lambda: versions.find_version(config, "k7")),
        timed("list the versions of a model", lambda: list_registered(config)),
        timed("list all versions, as `ls` does", lambda: list_versions(resolve_uri(config))),
        timed("list all runs, as `gc` does", lambda: list_runs(config)),
        timed("the link to the prepared view", lambda: comparison_url(config)),
    ]
    experiment = client.get_experiment_by_name(config.tracking.experiment).experiment_id
    with mlflow_site.serving(resolve_uri(config), str(folder / "artifacts")) as url:
        api = f"{url}/ajax-api/2.0/mlflow"
        listing = {"experiment_ids": [experiment], "max_results": 100, "order_by": ["attributes.start_time DESC"]}
        history = "&".join(f"run_ids={run}" for run in ids[-20:])

        def chart() -> bytes:
            address = f"{api}/metrics/get-history-bulk-interval?{history}&metric_key=loss%2Fd&max_results=320"
            with urllib.request.urlopen(address, timeout=120) as answer:
                return bytes(answer.read())

        def images() -> bytes:
            with urllib.request.urlopen(f"{api}/artifacts/list?run_uuid={ids[-1]}&path=images", timeout=120) as answer:
                return bytes(answer.read())

        rows += [
            timed("MLflow's page: list of 100 runs", lambda: post(f"{api}/runs/search", listing)),
            timed("MLflow's page: a chart of 20 runs", chart),
            timed("MLflow's page: the grids of a run", images),
        ]
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--grids", type=int, default=50)
    chosen = parser.parse_args(arguments)
    print(f"MLflow {mlflow.__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    with tempfile.TemporaryDirectory() as text:
        began = time.perf_counter()
        ids = fabricate(Path(text), chosen.runs, chosen.points, chosen.grids)
        print(
            f"{chosen.runs} runs of {chosen.points} points and {chosen.grids} grids, made in {time.perf_counter() - began:.0f} s"
        )
        for name, seconds in measure(Path(text), ids):
            print(f"{name:<40}{seconds:8.2f} s")


if __name__ == "__main__":
    sys.exit(main())
