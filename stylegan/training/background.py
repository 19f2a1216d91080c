"""Work that training does not wait for.

`Background` runs jobs on one thread, for example serialising and uploading a checkpoint. `HostCopy` copies tensors to
host memory, so that such a job works on values that later training steps do not change.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from stylegan.errors import ExhaustedError

T = TypeVar("T")
logger = logging.getLogger("stylegan")


class Background:
    """One thread that runs jobs in the order in which they are submitted.

        with Background() as background:
            background.submit(job)
            background.check()      # at every step

    An error of a job is raised again in the calling thread, once, by the next call of a method or at the end of the
    block. If another error ends the block, the error of the job is logged instead. The end of the block always waits
    for all jobs, so that everything copied by then is written. Only a store that was waited for in vain is not tried
    again: the jobs that are left then fail at once, with the same error.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "background")
        self._jobs: deque[Future[Any]] = deque()  # jobs whose outcome nobody has read yet, oldest first
        self._newest: dict[str, Future[Any]] = {}  # destination -> the newest job that writes it
        self._exhausted: ExhaustedError | None = None

    def submit(self, job: Callable[[], object], *, destination: str | None = None) -> Future[Any]:
        """Run a job after all earlier ones; return its future. Raises the error of an earlier job that has failed.

        Args:
            destination: the file that the job writes whole, if only its newest content counts. An earlier job for it
                that has not begun is left out.
        """
        self.check()
        if destination in self._newest and self._newest[destination].cancel():
            self._jobs.remove(self._newest[destination])
        self._jobs.append(self._executor.submit(self._run, job))
        if destination is not None:
            self._newest[destination] = self._jobs[-1]
        return self._jobs[-1]

    def _run(self, job: Callable[[], object]) -> object:
        if self._exhausted is not None:
            raise self._exhausted
        try:
            return job()
        except ExhaustedError as error:
            self._exhausted = error
            raise

    def check(self) -> None:
        """Raise the error of a job that has failed since the last call."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()

    def wait(self) -> None:
        """Wait until all jobs are done. Raises the error of the first job that has failed."""
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
        for failure in {job.exception(): None for job in self._jobs}:
            if failure is not None and failure is not error:
                logger.warning("train: %s", failure)  # only one error can be raised: the one that ends the block
        self._jobs.clear()


class HostCopy(Generic[T]):
    """A copy, in host memory, of the tensors in nested dicts, lists and tuples. Other values are kept as they are.

    From CUDA the copy is asynchronous, and training goes on meanwhile. That is safe because later work on the same
    stream changes the originals only after they are read; `get` waits until the copy is complete.
    """

    def __init__(self, value: T, device: torch.device) -> None:
        self._value = cast(T, _copy_to_host(value))
        self._device, self._arrival = device, None
        if device.type == "cuda":
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(device))

    def get(self) -> T:
        """Wait for the copy and return it. Any thread may call this."""
        if self._arrival is not None:
            with torch.cuda.device(self._device):  # a new thread starts on device 0 and would initialise it
                self._arrival.synchronize()
        return self._value


def _copy_to_host(value: object) -> object:
    if isinstance(value, Tensor):
        target = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        return target.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        return {key: _copy_to_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy_to_host(item) for item in value)
    return value
