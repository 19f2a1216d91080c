"""Recording and replaying: which calls are plain, and what happens where nothing can be recorded."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from stylegan.networks import replay
from stylegan.networks.replay import Function, Replay, capture, record_cuda_graph, recorder_for


class Recorder:
    """A recorder without a GPU: it keeps the function, and the shapes that were recorded and replayed."""

    def __init__(self) -> None:
        self.recorded: list[torch.Size] = []
        self.replayed: list[torch.Size] = []

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Function:
        self.recorded.append(inputs[0].shape)

        def replay(*new: Tensor) -> Tensor:
            self.replayed.append(new[0].shape)
            return function(*new)

        return replay


def add(x: Tensor, *more: Tensor) -> Tensor:
    return x + sum(more)


def test_shapes_that_come_again_are_recorded_once_and_then_replayed() -> None:
    """The last batch of a pass is smaller and comes once: it is computed plainly."""
    recorder = Recorder()
    call = Replay(add, name="sum", record=recorder)
    for size in (4, 4, 4, 4, 2):
        x = torch.rand(size)
        assert torch.equal(call(x, x), 2 * x)
    assert recorder.recorded == [(4,)]
    assert recorder.replayed == [(4,)] * 3


def test_every_set_of_shapes_and_types_has_its_own_recording() -> None:
    recorder = Recorder()
    call = Replay(add, name="sum", record=recorder)
    one, two = torch.ones(3), torch.ones(1)
    for inputs in ((one, one), (one, two), (one.double(), two)) * 2:
        call(*inputs)
    assert len(recorder.recorded) == 3


def test_where_recording_fails_one_warning_says_why_and_all_calls_are_plain(caplog: pytest.LogCaptureFixture) -> None:
    attempts = []

    def fail(function: Function, inputs: Sequence[Tensor]) -> Function:
        attempts.append(inputs)
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("capture ended")  # what the end of the block then raises hides the reason

    call = Replay(add, name="the generator", record=fail)
    with caplog.at_level(logging.WARNING, "stylegan"):
        for _ in range(4):
            assert call(torch.ones(2), torch.ones(2)).tolist() == [2, 2]
            assert call(torch.ones(3)).tolist() == [1, 1, 1]
    assert len(attempts) == 1
    (line,) = caplog.messages
    assert line.startswith("the generator: cannot be recorded as a CUDA graph (RuntimeError: operation not permitted")


def test_a_mistake_in_the_function_is_its_own_error() -> None:
    call = Replay(add, name="sum", record=lambda function, inputs: function(*inputs, torch.ones(3)))  # type: ignore[arg-type,return-value]
    call(torch.ones(2))
    assert call(torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="must match the size"):
        call(torch.ones(2), torch.ones(3))


def test_a_function_is_recorded_and_replayed_on_the_gpu_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present GPU may be another one: `cuda:1` is. On it nothing would be recorded, and the same images would return."""
    present: list[torch.device] = []
    seen: list[object] = []

    @contextmanager
    def within(device: torch.device) -> Iterator[None]:
        present.append(device)
        yield
        present.pop()

    def fake_capture(function: Function, *, stream: object) -> tuple[object, Tensor]:
        seen.append(("captured on", *present, stream))
        output = function()
        return SimpleNamespace(
            replay=lambda: (seen.append(("replayed on", *present)), output.copy_(function()))
        ), output

    monkeypatch.setattr(torch.cuda, "device", within)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(replay, "_stream_of", lambda device: f"stream of {device}")
    monkeypatch.setattr(replay, "capture", fake_capture)
    doubled = record_cuda_graph(lambda x: 2 * x, [torch.ones(2)])
    assert doubled(torch.full((2,), 4.0)).tolist() == [8, 8]
    gpu = torch.device("cpu")  # in its place
    assert seen == [("captured on", gpu, f"stream of {gpu}"), ("replayed on", gpu)]


@pytest.mark.parametrize("ended", [False, True])
def test_a_failed_recording_leaves_nothing_behind_in_torch(monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    """Neither its stream, nor its memory, nor a random generator that waits for the end of the recording."""
    undone: list[object] = []

    @contextmanager
    def graph(recording: object, **options: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("capture ended")

    def end(device: int, pool: object) -> None:
        if ended:
            raise RuntimeError("not currently recording to mempool_id")
        undone.append(("end", device, pool))

    stream = SimpleNamespace(device_index=1)
    generator = SimpleNamespace(clone_state=lambda: "state", graphsafe_set_state=undone.append)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *pool: undone.append(("release", *pool)), raising=False)
    for name, value in {
        "CUDAGraph": object,
        "graph": graph,
        "current_stream": lambda: stream,
        "set_stream": undone.append,
        "default_generators": (None, generator),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    with pytest.raises(RuntimeError, match="capture ended") as caught:
        capture(lambda: torch.ones(2) + torch.ones(3), pool=(0, 5))
    assert "must match the size" in str(caught.value.__context__)
    assert undone == [stream, *([] if ended else [("end", 1, (0, 5)), ("release", 1, (0, 5))]), "state"]


def test_a_cpu_records_nothing() -> None:
    assert recorder_for("cpu") is None
    assert recorder_for("cuda") is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_computes_what_the_function_computes() -> None:
    weight = torch.rand(8, 8, device="cuda")
    call = Replay(lambda x: x @ weight + 1, name="product", record=recorder_for("cuda"))
    found, expected = [], []
    with torch.no_grad():
        for _ in range(5):
            x = torch.rand(4, 8, device="cuda")
            found.append(call(x))
            expected.append(x @ weight + 1)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_cannot_be_a_cuda_graph_is_computed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    call = Replay(lambda x: x * x.sum().item(), name="a function that waits", record=recorder_for("cuda"))
    with torch.no_grad():
        for _ in range(3):
            assert call(torch.ones(2, device="cuda")).tolist() == [2, 2]
    assert "cannot be recorded" in caplog.text
    assert torch.rand(2, device="cuda").isfinite().all()  # the generator of the GPU draws as before
    test_a_cuda_graph_computes_what_the_function_computes()  # and other recordings work
