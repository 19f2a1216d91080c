"""Communication between ranks.

With one process the functions here do nothing, so that the loop never asks whether it is distributed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stylegan.errors import UnavailableError

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
TIMEOUT = 1800  # seconds that a rank waits for the others, beside the time that one may wait for storage
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio: its multiples spread over all 64 bits


def select_device(device: torch.device | str) -> torch.device:
    """Return the device with its number (`cuda` becomes `cuda:0`). A GPU becomes the default GPU of this process."""
    numbered = torch.empty(0, device=device).device
    if numbered.type == "cuda":
        torch.cuda.set_device(numbered)
    return numbered


def timeout(patience_s: float) -> int:
    """Return the seconds after which a rank that waits for the others gives up.

    One of them may be waiting for storage meanwhile, for as long as an outage is waited for: `storage.patience_s`.
    """
    return math.ceil(TIMEOUT + patience_s)


def rank() -> int:
    """Return the number of this process among the workers of the stage, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of workers of the stage."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every rank has called this."""
    if dist.is_initialized():
        dist.barrier()


def mean_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over ranks, in one flat all-reduce.

    DistributedDataParallel cannot do this for gradients: its hooks do not fire for the double backward pass of R1.
    """
    parts = list(tensors)
    if world_size() == 1 or not parts:
        return
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat)
    flat /= world_size()
    for part, mean in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(mean.view_as(part))


def mean(values: Tensor) -> Tensor:
    """Replace values by their mean over ranks, in place, and return them."""
    mean_([values])
    return values


def gather(value: Tensor) -> Tensor:
    """Wait for all ranks and return the values of all, [world_size, *value.shape]. NCCL needs `value` on the GPU."""
    if world_size() == 1:
        return value[None]
    if value.is_cuda and dist.get_backend() == "gloo":  # it gathers in host memory only
        return gather(value.cpu()).to(value.device)
    values = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(values, value)
    return torch.stack(values)


def texts(name: str, value: str) -> list[str]:
    """Wait for all ranks and return the texts of all, by rank.

    They go through the store in which the ranks have met, so this works before NCCL does. `name` is that of the call.
    """
    if world_size() == 1:
        return [value]
    store = dist.distributed_c10d._get_default_store()
    call = store.add(f"{name} calls of {rank()}", 1)  # the same on every rank: an earlier call leaves its texts there
    store.set(f"{name} {call} of {rank()}", value)
    return [store.get(f"{name} {call} of {number}").decode() for number in range(world_size())]


def of_first_rank(values: Tensor) -> Tensor:
    """Wait for all ranks and return the values of rank 0 on each. NCCL needs `values` on the GPU."""
    if dist.is_initialized():
        dist.broadcast(values, src=0)
    return values


def check_agreement(networks: dict[str, nn.Module], nimg: int) -> None:
    """Check that every parameter and buffer is the same on all ranks, bit for bit.

    All ranks apply the same gradients, so their networks must never drift apart.

    Raises:
        UnavailableError: two ranks differ; raised on all ranks, with the network, the parameter and the ranks.
    """
    if world_size() == 1:
        return

    # Compare a fingerprint of each tensor.
    tensors = {
        f"{name} {key}": tensor for name, network in networks.items() for key, tensor in network.state_dict().items()
    }
    prints = gather(torch.stack([fingerprint(tensor) for tensor in tensors.values()])).cpu()  # [ranks, tensors]
    differing = (prints != prints[0]).any(0).nonzero().flatten().tolist()
    if not differing:
        return

    # Group the ranks by what they hold of the first tensor that differs.
    groups: dict[int, list[int]] = {}
    for number, value in enumerate(prints[:, differing[0]].tolist()):
        groups.setdefault(value, []).append(number)
    raise UnavailableError(
        f"ranks disagree at {nimg} images: {list(tensors)[differing[0]]} (the first of {len(differing)} tensors) "
        f"differs between ranks {' and '.join(str(ranks) for ranks in groups.values())}; run the same command again, "
        "which resumes from the newest checkpoint; if it happens again, search the nodes of these ranks for a faulty "
        "device or another version of torch"
    )


def fingerprint(tensor: Tensor) -> Tensor:
    """Return 64 bits that identify the content of a tensor, int64 [] on its device.

    The fingerprint is the sum of all bit patterns, each multiplied by its own odd number. One changed element always
    changes it; several changed elements almost certainly do.
    """
    bits = tensor.detach().contiguous().view(INTEGERS[tensor.element_size()]).flatten().long()
    return (bits * (torch.arange(len(bits), device=bits.device) * GOLDEN | 1)).sum()


def own_share(batch: int, group: int) -> Tensor:
    """Return the positions in the global batch of the samples that this rank works on, int64 [batch / world_size].

    Samples whose positions differ by a multiple of batch / group share one minibatch-stddev group. A rank takes whole
    groups, so that the result of a step does not depend on the number of ranks.

    Args:
        batch: size of the global batch.
        group: size of a minibatch-stddev group.
    """
    return whole_groups(batch, group, part=rank(), parts=world_size())


def whole_groups(batch: int, group: int, *, part: int, parts: int) -> Tensor:
    """Return the positions of one of so many equal parts of a batch, each of whole minibatch-stddev groups, int64."""
    if parts == 1:
        return torch.arange(batch)
    group = min(group, batch)
    columns = batch // group // parts
    return torch.arange(batch).view(group, -1)[:, part * columns : (part + 1) * columns].reshape(-1)
