"""Test of the deployment in infra/prefect.yaml on a real Prefect server: its schedule, and a run started by hand."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(finished):
    """Run a Prefect server, and yield the URL of its API, the environment for its clients and the `prefect` command."""
    # Choose a port and a home of its own.
    place, _ = finished
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    home = place.folder / "server"
    env = os.environ | place.env | {"PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    env |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}

    # Start it, and wait until it answers.
    prefect = str(Path(sys.executable).parent / "prefect")
    command = [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(place.folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield url, env, prefect
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def post(url, path, body):
    """Send a request to Prefect's API and return its answer."""
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def wait_for(condition, seconds):
    """Return the result of the condition as soon as it is true, or its last result after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(1)
    return condition()


def test_deployment_is_scheduled_and_a_triggered_run_goes_through(finished, server):
    """The shipped file can be deployed. The run is quick, because storage has the results of all its steps."""
    # Copy the files of the project, with the finished config in place of the quickstart.
    place, _summary = finished
    url, env, prefect = server
    for folder in ("flows", "infra", "configs"):
        shutil.copytree(ROOT / folder, place.folder / folder, dirs_exist_ok=True)
    shutil.copy(place.config, place.folder / "configs" / "quickstart.yaml")

    def cli(*arguments):
        done = subprocess.run(
            [prefect, "--no-prompt", *arguments], cwd=place.folder, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # Deploy.
    cli("work-pool", "create", "stylegan", "--type", "process")
    cli("deploy", "--prefect-file", "infra/prefect.yaml", "--all")
    (deployment,) = post(url, "/deployments/filter", {})
    assert deployment["name"] == "weekly"
    assert deployment["global_concurrency_limit"]["limit"] == 1

    # The schedule makes runs.
    scheduled = wait_for(
        lambda: post(url, "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}), 60
    )
    assert len(scheduled) >= 2
    assert all(run["expected_start_time"][11:16] == "03:00" for run in scheduled)

    # A worker performs a run that is started by hand.
    with open(place.folder / "worker.log", "wb") as log:
        worker = subprocess.Popen(
            [prefect, "worker", "start", "--pool", "stylegan"],
            cwd=place.folder,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        cli("deployment", "run", "stylegan-train/weekly", "--watch")
        (run,) = post(url, "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})
        tasks = post(
            url, "/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        )
        assert [(task["name"], task["state"]["name"]) for task in tasks] == [
            (name, "Cached") for name in ("shard", "train 4x4", "train 8x8", "evaluate", "register", "gate")
        ]
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
