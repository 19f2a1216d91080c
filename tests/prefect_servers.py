"""Real Prefect servers and workers for tests, each with a port and a home of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFECT = str(Path(sys.executable).parent / "prefect")
START_SECONDS = 120


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """Return the result of the condition as soon as it is true, or its last result after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.5)
    return condition()


@dataclass
class Server:
    """A Prefect server that can be killed and started again, and its workers.

    Attributes:
        folder: where its home and the logs are.
        env: more environment variables of the server and of all commands.
    """

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL of its API."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of its clients."""
        own = {"PREFECT_HOME": str(self.folder / "server"), "PREFECT_API_URL": self.url}
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_PROFILE": "ephemeral"}
        return os.environ | self.env | own | quiet

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        assert wait_for(self.answers, START_SECONDS), (self.folder / "server.log").read_text()[-2000:]

    def answers(self) -> bool:
        """Return whether it answers."""
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=2)
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Kill the server, as a machine does that goes down."""
        assert self.process is not None
        end(self.process)

    def start_worker(self, cwd: Path | None = None, name: str = "worker") -> subprocess.Popen[bytes]:
        """Start a worker of the pool `stylegan` that looks for runs every second."""
        env = self.environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
        command = [PREFECT, "worker", "start", "--pool", "stylegan", "--name", name]
        with open(self.folder / "worker.log", "ab") as log:
            worker = subprocess.Popen(
                command, cwd=cwd or self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.workers.append(worker)
        return worker

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request to the API and return its answer."""
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", data, headers), timeout=20) as answer:
            return json.load(answer)

    def runs(self, *, scheduled: bool = False) -> list[dict[str, Any]]:
        """Return the flow runs, the oldest first; those that wait for their time only if asked for."""
        found: list[dict[str, Any]] = self.post("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC", "limit": 200})
        return [run for run in found if (run["state"]["type"] == "SCHEDULED") == scheduled]

    def tasks(self, run: dict[str, Any]) -> list[tuple[str, str]]:
        """Return name and state of the tasks of a run, in order."""
        body = {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return [(task["name"], task["state"]["name"]) for task in self.post("/task_runs/filter", body)]

    def cli(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run the `prefect` command and return what it prints. A failure fails the test."""
        done = subprocess.run(
            [PREFECT, "--no-prompt", *arguments],
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        """End everything that was started."""
        for process in [*self.workers, *([self.process] if self.process else [])]:
            end(process)


def end(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that leads a group, and to its group, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()
