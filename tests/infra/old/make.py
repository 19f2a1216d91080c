"""Make the databases of this folder again: `python tests/infra/old/make.py VENV [--postgresql postgresql://USER@HOST:PORT]`.

They are what MLflow and Prefect of the minor versions before the pinned ones have written: their servers run out of
VENV, and the product logs two runs, registers both models and makes a schedule there; a flow runs, too. VENV is made by

    python3 -m venv VENV
    VENV/bin/pip install 'mlflow==3.16.1' 'prefect==3.7.8' 'fastapi<0.151' 'sqlalchemy<2.1' psycopg2-binary

With a PostgreSQL server, which may be empty and asks for no password, it makes the dumps of PostgreSQL instead of those
of SQLite.
"""

import argparse
import contextlib
import gzip
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

import mlflow_site  # noqa: E402
from prefect_servers import free_port  # noqa: E402

from stylegan.config.file import load  # noqa: E402

CONFIG = """
name: tiny
storage: {root: root}
data: {source: digits, resolution: 8, channels: 1}
model: {latent_size: 6, mapping_layers: 2, mapping_fmaps: 8, fmap_base: 64, fmap_max: 8}
training: {batch: 4}
"""
# The automation of `stylegan schedule` is left out: an older server refuses it.
SCHEDULE = """
from flows import schedule

with schedule._client() as client:
    schedule._make_pool(client)
    flow = client.create_flow_from_name(schedule.RETRAIN_FLOW_NAME)
    definition = schedule.deployment("tiny", "tiny.yaml", [], schedule.Timetable(cron="0 3 * * 1"), ".")
    client.create_deployment(flow, paused=False, **definition)
"""
FLOW = """
from prefect import flow, task

@task
def shard(): return 7

@flow(name="train", log_prints=True)
def train():
    print("a line of an old log")
    return shard()

train()
"""


@contextlib.contextmanager
def running(command: list[str], url: str, settings: dict[str, str]) -> Iterator[None]:
    """Run a server until the end of the block, which begins when the server answers."""
    server = subprocess.Popen(command, env=os.environ | settings, start_new_session=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            time.sleep(0.3)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def write_mlflow(venv: Path, database: str) -> None:
    """Let the old MLflow write two runs with curves and two versions, of which the second one is champion."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [f"{venv}/bin/mlflow", "server", "--workers", "1", "--port", url.rpartition(":")[2]]
    command += ["--backend-store-uri", database, "--artifacts-destination", "artifacts"]
    with running(command, f"{url}/health", {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}):
        config = load("tiny.yaml", [f"tracking.uri={url}"])
        for number in (0, 1):
            run, report = mlflow_site.log_run(config, Path.cwd(), number)
            mlflow_site.register_run(config, run, report)


def write_prefect(venv: Path, database: str) -> None:
    """Let the old Prefect write a deployment with a schedule, and a flow run with its task and a line of its log."""
    url = f"http://127.0.0.1:{free_port()}/api"
    settings = {
        "PREFECT_HOME": str(Path("home").absolute()),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": "",
    }
    command = [f"{venv}/bin/prefect", "server", "start", "--port", re.findall(r"\d+", url)[-1]]
    with running(command, f"{url}/health", settings):
        here = os.environ | settings | {"PYTHONPATH": str(PROJECT)}
        subprocess.run([sys.executable, "-c", SCHEDULE], env=here, check=True)
        subprocess.run([f"{venv}/bin/python", "-c", FLOW], env=os.environ | settings, check=True)
        time.sleep(5)  # the scheduler makes the runs of the next days, and the log is on its way


def store(name: str, dump: str) -> None:
    """Write a dump, which is the same for the same text."""
    (HERE / name).write_bytes(gzip.compress(dump.encode(), 9, mtime=0))
    print(f"{name}: {(HERE / name).stat().st_size:,} bytes")


def main() -> None:
    """Make the dumps in this folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("venv", type=Path)
    parser.add_argument("--postgresql", help="URL of a server without a password")
    arguments = parser.parse_args()
    venv = arguments.venv.absolute()
    writers = {"mlflow": write_mlflow, "prefect": write_prefect}
    drivers = {"mlflow": "postgresql+psycopg2", "prefect": "postgresql+asyncpg"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("tiny.yaml").write_text(CONFIG)
        for name, write in writers.items():
            if server := arguments.postgresql:
                subprocess.run(["createdb", "--maintenance-db", f"{server}/postgres", name], check=True)
                write(venv, f"{drivers[name]}{server.removeprefix('postgresql')}/{name}")
                command = ["pg_dump", "--no-owner", "--no-privileges", f"{server}/{name}"]
                store(
                    f"{name}.postgresql.sql.gz",
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout,
                )
                continue
            driver = "sqlite+aiosqlite" if name == "prefect" else "sqlite"
            write(venv, f"{driver}:///{folder}/{name}.db")
            with contextlib.closing(sqlite3.connect(f"{name}.db")) as database:
                store(f"{name}.sqlite.sql.gz", "\n".join(database.iterdump()))


if __name__ == "__main__":
    main()
