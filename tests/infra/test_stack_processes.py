"""How services of the stack are started and ended, shown with small programs as services."""

import signal
import socket
import sys
import time

import psutil
import pytest

from infra.stack import environment, processes
from infra.stack.service import Service, folder
from infra.stack.services import SERVICES
from stylegan.errors import StepError

# Says that it runs, and closes its file when it is asked to end.
PROGRAM = """
import signal, sys, time
from pathlib import Path
home = Path(sys.argv[1])
def end(*_):
    (home / "closed").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
(home / "runs").touch()
time.sleep(60)
"""


@pytest.fixture
def values(tmp_path):
    path = tmp_path / "stack.env"
    environment.make(path)
    return environment.read(path)


@pytest.fixture
def service(values):
    """A service that runs and is never well."""

    def check(_):
        raise StepError("takes no objects")

    home = folder(values, "clerk")
    home.mkdir(parents=True)
    made = Service(
        "clerk",
        (),
        lambda _: [sys.executable, "-c", PROGRAM, str(home)],
        lambda _: {},
        check,
        lambda _: "",
        (),
        stop_signal=signal.SIGTERM,
    )
    yield made
    processes.kill(made, values)


def launch(service, values):
    """Start a service, and return its process once it runs."""
    runs = folder(values, service.name) / "runs"
    runs.unlink(missing_ok=True)
    processes._launch(service, values)
    deadline = time.monotonic() + 30
    while not runs.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (process,) = processes.members(service, values)
    return process


def test_a_service_that_runs_but_is_not_well_closes_its_files_before_it_starts_again(values, service):
    before = launch(service, values)
    after = launch(service, values)
    assert (folder(values, "clerk") / "closed").exists()
    assert not psutil.pid_exists(before.pid)
    assert after.pid != before.pid


def test_what_a_killed_service_has_left_is_killed(values, service):
    launch(service, values)
    processes.pid_file(values, "clerk").unlink()  # as if the process that is left were not the first
    launch(service, values)
    assert not (folder(values, "clerk") / "closed").exists()


def test_up_ends_nothing_on_a_full_disk(values, service, monkeypatch):
    before = launch(service, values)
    monkeypatch.setattr(processes, "FULL", 2**60)
    with pytest.raises(
        StepError, match=r"clerk: no space left on the disk of .*; free some, then type this command again"
    ):
        processes._launch(service, values)
    assert before.is_running()


def test_a_port_that_is_taken_is_one_line(values):
    """Of the service alone that would listen there; nothing of it is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = values | {"STACK_MLFLOW_PORT": str(port)}
        (service,) = [one for one in SERVICES if one.name == "mlflow"]
        with pytest.raises(StepError, match=f"mlflow: STACK_MLFLOW_PORT={port}: another program listens on this port"):
            processes._launch(service, taken)
    assert not processes.pid_file(values, "mlflow").exists()
