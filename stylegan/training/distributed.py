"""Ranks: on one process everything here does nothing, so the loop never asks whether it is distributed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process among the workers of the stage, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of workers of the stage."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def mean_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over ranks, in one flat all-reduce.

    Done by hand instead of by DistributedDataParallel, whose hooks do not fire for the double backward of R1.
    """
    parts = list(tensors)
    if world_size() == 1 or not parts:
        return
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat)
    flat /= world_size()
    for part, mean in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(mean.view_as(part))


def own_share(batch: int, group: int) -> Tensor:
    """Which samples of the global batch this rank works on, [batch / world_size].

    Sample n belongs to the minibatch-stddev group of n ± batch/group, so a rank takes whole groups: the result of a step
    then does not depend on the number of ranks.
    """
    group = min(group, batch)
    if world_size() == 1:
        return torch.arange(batch)
    columns = batch // group // world_size()
    return torch.arange(batch).view(group, -1)[:, rank() * columns : (rank() + 1) * columns].reshape(-1)
