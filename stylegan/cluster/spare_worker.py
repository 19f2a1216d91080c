"""A Ray process for work beside training that must not slow training down.

Its process starts by importing this file, so the file imports almost nothing: everything that takes seconds is imported
after `_Spare` has lowered its own priority.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from stylegan.errors import UnavailableError

T = TypeVar("T")
R = TypeVar("R")


class SpareWorker:
    """A process on this node that runs when nothing else wants the CPU, one call at a time.

    It takes no share of the cluster's resources, so Ray can always place it. Ray starts it at the first call, and again
    if it was lost.
    """

    def __init__(self) -> None:
        self._actor: Any = None
        self._closed = False
        self._lock = threading.Lock()

    def call(self, function: Callable[[T], R], item: T) -> R:
        """Return function(item), computed there on as many threads as the cluster has CPUs free (at least one).

        Raises:
            UnavailableError: the process was lost or closed. Other errors are raised as they were there.
        """
        import ray

        from stylegan.cluster.parallel_map import result_of

        with self._lock:
            if self._closed:
                raise UnavailableError("the spare worker is closed")
            if self._actor is None:
                self._actor = _start()
            reference = self._actor.call.remote(function, item, int(ray.available_resources().get("CPU", 0)))
        found: R = result_of(reference)
        return found

    def close(self) -> None:
        """Kill the process, if it was started, even in the middle of a call."""
        import ray

        from stylegan.cluster.head import head_answers

        with self._lock, contextlib.suppress(Exception):  # if Ray is gone, so is the process
            self._closed = True
            if self._actor is not None and head_answers():
                ray.kill(self._actor)


def _start() -> Any:
    """Start the actor on this node, with the STYLEGAN_ variables of this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    environment = {name: value for name, value in os.environ.items() if name.startswith("STYLEGAN_")}
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Spare).remote(environment)


class _Spare:
    """The actor. It finds caches and weights where the driver has them."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        os.nice(19)
        # Linux only. Beside workers at Ray's nice 15, nice 19 alone would still get a quarter of a CPU.
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def call(self, function: Callable[[T], R], item: T, threads: int) -> R:
        """Return function(item)."""
        import torch

        torch.set_num_threads(max(min(threads, os.cpu_count() or 1), 1))
        return function(item)
