"""Ranks: on one process everything here does nothing, so the loop never asks whether it is distributed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stylegan.errors import StepError

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio: multiples of it are spread over all 64 bits


def select_device(device: torch.device | str) -> torch.device:
    """The device with its number (`cuda` becomes `cuda:0`); what this process asks of CUDA without naming a device goes there."""
    found = torch.empty(0, device=device).device
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


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


def gather(value: Tensor) -> Tensor:
    """The value of every rank, [world_size, *value.shape]; waits for all of them. On NCCL `value` must be on the GPU."""
    if world_size() == 1:
        return value[None]
    values = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(values, value)
    return torch.stack(values)


def check_agreement(networks: dict[str, nn.Module], nimg: int) -> None:
    """Compare every parameter and buffer over all ranks, bit for bit: they get the same gradients and must never drift apart.

    Raises:
        StepError: two ranks differ; on all ranks, with the network, the parameter and the ranks.
    """
    if world_size() == 1:
        return
    tensors = {
        f"{name} {key}": tensor for name, network in networks.items() for key, tensor in network.state_dict().items()
    }
    prints = gather(torch.stack([fingerprint(tensor) for tensor in tensors.values()])).cpu()  # [ranks, tensors]
    differing = (prints != prints[0]).any(0).nonzero().flatten().tolist()
    if not differing:
        return
    groups: dict[int, list[int]] = {}
    for number, value in enumerate(prints[:, differing[0]].tolist()):
        groups.setdefault(value, []).append(number)
    raise StepError(
        f"ranks disagree at {nimg} images: {list(tensors)[differing[0]]} (the first of {len(differing)} tensors) differs between ranks "
        f"{' and '.join(str(ranks) for ranks in groups.values())}; run again, which goes on from the newest checkpoint; if it "
        "happens again, look for a faulty device or another version of torch on the nodes of these ranks"
    )


def fingerprint(tensor: Tensor) -> Tensor:
    """64 bits that stand for the content of a tensor, int64 [] on its device.

    A sum of all bit patterns, each times an odd number of its own: one changed element always shows, several all but surely.
    """
    bits = tensor.detach().contiguous().view(INTEGERS[tensor.element_size()]).flatten().long()
    return (bits * (torch.arange(len(bits), device=bits.device) * GOLDEN | 1)).sum()


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
