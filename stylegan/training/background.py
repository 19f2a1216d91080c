"""Work that training does not wait for: copies to host memory, and one thread that serialises and uploads them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")
logger = logging.getLogger("stylegan")


class Background:
    """One thread that does jobs in the order they come in. What a job raises is raised again here, once, and never lost.

        with Background() as background:
            background.submit(job)
            background.check()      # at every step

    The end of the block waits for all jobs, also when it is left by an error: what was copied by then gets written.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "background")
        self._jobs: deque[Future[Any]] = deque()  # not yet seen to have ended well

    def submit(self, job: Callable[[], object]) -> Future[Any]:
        """Do this after all that came before. Raises what an earlier job has raised."""
        self.check()
        self._jobs.append(self._executor.submit(job))
        return self._jobs[-1]

    def check(self) -> None:
        """Raise what a job has raised since the last look."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()

    def wait(self) -> None:
        """Until all jobs are done. Raises what one of them raises."""
        while self._jobs:
            self._jobs.popleft().result()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown()
        if error is None:
            self.wait()
        for job in self._jobs:
            if (failure := job.exception()) is not None and failure is not error:
                logger.warning("train: %s", failure)  # the error that ends the stage is the one to raise
        self._jobs.clear()


class HostCopy(Generic[T]):
    """A copy, in host memory, of the tensors in nested dicts, lists and tuples; other values are taken as they are.

    From CUDA it is on its way while training goes on: later work of the same stream changes the originals only after they are
    read, and `get` waits for the arrival.
    """

    def __init__(self, value: T, device: torch.device) -> None:
        self._value = cast(T, _copy(value))
        self._device, self._arrival = device, None
        if device.type == "cuda":
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(device))

    def get(self) -> T:
        """The copy, complete. From any thread."""
        if self._arrival is not None:
            with torch.cuda.device(self._device):  # a thread begins on device 0, and would wake it up
                self._arrival.synchronize()
        return self._value


def _copy(value: object) -> object:
    if isinstance(value, Tensor):
        target = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        return target.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return value
