"""Name a process so that another one can tell whether it still runs, also after the machine was started again."""

from __future__ import annotations

import contextlib
import os
import socket
from functools import lru_cache
from pathlib import Path

import psutil

from stylegan.records import Record, digest

SAME_START = 5.0  # seconds: the start of a process is computed from the boot time, which is adjusted


class Process(Record):
    """A process: where its pid counts, its pid, and its start in seconds since 1970, since pids are used again."""

    place: str
    pid: int
    started: float

    @property
    def is_gone(self) -> bool:
        """True if it is of this place and no longer runs; False also for what cannot be seen from here."""
        if self.place != place():
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) > SAME_START or process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True


def this_process() -> Process:
    """Return the process that asks."""
    return Process(place=place(), pid=os.getpid(), started=round(psutil.Process().create_time()))


@lru_cache(maxsize=1)
def place() -> str:
    """Return the name of the place whose pids this process sees: a machine, or a container on it.

    Hosts and containers may have the same name and share a server or a folder, so the name alone does not tell. It stays
    the same when the machine is started again.
    """
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/etc/machine-id").read_text().strip())
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return f"{facts[0]}-{digest(facts)}"
