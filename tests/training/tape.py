"""A recorder of steps for CPUs, which does what a CUDA graph does on a GPU: it repeats operations on the same memory.

It sees every operation below autograd, so that what a step decides in Python is decided once, when it is recorded. A
number that is read from a tensor, or a tensor that is made from a number of the host, cannot be recorded. `Launches` lets
it see the kernels of `stylegan.networks.kernels` as well, if Triton interprets them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed import Work
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

# What a CUDA graph cannot contain, or would repeat with the value of its first time.
FORBIDDEN = {
    "aten::_local_scalar_dense": "reads a number from the device",
    "aten::nonzero": "has an output whose size the host must know",
    "aten::lift_fresh": "copies a number of the host to the device",
    "aten::randn": "draws random numbers",
    "aten::rand": "draws random numbers",
    "aten::normal_": "draws random numbers",
    "aten::uniform_": "draws random numbers",
    "aten::bernoulli_": "draws random numbers",
}
Operation = tuple[Any, tuple, dict, list[Tensor]]


class TapeRecorder:
    """Records steps on a CPU."""

    def forget(self) -> None:
        """Do nothing: a tape holds its own memory."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call the function."""
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record the function, undo what it did, and return what repeats it."""
        tape = _Tape()
        try:
            with tape:
                function()
        finally:
            tape.undo()
        return tape.replay


class RefusingRecorder(TapeRecorder):
    """Records nothing, as a GPU that cannot."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Refuse."""
        raise RuntimeError("operation not permitted when stream is capturing")


class Launches:
    """Takes the place of a kernel: its launches are operations of the tape that records at the time, if any does."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what a launch calls with the arguments of the kernel."""
        return partial(self.launch, grid)

    def launch(self, grid: tuple[int, ...], *args: Any, **switches: Any) -> None:
        """Launch the kernel, and record that."""
        plain = [arg.detach() if isinstance(arg, Tensor) else arg for arg in args]
        again = partial(self.kernel[grid], *plain, **switches)
        with _disable_current_modes():
            if _Tape.present is not None:
                _Tape.present.note(again, [arg for arg in plain if isinstance(arg, Tensor)])
            again()


class _Tape(TorchDispatchMode):
    present: ClassVar[_Tape | None] = None  # that records

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation | Callable[[], None]] = []
        self.own: set[int] = set()  # addresses of the memory that the recorded operations allocate
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # address -> memory that existed before, and its copy

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        assert name not in FORBIDDEN, f"{name} {FORBIDDEN[name]}"
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        mutates = func._schema.is_mutable or func.namespace == "c10d"  # whose schemas do not say so
        if mutates:
            for tensor in inputs:
                self._save(tensor)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        known = {_address(tensor) for tensor in inputs}
        fresh = [tensor.detach() for tensor in outputs if _address(tensor) not in known]
        self.own |= {_address(tensor) for tensor in fresh}
        if fresh or mutates:  # other operations return views, which stay valid
            plain_args, plain_kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
            self.operations.append((func, plain_args, plain_kwargs, fresh))
        return result

    def __enter__(self):
        _Tape.present = self
        return super().__enter__()

    def __exit__(self, *error):
        _Tape.present = None
        return super().__exit__(*error)

    def note(self, launch: Callable[[], None], tensors: list[Tensor]) -> None:
        """Record the launch of a kernel, which may write to any of its tensors."""
        for tensor in tensors:
            self._save(tensor)
        self.operations.append(launch)

    def _save(self, tensor: Tensor) -> None:
        address = _address(tensor)
        if address not in self.own and address not in self.before:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self.before[address] = (whole, whole.clone())

    def undo(self) -> None:
        """Give the memory that existed before the recording its former content."""
        for whole, copy in self.before.values():
            whole.copy_(copy)

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat all operations on the recorded memory."""
        for operation in self.operations:
            if callable(operation):
                operation()
                continue
            func, args, kwargs, fresh = operation
            result = func(*args, **kwargs)
            _wait(result)
            known = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and _address(leaf) not in known]
            for recorded, computed in zip(fresh, outputs, strict=True):
                recorded.copy_(computed)


def _wait(result: Any) -> None:
    """Wait for communication that an operation has begun."""
    for leaf in tree_leaves(result):
        if isinstance(leaf, torch.ScriptObject):
            Work.unbox(leaf).wait()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
