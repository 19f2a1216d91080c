"""Two gloo ranks for tests, in processes of their own."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_ranks(function: Callable[[], object], folder: Path) -> list:
    """What a function of a test module gives on each of two ranks, in float64: tensors and plain values.

    In float64, since Adam without momentum turns the rounding of a gradient near zero into a whole step of the learning rate.
    """
    mp.spawn(_enter, (function, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def in_double(function: Callable[[], object]) -> object:
    """The same on one rank, in this process."""
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
