"""Notices to the workers of a stage that they are to stop, and why; they go through the key-value store of the cluster.

Workers that are stopped by a notice write a checkpoint at the next step and return, so nothing but that step is lost.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, cast

Reason = Literal["stop", "signal", "drain", "grow"]
POLL_SECONDS = 0.3  # between two looks of a worker for a notice

_terminated = threading.Event()  # whether this worker has received SIGTERM


class Notice(NamedTuple):
    """Say why the workers of a stage stop.

    - `stop`: the program that has launched them is stopped.
    - `signal`: a worker was sent SIGTERM.
    - `drain`: a node that they are on is taken away soon.
    - `grow`: the cluster has room for more workers.
    """

    reason: Reason
    detail: str = ""


class Board:
    """Hold the notices for one set of workers, and what they tell of themselves; can be pickled."""

    def __init__(self) -> None:
        self.key = f"stylegan-{uuid.uuid4().hex}"

    def post(self, reason: Reason, detail: str = "") -> None:
        """Ask the workers to stop. The first notice stays: they stop only once."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(f"{self.key}-notice", f"{reason} {detail}".encode(), overwrite=False)

    def read(self) -> Notice | None:
        """Return the notice, None if there is none."""
        from ray.experimental.internal_kv import _internal_kv_get

        found = _internal_kv_get(f"{self.key}-notice")
        if found is None:
            return None
        reason, _, detail = found.decode().partition(" ")
        return Notice(cast(Reason, reason), detail)

    def enter(self, rank: int) -> None:
        """Note on which node this worker is."""
        import ray
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(f"{self.key}-node-{rank}", ray.get_runtime_context().get_node_id().encode())

    def nodes(self) -> dict[str, int]:
        """Return the ids of the nodes with workers, and how many each has."""
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

        counts: dict[str, int] = {}
        for key in _internal_kv_list(f"{self.key}-node-"):
            if found := _internal_kv_get(key):
                counts[found.decode()] = counts.get(found.decode(), 0) + 1
        return counts

    def clear(self) -> None:
        """Delete all entries from the store."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self.key, del_by_prefix=True)


def catch_sigterm() -> None:
    """Make SIGTERM a notice of the worker that receives it; Ray would end the process. Called on its main thread."""
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


@contextlib.contextmanager
def watched(board: Board, rank: int) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns at once whether this worker is asked to stop; only that of rank 0 is ever called.

    Meanwhile every rank posts a SIGTERM that it receives, by which all of them stop.
    """
    asked, over = threading.Event(), threading.Event()

    def look() -> None:
        while not over.wait(POLL_SECONDS):
            with contextlib.suppress(Exception):  # the head of the cluster may be away for a moment
                if _terminated.is_set():
                    board.post("signal", f"rank {rank}")
                    _terminated.clear()
                if rank == 0 and not asked.is_set() and board.read():
                    asked.set()

    with contextlib.suppress(Exception):
        board.enter(rank)
    threading.Thread(target=look, name="notices", daemon=True).start()
    try:
        yield asked.is_set
    finally:
        over.set()
