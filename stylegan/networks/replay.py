"""Replay the work of a network as a CUDA graph: the host then starts one graph instead of hundreds of kernels.

At low resolutions a GPU computes faster than Python can ask it to, and waits for the host most of the time.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from stylegan.errors import one_line

T = TypeVar("T")
logger = logging.getLogger("stylegan")
Function = Callable[..., Tensor]
Recorder = Callable[[Function, Sequence[Tensor]], Function]


class Replay:
    """A function of tensors that is recorded when it is called with the same shapes again, and then replayed.

    The first call with given shapes is plain: it sets up what cannot be recorded, and shapes that come only once, such
    as those of a last, smaller batch, are not worth a recording. The second call records. Where that fails, one warning
    names the reason, and all calls are plain from then on.
    """

    def __init__(self, function: Function, *, name: str, record: Recorder | None) -> None:
        """Wrap a function.

        Args:
            function: takes tensors of one device and returns one tensor. It computes without gradients, and depends on
                nothing else that changes: a recording knows other values than those of its tensors only as they were.
            name: of what is recorded, for the warning.
            record: makes a recording, as `record_cuda_graph`; None records nothing.
        """
        self._function, self._name, self._record = function, name, record
        self._seen: set[object] = set()
        self._recordings: dict[object, Function] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return function(*inputs)."""
        if self._record is None:
            return self._function(*inputs)
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        if shapes not in self._seen:
            self._seen.add(shapes)
            return self._function(*inputs)
        if shapes not in self._recordings:
            reason = self._try_to_record(shapes, inputs)
            if reason:  # what a failed recording held in memory is free by now
                logger.warning(
                    "%s: cannot be recorded as a CUDA graph (%s); it runs without, and small images take longer",
                    self._name,
                    reason,
                )
                self._record = None
                self._recordings.clear()
                return self._function(*inputs)
        return self._recordings[shapes](*inputs)

    def _try_to_record(self, shapes: object, inputs: Sequence[Tensor]) -> str | None:
        """Record a call; return the reason if that fails: the plain call has worked, so it is the recording that fails."""
        assert self._record is not None
        try:
            self._recordings[shapes] = self._record(self._function, inputs)
        except Exception as error:  # of many types
            return why_not_recorded(error)
        return None


def recorder_for(device: torch.device | str) -> Recorder | None:
    """Return what records on a device: CUDA graphs on a GPU, None elsewhere."""
    return record_cuda_graph if torch.device(device).type == "cuda" else None


def record_cuda_graph(function: Function, inputs: Sequence[Tensor]) -> Function:
    """Record a function as a CUDA graph, and return a function that replays it for inputs of the same shapes.

    Raises:
        Exception: as `capture`.
    """
    own_inputs, device = [x.clone() for x in inputs], inputs[0].device  # a graph reads the same memory each time
    with torch.cuda.device(device):  # what ran on another GPU than the present one would not be recorded
        torch.cuda.synchronize()
        graph, own_output = capture(lambda: function(*own_inputs), stream=_stream_of(device))

    def replay(*new_inputs: Tensor) -> Tensor:
        with torch.cuda.device(device):
            for own, new in zip(own_inputs, new_inputs, strict=True):
                own.copy_(new)
            graph.replay()
            return own_output.clone()  # the next replay overwrites it

    return replay


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all recordings on a GPU; torch's own is that of the GPU on which it was first wanted."""
    return torch.cuda.Stream(device)


def capture(function: Callable[[], T], **options: Any) -> tuple[torch.cuda.CUDAGraph, T]:
    """Record what a function would do on the GPU, without doing it.

    Args:
        function: does the same each time, on the same memory.
        options: those of `torch.cuda.graph`.

    Returns:
        The graph, and what the function returned; its tensors are written by each replay.

    Raises:
        Exception: the function waits for the GPU, copies from memory that is not page-locked, needs more memory than there
            is, or does anything else that a graph cannot hold.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    pool = options.pop("pool", None) or torch.cuda.graph_pool_handle()
    try:
        # Other threads may use the GPU meanwhile, e.g. for copies of the next batch: what they do is not recorded.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local", **options):
            result = function()
    except BaseException:
        torch.cuda.set_stream(stream)  # a recording that fails leaves its own stream behind
        _clean_up((options.get("stream") or stream).device_index, pool)
        raise
    return graph, result


def _clean_up(device: int, pool: tuple[int, int]) -> None:
    """Undo what a failed recording leaves behind in torch, as seen in 2.11, which ends only recordings that work.

    Its memory would never be free again, and no other recording could begin. The default random generator of the GPU would
    refuse to draw for the rest of the process (pytorch#171263).
    """
    with contextlib.suppress(Exception):  # it never began, or this version has ended it
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    with contextlib.suppress(Exception):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())  # the same numbers, not in the state of a recording


def why_not_recorded(error: Exception) -> str:
    """Return the reason for which a recording failed, in a line: the first error, as its end raises another one."""
    first = error.__context__ or error
    return f"{type(first).__name__}: {one_line(first, 200)}"
