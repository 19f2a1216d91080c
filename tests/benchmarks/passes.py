"""`make bench-passes`: counts what a training step makes a GPU do, on a machine that has none.

Tensors are fake: they have shapes, types and memory formats, and no contents. So a step at 1024x1024 takes seconds.
Every operation counts with the bytes that it must read and write at least, every kernel of `kernels` with those of its
arguments, and products with their operations. The peak is that of tensors: weights, moments, averages, layer outputs; what
libraries take for themselves is not in it. Nothing is measured: "at least" is the time of a GPU that reaches its
peaks in every kernel, which none does. What the counts are good for is to compare two versions of the code, to see which
operation passes over memory once too often, and whether a measured time is near to what must be done.

It needs Triton, as `make test-kernels` does, because the kernels' launches are counted in their own module.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks.bench import make_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stylegan.networks import ops
from stylegan.training.schedule import stages
from stylegan.training.state import start_stage
from stylegan.training.step import update_discriminator, update_generator
from stylegan.training.step_inputs import Share, discriminator_inputs, generator_inputs

Size = tuple[int, int]  # resolution and batch
SIZES: tuple[Size, ...] = ((1024, 8), (256, 32), (64, 64), (32, 64), (16, 128), (8, 128))
INTERVAL = 16  # steps between two penalties, where they are lazy
# Of one H200: TFLOP/s of 3x3 convolutions by precision as measured (RESULTS.md), and bytes/s of its memory by datasheet.
PEAKS = {"fp32": 42.6e12, "tf32": 410e12, "bf16": 810e12, "fp16": 810e12}
BANDWIDTH = 4.8e12
# What makes no kernel run, beside views.
FREE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "device",
    "size",
    "is_pinned",
    "_unsafe_view",
}
WRITES = {"fill_", "zero_", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "new_full"}
PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm"}


@dataclass(frozen=True)
class Operation:
    """Describes what one operation, or one launch of a kernel of `kernels`, makes the GPU do.

    Attributes:
        part: of the step, such as "G".
        name: of torch's operation or the kernel.
        place: file and line of the package from which it comes.
        bytes: to be read and written at least.
        flops: of products.
        shape: of the largest tensor.
    """

    part: str
    name: str
    place: str
    bytes: int
    flops: int
    shape: tuple[int, ...]

    @property
    def is_own(self) -> bool:
        """Return whether it is a kernel of `kernels`."""
        return self.name.endswith("_kernel")

    def seconds(self, precision: str) -> float:
        """Return how long it takes at least, at the peaks."""
        return max(self.bytes / BANDWIDTH, self.flops / PEAKS[precision])


class Count(TorchDispatchMode):
    """Notes all operations inside of `part`, and the most memory that their tensors have at a time.

    Attributes:
        operations: in the order in which they happen.
        peaks: by part, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.peaks: dict[str, int] = {}
        self._part = ""
        self._alive: dict[int, int] = {}  # address of a tensor's memory -> its bytes
        self._bytes = 0

    def clear(self) -> None:
        """Forget what was noted; tensors that are alive still count."""
        self.operations.clear()
        self.peaks.clear()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note what happens inside this context as one part of the step."""
        self._part = name
        with self:
            yield

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operation, and do it."""
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        if not function.is_view and name not in FREE:
            read, written = tensors_in([*args, *(kwargs or {}).values()]), tensors_in(result)
            if name in WRITES:
                read = []
            elif name == "copy_":
                read = tensors_in(args[1])
            self.note(name, read, written, flops(name, args, written))
        for tensor in tensors_in([*args, result]):
            self._watch(tensor)
        return result

    def _watch(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is free."""
        memory = tensor.untyped_storage()
        if memory._cdata not in self._alive:
            self._alive[memory._cdata] = memory.nbytes()
            self._bytes += memory.nbytes()
            weakref.finalize(memory, self._freed, memory._cdata)
        self.peaks[self._part] = max(self.peaks.get(self._part, 0), self._bytes)

    def _freed(self, address: int) -> None:
        self._bytes -= self._alive.pop(address)

    def note(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor], flops: int = 0) -> None:
        """Note an operation by the tensors that it reads and writes."""
        every = [*{id(tensor): tensor for tensor in read}.values(), *written]
        shape = max((tuple(tensor.shape) for tensor in every), key=lambda shape: torch.Size(shape).numel(), default=())
        moved = sum(map(bytes_of, every))
        self.operations.append(Operation(self._part, name, _place(), moved, flops, shape))

    def launcher(self, name: str) -> Launcher:
        """Return what takes the place of a kernel and notes its launches."""
        return Launcher(name, self)


@dataclass(frozen=True)
class Launcher:
    """Takes the place of a kernel: its launches are noted."""

    name: str
    count: Count

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what a launch calls with the arguments of the kernel."""
        return self.launch

    def launch(self, *args: object, **switches: object) -> None:
        """Note a launch. Each argument is read or written once; one that stands for two is both."""
        tensors = tensors_in(args)
        twice = [tensor for number, tensor in enumerate(tensors) if self._is_in_place(args, tensor, number)]
        self.count.note(self.name, tensors, twice)

    def _is_in_place(self, args: Sequence[object], tensor: Tensor, number: int) -> bool:
        # `_act_blur_kernel` alone may write to what it reads: its fourth argument is then its first.
        return self.name == "_act_blur_kernel" and number == 0 and args[3] is tensor


def tensors_in(values: object) -> list[Tensor]:
    """Return the tensors of arguments or results."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in tensors_in(value)]
    return []


def bytes_of(tensor: Tensor) -> int:
    """Return how many bytes of memory a tensor has; dimensions that repeat the same numbers count once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride else 1
    return numbers * tensor.element_size()


def flops(name: str, args: Sequence[Any], written: Sequence[Tensor]) -> int:
    """Return the operations of a product, two for each multiplication; 0 of anything else."""
    if name == "convolution":
        x, weight, transposed = args[0], args[1], args[6]
        return 2 * weight.numel() * _positions(x if transposed else written[0])
    if name == "convolution_backward":
        g, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[-1]
        return 2 * weight.numel() * _positions(x if transposed else g) * sum(map(bool, mask[:2]))
    if name in PRODUCTS:
        a = args[0] if name in ("mm", "bmm") else args[1]
        return 2 * written[0].numel() * a.shape[-1]
    return 0


def _positions(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _place() -> str:
    """Return file and line of the innermost frame in the package, outside of `kernels`."""
    for frame in reversed(traceback.extract_stack(limit=60)):
        if f"{os.sep}stylegan{os.sep}" in frame.filename and not frame.filename.endswith("kernels.py"):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return ""


def count_step(size: Size, *, precision: str = "bf16", lazy: bool = True, fmap_max: int = 512) -> Count:
    """Count a step of each player at the end of a stage.

    Args:
        size: resolution and batch.
        precision: see `training.precision`.
        lazy: whether the gradient penalty is an update of its own in every 16th step; otherwise each D step has it.
        fmap_max: see `model.fmap_max`.

    Returns:
        The count, of the parts "D", "G", and if `lazy` also "D with R1".
    """
    from stylegan.networks import kernels

    resolution, batch = size
    settings = {"precision": precision} | ({"penalty_interval": INTERVAL} if lazy else {})
    config = make_config(resolution, fmap_max, batch, settings, device="cuda")
    stage, count = stages(config)[-1], Count()
    with contextlib.ExitStack() as stack:
        # Fake tensors say that they are on a CPU, on which the kernels run if they are interpreted. A module cannot be
        # moved while its weights are fake, and need not.
        stack.enter_context(mock.patch.object(ops, "_is_interpreted", return_value=True))
        stack.enter_context(mock.patch.object(ops, "_try_kernels", return_value=kernels))
        stack.enter_context(mock.patch.object(nn.Module, "to", lambda module, *args, **kwargs: module))
        for name in [name for name in vars(kernels) if name.endswith("_kernel")]:
            stack.enter_context(mock.patch.object(kernels, name, count.launcher(name)))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))

        state = start_stage(config, stage, num_labels=0, previous=None, device=torch.device("cpu"))
        state.nimg = stage.end_nimg - batch
        share = Share.of(config, stage, state.device)
        reals = torch.zeros(batch, 3, resolution, resolution, dtype=torch.uint8)
        inputs_D = discriminator_inputs(config, stage, state.nimg, share, reals, None, static=True)
        inputs_G = generator_inputs(config, stage, state.nimg, share, None, static=True)
        update_D = partial(update_discriminator, state, config, stage, share, inputs_D)
        for _ in range(2):  # the first step makes Adam's moments
            count.clear()
            with count.part("D"):
                update_D(has_penalty=not lazy)
            if lazy:
                with count.part("D with R1"):
                    update_D(has_penalty=True)
            with count.part("G"):
                update_generator(state, config, share, inputs_G)
    return count


def totals(count: Count, size: Size, precision: str) -> str:
    """Return the rows of the table for a size."""
    rows = []
    for part, peak in count.peaks.items():
        own = [operation for operation in count.operations if operation.part == part]
        products = [operation for operation in own if operation.name in PRODUCTS]
        others = [operation for operation in own if operation.name not in PRODUCTS]
        moved, kernels = sum(o.bytes for o in others), sum(o.bytes for o in others if o.is_own)
        cells = [
            f"{size[0]}x{size[0]}, batch {size[1]}",
            f"{part}, {precision}",
            f"{len(own)}",
            f"{sum(o.flops for o in products) / 1e12:.2f}",
            f"{1e3 * sum(o.seconds(precision) for o in products):.2f}",
            f"{moved / 1e9:.2f}",
            f"{kernels / moved:.0%}",
            f"{1e3 * sum(o.seconds(precision) for o in others):.2f}",
            f"{peak / 2**20:,.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def longest(operations: Sequence[Operation], number: int) -> str:
    """Return the operations that are no products with the most bytes, by part, name and place."""
    moved: dict[tuple[str, str, str], list[int]] = {}
    for operation in operations:
        if operation.name not in PRODUCTS:
            moved.setdefault((operation.part, operation.name, operation.place), []).append(operation.bytes)
    ranked = sorted(moved.items(), key=lambda item: -sum(item[1]))[:number]
    return "\n".join(
        f"{part:10} {name:30} {place:24} {len(found):4} x {sum(found) / 1e9:8.3f} GB"
        for (part, name, place), found in ranked
    )


HEAD = (
    "| size | part of a step | operations | TFLOP of products | ms at least | GB of all others | of that by our kernels "
    "| ms at least | peak MiB |\n|---|---|---|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count from the command line."""
    parser = argparse.ArgumentParser(prog="passes", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", nargs=2, type=int, metavar=("RESOLUTION", "BATCH"), help="default: 8 128 to 1024 8")
    parser.add_argument("--precision", default="bf16", choices=PEAKS)
    parser.add_argument("--every-step", action="store_true", help="R1 in every step, not in every 16th")
    parser.add_argument("--fmap-max", type=int, default=512)
    parser.add_argument("--top", type=int, default=0, help="also list so many operations that move the most bytes")
    options = parser.parse_args(arguments)
    print(HEAD, flush=True)
    details = []
    for size in [tuple(options.size)] if options.size else SIZES:
        found = count_step(size, precision=options.precision, lazy=not options.every_step, fmap_max=options.fmap_max)
        print(totals(found, size, options.precision), flush=True)
        details.append(longest(found.operations, options.top))
    print("\n\n".join(detail for detail in details if detail))


if __name__ == "__main__":
    sys.exit(main())
