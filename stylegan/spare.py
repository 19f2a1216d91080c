"""A Ray process for work beside training, which training must not notice.

Its process begins by importing this file, which therefore imports next to nothing: what takes seconds comes after `_Spare` has
stood back.
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
    """A process on this node that takes no share of the cluster, so that it can always be placed, runs when nothing else wants the
    CPU, and does one thing at a time. Ray starts it at the first call, and again if it was lost.
    """

    def __init__(self) -> None:
        self._actor: Any = None
        self._closed = False
        self._lock = threading.Lock()

    def call(self, function: Callable[[T], R], item: T) -> R:
        """function(item) over there, on as many threads as the cluster has CPUs free (at least one).

        Raises:
            UnavailableError: the process was lost or closed. Other errors as they are raised there.
        """
        import ray

        from stylegan.cluster import result_of

        with self._lock:
            if self._closed:
                raise UnavailableError("the spare worker is closed")
            if self._actor is None:
                self._actor = _start()
            reference = self._actor.call.remote(function, item, int(ray.available_resources().get("CPU", 0)))
        found: R = result_of(reference)
        return found

    def close(self) -> None:
        """End the process, if there is one, in the middle of whatever it does."""
        import ray

        with self._lock, contextlib.suppress(Exception):  # if Ray is gone, so is the process
            self._closed = True
            if self._actor is not None:
                ray.kill(self._actor)


def _start() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    environment = {name: value for name, value in os.environ.items() if name.startswith("STYLEGAN_")}
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Spare).remote(environment)


class _Spare:
    """The actor; files are where the driver has them."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        os.nice(19)
        with contextlib.suppress(
            AttributeError, OSError
        ):  # Linux: beside workers at Ray's nice 15, 19 is still a quarter of a CPU
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def call(self, function: Callable[[T], R], item: T, threads: int) -> R:
        import torch

        torch.set_num_threads(max(min(threads, os.cpu_count() or 1), 1))
        return function(item)
