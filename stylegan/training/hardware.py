"""Sets up a process for training: the memory allocator, the precision of kernels, and compiled operations."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch
from torch import nn

from stylegan.config.sections import TrainingConfig
from stylegan.errors import StepError, one_line
from stylegan.networks import ops
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Synthesis

# `training.precision` -> dtype of features, and of weights when they are used; None is the dtype of the stored weights.
COMPUTE_DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt(3)


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
    try:
        if training.compile:
            check_compiler(device)
        with ops.fused(training.compile):
            yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = reduced


def operations_path(training: TrainingConfig, device: torch.device) -> str:
    """Return by what means the element-wise operations of both networks run on `device`.

    Returns:
        "compiled": torch.compile; "eager": torch's own operations.
    """
    return "compiled" if training.compile else "eager"


def set_precision(network: nn.Module, precision: str) -> None:
    """Set the dtype that a network computes in to that of a `training.precision`."""
    for module in network.modules():
        if isinstance(module, Synthesis | Discriminator):
            module.compute_dtype = COMPUTE_DTYPES[precision]


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile works for this device. Raises StepError with the cure if it does not."""
    try:
        with torch.no_grad():
            torch.compile(lambda x: (x * 2).relu(), dynamic=True)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler raises errors of many types
        reason = one_line(error, 160)
        raise StepError(
            f"training.compile=true: torch.compile does not work here ({type(error).__name__}: {reason}); "
            "install a C++ compiler such as g++ (on a GPU: Triton), or set training.compile=false"
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
