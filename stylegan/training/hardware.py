"""Sets up a process for training: the memory allocator, the precision of kernels, and compiled operations.

Also tells on what a stage was trained.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import platform
from collections.abc import Iterator
from functools import cache

import torch
from torch import nn

from stylegan.config.sections import TrainingConfig
from stylegan.errors import StepError, one_line
from stylegan.networks import ops
from stylegan.records import Record
from stylegan.training import distributed

logger = logging.getLogger("stylegan")

# `training.precision` -> dtype of features, and of weights when they are used; None is the dtype of the stored weights.
COMPUTE_DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WHY_NOT_COMPILED = {  # path of operations -> why torch.compile is left off
    "fused": "the project's own kernels take its place",
    "eager": "without Triton's kernels torch.compile was measured to halve the speed, so it is left off",
}
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt(3)


class Hardware(Record):
    """On what a stage was trained, as far as its last workers know.

    Attributes:
        device: model of the GPU of the first worker, else of the processor.
        workers: how many there were.
        hosts: names of the machines, sorted.
        torch: its version.
    """

    device: str
    workers: int
    hosts: tuple[str, ...]
    torch: str


def describe_hardware(device: torch.device) -> Hardware:
    """Return on what all workers of the stage train. Every rank must call this."""
    hosts = distributed.texts("host", platform.node())
    return Hardware(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        workers=len(hosts),
        hosts=tuple(sorted(set(hosts))),
        torch=torch.__version__,
    )


def _processor() -> str:
    """Return the model of the processor, its architecture if the system does not tell the model."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def tuned(training: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Set up this process for training on `device` while the block lasts. The allocator stays set up afterwards.

    Raises:
        StepError: training.compile is on and torch.compile does not work here.
    """
    # The allocator.
    if device.type == "cpu":
        keep_freed_memory()

    # Kernels. Sizes stay the same for a whole stage, so that it pays to search for the fastest kernel; the price is that
    # runs on GPUs are equal but for rounding, as kernels may be chosen differently each time. By default torch
    # lets convolutions round to TF32. In half precision what stays in single precision stays exact too, and sums of
    # products are kept in single precision to their end.
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    reduced = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    cudnn.benchmark = True
    cudnn.allow_tf32 = matmul.allow_tf32 = training.precision == "tf32"
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False

    # Compiled operations.
    path = operations_path(training, device)
    try:
        if training.compile and path != "compiled":
            log_once(f"training.compile=true does nothing on a GPU: {WHY_NOT_COMPILED[path]}")
        if path == "compiled":
            check_compiler(device)
        with ops.fused(path == "compiled"):
            yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = reduced


def operations_path(training: TrainingConfig, device: torch.device) -> str:
    """Return by what means the element-wise operations of both networks run on `device`.

    On a GPU `training.compile` changes nothing. There torch.compile was measured (one H200, bf16) to halve the speed at
    256x256 and to cut it to a sixth at 1024x1024: its sums over pixels are slow.

    Returns:
        "fused": the project's Triton kernels, which a GPU takes wherever Triton works; "compiled": torch.compile;
        "eager": torch's own operations.
    """
    if ops.load_kernels(device) is not None:
        return "fused"
    return "compiled" if training.compile and device.type != "cuda" else "eager"


@cache
def log_once(line: str) -> None:
    """Write a line to the log, once in a process."""
    logger.warning(line)


def set_precision(network: nn.Module, precision: str) -> None:
    """Set the dtype that a network computes in to that of a `training.precision`."""
    for module in network.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = COMPUTE_DTYPES[precision]  # type: ignore[assignment]  # no module of its own


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile works for this device. Raises StepError with the cure if it does not."""
    try:
        with torch.no_grad():
            torch.compile(lambda x: (x * 2).relu(), dynamic=True)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler raises errors of many types
        reason = one_line(error, 160)
        raise StepError(
            f"training.compile=true: torch.compile does not work here ({type(error).__name__}: {reason}); "
            "install a C++ compiler such as g++, or set training.compile=false"
        ) from error


def keep_freed_memory() -> None:
    """Let the C library keep freed memory from now on, because every training step asks for the same memory again.

    By default glibc returns large blocks to the system at once. The system then supplies new, zeroed pages at the next
    request, which costs element-wise operations several times their own duration. Other C libraries are left as they
    are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # no separately mapped blocks, which are returned when they are freed
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
