"""Know processes of this machine again: where a pid counts, and whether the process that had it still runs."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil

from stylegan.records import digest

SAME_START = 5  # seconds; start times are computed from the time of the boot, which is adjusted


def place() -> str:
    """Return the name of the place whose pids this process sees: a machine, or a container on it.

    Hosts and containers may have the same name and share a server or a store, so the name alone does not tell. It stays
    the same when the machine is started again.
    """
    facts = [socket.gethostname()]
    with suppress(OSError):
        facts.append(Path("/etc/machine-id").read_text().strip())
    with suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return f"{facts[0]}-{digest(facts)}"


def start_time() -> float:
    """Return when this process was started, in seconds since 1970; pids are reused."""
    return psutil.Process().create_time()


def has_ended(pid: int, started: float) -> bool:
    """Return whether a process of this place no longer runs; one that only waits to be collected has ended, too.

    Args:
        pid: of the process.
        started: its `start_time`.
    """
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - started) > SAME_START
    except psutil.AccessDenied:  # somebody else's, and there
        return False
    except psutil.Error:
        return True
