"""Runs a function of a test on two gloo ranks, each in its own process."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(function: Callable[[], object], folder: Path) -> list:
    """Call a function of a test module on two ranks and return what it returns on each: tensors and plain values.

    The ranks compute in float64, because Adam without momentum turns the rounding of a gradient near zero into a whole
    step of the learning rate.
    """
    mp.spawn(_enter, (function, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def in_double(function: Callable[[], object]) -> object:
    """Call the function on one rank in this process, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        return function()
    finally:
        torch.set_default_dtype(torch.float32)


def _enter(rank: int, function: Callable[[], object], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(in_double(function), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
