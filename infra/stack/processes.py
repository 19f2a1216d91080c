"""Start and end services of the stack, and tell which are up.

Every process of a service carries a mark in its environment, which its children inherit. So whatever is left of a service
is found, whoever killed its first process. The pid file is for people and for other programs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from infra.stack.environment import data_folder, is_free, postgres_user
from infra.stack.service import Service, Values, folder, kept_environment, pid_file, user_settings, why_not
from infra.stack.services import SERVICES
from stylegan.errors import StepError
from stylegan.places import FULL, nearest, shown_bytes
from stylegan.processes import has_ended
from stylegan.records import Record

MARK = "STYLEGAN_STACK_SERVICE"  # in the environment of all processes of a service
STARTS = (
    3  # of a service whose first process ends: where all start at once, Ray's nodes wait too shortly for their head
)
START_SECONDS = 180.0  # ends only what hangs: a first start makes databases
LARGEST_LOG = 50 * 2**20  # bytes; an older log is moved to `.1` at the next start
KILLED_SECONDS = 10.0  # within which a killed process is gone


class State(Record):
    """The state of a service.

    Attributes:
        name: of the service.
        state: `up` or `down`.
        version: of what answered; "" if nothing did.
        url: where it is found.
        why: the reason for being down; "" if it is up.
        pid: of its first process, None if that has ended.
    """

    name: str
    state: str
    version: str
    url: str
    why: str
    pid: int | None


def services(values: Values, names: Sequence[str] = ()) -> list[Service]:
    """Return the services of a stack, or those of them that are named, in the order of their start."""
    return [one for one in SERVICES if one.is_there(values) and (not names or one.name in names)]


def state_of(service: Service, values: Values) -> State:
    """Ask a service how it is."""
    pid, why, version = _pid(service, values), "", ""
    if pid is None:
        left = len(members(service, values))
        why = f"its first process has ended, {left} others of it have not" if left else "does not run"
        if _log(service, values).exists() and pid_file(values, service.name).exists():
            why += f"; see {_log(service, values)}"
    else:
        try:
            version = service.check(values)
        except Exception as error:  # of any library; a check says no by any of them
            why = why_not(error)
    return State(
        name=service.name,
        state="down" if why else "up",
        version=version,
        url=service.url(values),
        why=why,
        pid=pid,
    )


def start(values: Values, names: Sequence[str], tell: Callable[[str], None]) -> None:
    """Start the services that are down, in the order of their needs, and wait until each is well.

    Those that need nothing of each other start together. What is up stays as it is.

    Args:
        values: of the env file.
        names: of the services; all if empty.
        tell: is called with a line for each step.

    Raises:
        StepError: a service does not start; those that run stay up.
    """
    wanted = services(values, names)
    there = {one.name for one in services(values)}
    with _alone(values):
        up: set[str] = {one.name for one in services(values) if one not in wanted}
        waiting, starting = list(wanted), dict[str, tuple[Service, float, int]]()
        while waiting or starting:
            for service in [one for one in waiting if there.intersection(one.after) <= up]:
                waiting.remove(service)
                if state_of(service, values).state == "up":
                    up.add(service.name)
                    tell(f"{service.name}: is up")
                    continue
                _launch(service, values)
                starting[service.name] = (service, time.monotonic(), 1)
            for service, began, starts in list(starting.values()):
                found = state_of(service, values)
                if found.state == "up":
                    service.finish(values)
                    del starting[service.name]
                    up.add(service.name)
                    tell(f"{service.name}: started in {time.monotonic() - began:.0f} s ({found.version})")
                elif found.pid is None and starts < STARTS:
                    _launch(service, values)
                    starting[service.name] = (service, began, starts + 1)
                elif found.pid is None or time.monotonic() - began > START_SECONDS:
                    raise StepError(f"{service.name}: does not start: {_last_line(service, values) or found.why}; "
                                    f"see {_log(service, values)}")  # fmt: skip
            time.sleep(0.2)


def stop(values: Values, names: Sequence[str], tell: Callable[[str], None]) -> None:
    """End services, the last first, and wait until no process of them is left.

    Args:
        values, names, tell: as for `start`.
    """
    with _alone(values):
        for service in reversed(services(values, names)):
            left = members(service, values)
            if not left:
                tell(f"{service.name}: does not run")
                continue
            with suppress(Exception):  # what is half down has no work that could end
                service.end_work(values)
            killed = _end(service, values, left)
            tell(f"{service.name}: ended" + (f", {killed} of its processes killed" if killed else ""))
            pid_file(values, service.name).unlink(missing_ok=True)


def _end(service: Service, values: Values, left: list[psutil.Process]) -> int:
    """Ask the processes of a service to end, kill those that do not within its time, and return how many those were."""
    first = _pid(service, values)
    for process in left:
        if service.to_all or first is None or process.pid == first:
            _signal(process, service.stop_signal)
    _, left = psutil.wait_procs(left, timeout=service.stop_seconds)
    kill(service, values)
    return len(left)


def kill(service: Service, values: Values) -> None:
    """Kill every process of a service, and wait until none is left."""
    while left := members(service, values):
        for process in left:
            _signal(process, signal.SIGKILL)
        _, left = psutil.wait_procs(left, timeout=KILLED_SECONDS)
        if left:
            raise StepError(f"{service.name}: process {left[0].pid} cannot be killed")


def members(service: Service, values: Values) -> list[psutil.Process]:
    """Return the processes of a service that live."""
    mark, found = _mark(service, values), []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def log_files(values: Values, names: Sequence[str] = ()) -> Mapping[str, Path]:
    """Return the log of each service."""
    return {one.name: _log(one, values) for one in services(values, names)}


def _launch(service: Service, values: Values) -> None:
    """Start a service, after what is left of it was ended."""
    disk = nearest(folder(values, service.name))
    if (free := shutil.disk_usage(disk).free) < FULL:  # what is left of it may still answer who reads
        raise StepError(
            f"{service.name}: no space left on the disk of {disk} ({shown_bytes(free)} free); free some, then type this "
            "command again"
        )
    if _pid(service, values) is None:
        kill(service, values)
    else:  # it is not well, but may still close its files
        _end(service, values, members(service, values))
    for name in service.ports:
        if not is_free(int(values[name])):
            raise StepError(
                f"{service.name}: {name}={values[name]}: another program listens on this port; end that one, or give another "
                "port in the env file"
            )
    for place in ("run", "logs"):
        (data_folder(values) / place).mkdir(parents=True, exist_ok=True)
    service.prepare(values)
    log = _log(service, values)
    if log.exists() and log.stat().st_size > LARGEST_LOG:
        os.replace(log, log.with_suffix(".log.1"))
    user = postgres_user() if service.name == "postgres" else None
    environment = kept_environment() | service.environment(values) | {MARK: _mark(service, values)}
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        process = subprocess.Popen(
            service.command(values),
            env=environment,
            cwd=_working_folder(service, values),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **user_settings(user),
        )
    started = psutil.Process(process.pid).create_time()
    pid_file(values, service.name).write_text(f"{process.pid} {started}\n")


def _working_folder(service: Service, values: Values) -> str:
    own = data_folder(values) / service.name
    return str(own if own.is_dir() else data_folder(values))


def _pid(service: Service, values: Values) -> int | None:
    """Return the pid of a service's first process; None if that has ended."""
    with suppress(OSError, ValueError):
        pid, started = pid_file(values, service.name).read_text().split()
        if not has_ended(int(pid), float(started)):
            return int(pid)
    return None


def _log(service: Service, values: Values) -> Path:
    return data_folder(values) / "logs" / f"{service.name}.log"


def _last_line(service: Service, values: Values) -> str:
    """Return the last line of a log that is an error, else the last one."""
    with suppress(OSError):
        lines = [
            line.strip() for line in _log(service, values).read_text(errors="replace").splitlines() if line.strip()
        ]
        errors = [line for line in lines[-40:] if "rror" in line or "FATAL" in line]
        return (errors or lines or [""])[-1][:300]
    return ""


def _mark(service: Service, values: Values) -> str:
    return f"{data_folder(values)}:{service.name}"


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


def _alone(values: Values) -> FileLock:
    """Return a lock under which services are started and ended: two `up` at once would start all of them twice."""
    data_folder(values).mkdir(parents=True, exist_ok=True)
    lock = FileLock(data_folder(values) / "stack.lock", timeout=START_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise StepError(
            f"{data_folder(values)}: another `up` or `down` works on this stack; wait for its end"
        ) from None
    return lock
