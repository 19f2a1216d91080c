"""Requests to stop a stage early, on which all ranks must agree."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from stylegan.training import distributed

LOOK_SECONDS = 1.0  # between two agreements of the ranks


class StageStopped(Exception):
    """A stage has stopped early, as it was asked to; its newest checkpoint has the state of this moment."""


class StopRequests:
    """Asks before each step whether training is to stop. The answer is the same on all ranks.

    One process asks every time. Several ranks exchange the answer of rank 0, which takes a moment, so they do it about
    once in `LOOK_SECONDS`. Rank 0 also says how many steps that will be, as no two ranks measure the same speed.
    """

    def __init__(self, asked: Callable[[], bool] | None, device: torch.device) -> None:
        """Start without a request.

        Args:
            asked: whether to stop, called on rank 0 only; None: training is never stopped.
            device: where the ranks exchange the answer; the GPU of this rank with NCCL.
        """
        self._asked, self._device = asked, device
        self._steps_left = self._steps = 1
        self._time = time.monotonic()

    def arrived(self) -> bool:
        """Return whether to stop now. Every rank must call this before each step."""
        if self._asked is None:
            return False
        if distributed.world_size() == 1:
            return self._asked()
        self._steps_left -= 1
        if self._steps_left > 0:
            return False
        answer = torch.tensor([int(self._asked()) if distributed.rank() == 0 else 0, self._next_steps()])
        stop, self._steps = distributed.of_first_rank(answer.to(self._device)).tolist()
        self._steps_left, self._time = self._steps, time.monotonic()
        return bool(stop)

    def _next_steps(self) -> int:
        """Return the number of steps that take about `LOOK_SECONDS`, by the time of the last ones."""
        each = max(time.monotonic() - self._time, 1e-3) / self._steps
        return max(1, min(int(LOOK_SECONDS / each), 4 * self._steps))
