"""The kinds of nodes that a run needs: one for each set of resources that its stages ask for.

What starts a cluster (KubeRay, `ray up`) takes its groups of nodes from here. All groups may be empty: an autoscaler brings
the nodes that a stage waits for, and takes them away after it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from stylegan.config.sections import RayStageOverride
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.training.cost import host_memory
from stylegan.training.gpus import ACCELERATOR, named_accelerators
from stylegan.training.schedule import Stage, stages

PROCESS_GIB = 4  # memory of a worker beside its tensors: Python, torch, the host side of CUDA, decoded images
SHARED_GIB = 2  # shared memory of a worker: Ray's objects, NCCL and gloo
SHARDING_CPUS = 8  # of a node that writes shards
SHARDING_NODES = 16  # as many tasks as sharding submits at a time fill, see parallel_map.py


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind, as large as their workers need.

    - `resolutions`: stages that train on them; none: they write shards.
    - `cpus`, `gpus`, `resources`: what Ray counts of a node.
    - `memory_gib`: of a node, with `shared_gib` of shared memory.
    - `labels`: of a node, for `ray.label_selector`.
    - `most`: as many nodes as the largest of the stages fills.
    """

    name: str
    resolutions: tuple[int, ...]
    cpus: int
    gpus: int
    memory_gib: int
    shared_gib: int
    resources: dict[str, int]
    labels: dict[str, str]
    accelerator_type: str | None
    most: int


def node_groups(config: Config, workers_per_node: int = 1) -> tuple[NodeGroup, ...]:
    """Return the groups of nodes that the stages of a config train on, and one that writes shards.

    Args:
        workers_per_node: as many workers of a stage share a node, if it has so many.

    Raises:
        ConfigError: it is below 1.
    """
    if workers_per_node < 1:
        raise ConfigError(f"--workers-per-node {workers_per_node}: must be at least 1")
    alike: dict[tuple[object, ...], list[Stage]] = {}
    for stage in stages(config):
        need = config.workers_at(stage.resolution)
        accelerator = _accelerator(config, stage.resolution)
        key = (need.cpus_per_worker, need.gpus_per_worker, accelerator, *sorted(_labels(need).items()))
        alike.setdefault(key, []).append(stage)
    groups: list[NodeGroup] = []
    for same in alike.values():
        groups.append(_group(config, same, workers_per_node, {group.name for group in groups}))
    if all(group.gpus or group.labels for group in groups):  # nodes with GPUs are not meant for sharding
        groups.append(_sharding_group())
    return tuple(groups)


def _group(config: Config, same: list[Stage], workers_per_node: int, taken: set[str]) -> NodeGroup:
    """Return the group of stages whose workers need the same."""
    need = config.workers_at(same[0].resolution)
    cpus, gpus = need.cpus_per_worker or 0, need.gpus_per_worker or 0
    most = max(config.most_workers_at(stage.resolution) for stage in same)
    on_a_gpu = math.floor(1 / gpus + 1e-9) if 0 < gpus < 1 else 1  # a node has whole GPUs
    workers = min(max(workers_per_node, on_a_gpu), most)
    resources = {name: _up(workers * amount) for name, amount in config.ray.resources_per_worker.items() if amount}
    accelerator = _accelerator(config, same[0].resolution)
    if accelerator:
        resources[f"{ACCELERATOR}{accelerator}"] = 1  # Ray finds it by itself, but only on a node that is there
    tensors = max(host_memory(config, stage) for stage in same)
    name = re.sub(r"[^a-z0-9]+", "-", (accelerator or ("gpu" if gpus else "cpu")).lower()).strip("-")[:20]
    numbers = ("", *(f"-{number}" for number in range(2, len(taken) + 3)))
    return NodeGroup(
        name=next(name + number for number in numbers if name + number not in taken),
        resolutions=tuple(stage.resolution for stage in same),
        cpus=_up(workers * cpus),
        gpus=_up(workers * gpus),
        memory_gib=_up(workers * (PROCESS_GIB + SHARED_GIB + tensors)),
        shared_gib=workers * SHARED_GIB,
        resources=resources,
        labels=_labels(need),
        accelerator_type=accelerator,
        most=math.ceil(most / workers),
    )


def _sharding_group() -> NodeGroup:
    memory = SHARDING_CPUS + PROCESS_GIB + SHARED_GIB
    return NodeGroup("shards", (), SHARDING_CPUS, 0, memory, SHARED_GIB, {}, {}, None, SHARDING_NODES)


def _accelerator(config: Config, resolution: int) -> str | None:
    named = named_accelerators(config, resolution) if config.workers_at(resolution).gpus_per_worker else ()
    return named[0] if named else None


def _labels(need: RayStageOverride) -> dict[str, str]:
    """Return labels that a label selector accepts: of `in(a, b)` the first one; what it only forbids needs none."""
    labels = {}
    for key, value in (need.label_selector or {}).items():
        listed = re.fullmatch(r"in\(([^,)]+).*\)", value.strip())
        if listed or not value.strip().startswith("!"):
            labels[key] = (listed[1] if listed else value).strip()
    return labels


def _up(number: float) -> int:
    """Round up; a remainder of rounding does not count."""
    return math.ceil(number - 1e-6)
