"""Say whether the service of a container works: `health.py`, for HEALTHCHECK and probes. Exit code 0 if it does.

One image is every service, so what is asked follows from the command with which the container was started. A command that
runs and ends, such as `stylegan run`, is healthy while it runs.
"""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

SECONDS = 5  # to answer
# How a service is started -> the option and the variable that set its port, the usual port, the path that tells its health.
SERVICES = {
    ("ray", "start", "--head"): ("--dashboard-port", "", 8265, "/api/gcs_healthz"),
    ("ray", "start"): ("--dashboard-agent-listen-port", "", 52365, "/api/local_raylet_healthz"),
    ("prefect", "server"): ("--port", "PREFECT_SERVER_API_PORT", 4200, "/api/health"),
    ("prefect", "worker"): ("", "PREFECT_WORKER_WEBSERVER_PORT", 8080, "/health"),
    ("mlflow", "server"): ("--port", "MLFLOW_PORT", 5000, "/health"),
    ("serve",): ("--port", "", 8501, "/health"),
}


def address(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return the URL that tells the health of what a command has started; None if that is no service.

    Args:
        command: the words of the command; those of an init before it do no harm.
        environment: its environment variables.
    """
    words = [word for part in command for word in part.split("=", 1)]
    programs = {word.rpartition("/")[2] for word in words}
    for names, (option, variable, port, path) in SERVICES.items():
        if programs.issuperset(names):
            if option and option in words:
                number = words[words.index(option) + 1]
            else:
                number = environment.get(variable, str(port))
            return f"http://127.0.0.1:{number}{path}"
    return None


def main(pid: str = "1") -> str | None:
    """Return why the service that a process began with does not work, None if it does."""
    command = [os.fsdecode(word) for word in Path("/proc", pid, "cmdline").read_bytes().rstrip(b"\0").split(b"\0")]
    url = address(command, os.environ)
    if url is None:
        return None
    try:
        # No proxy: this is the container itself.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=SECONDS):
            return None
    except OSError as error:
        return f"{url}: {error}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
