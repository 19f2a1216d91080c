"""What a process that trains asks of the machine: the allocator, the precision of kernels, and compiled operations."""

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

# `training.precision` -> type of features and of weights in use; None is that of the stored weights.
FEATURES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt(3)


@contextlib.contextmanager
def tuned(training: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Set up this process for training on `device` while the block lasts (the allocator for good).

    Raises:
        StepError: training.compile is on and torch.compile does not work here.
    """
    if device.type == "cpu":
        keep_freed_memory()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    # Sizes stay the same for a whole stage, so looking for the fastest kernel pays. By itself torch lets convolutions round to TF32.
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = (
        True,
        training.precision != "fp32",
        training.precision != "fp32",
    )
    try:
        if training.compile:
            check_compiler(device)
        with ops.fused(training.compile):
            yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def set_precision(network: nn.Module, precision: str) -> None:
    """Let the parts of a network that have one compute in the features' type of `training.precision`."""
    for module in network.modules():
        if isinstance(module, Synthesis | Discriminator):
            module.compute_dtype = FEATURES[precision]


def check_compiler(device: torch.device) -> None:
    """Whether torch.compile works for this device. Raises StepError with the cure if not."""
    try:
        with torch.no_grad():
            torch.compile(lambda x: (x * 2).relu(), dynamic=True)(torch.zeros(8, device=device))
    except Exception as error:  # a missing compiler shows in many ways
        reason = one_line(error, 160)
        raise StepError(
            f"training.compile=true: torch.compile does not work here ({type(error).__name__}: {reason}); "
            "install a C++ compiler such as g++ (on a GPU: Triton), or set training.compile=false"
        ) from error


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for this process from now on: every training step asks for the same memory again.

    By default glibc gives large blocks back to the system at once, and the system hands out new, zeroed pages at the next
    request, which costs element-wise operations several times their own duration. Without effect on other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)  # no blocks of their own, which are returned when freed
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
