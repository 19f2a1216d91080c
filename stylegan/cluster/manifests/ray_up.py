"""The YAML of `ray up`: a cluster of machines of AWS, or of machines that are there, made from a config.

The head runs no work. On AWS the groups of workers begin empty (`node_groups.py`), and Ray starts the machines that a stage
waits for. On machines of one's own Ray starts all that are named. Runs are launched on the cluster once it is there.

Source of the fields: `ray/autoscaler/ray-schema.json` of the installed Ray.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from stylegan.cluster.manifests.kuberay import Document, check_image, object_name
from stylegan.cluster.manifests.node_groups import NodeGroup, node_groups
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.records import Record

IDLE_MINUTES = 5  # without work, after which a machine is let go: a new one takes minutes
HEAD_MACHINE = "m6i.2xlarge"  # 8 cores, 32 GB
SHARDS_MACHINE = "m6i.2xlarge"  # as many cores as node_groups.SHARDING_CPUS
DISK_GB = 256
SSH_USER = "ubuntu"  # of the machine images of AWS
TOKEN_FILE = "~/.ray/auth_token"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_MACHINE = re.compile(r"(?:([a-z0-9-]+):)?([a-z][a-z0-9-]*\.[a-z0-9-]+)")
_OPEN = "ulimit -n 65536; export RAY_AUTH_MODE=token;"


class Machines(Record):
    """Say what a cluster YAML needs beyond the config.

    - `image`: a container in which all of it runs; None: the package is installed on the machines.
    - `region`, `instance_types`: of AWS; a type of the machines with GPUs, or `GROUP:TYPE` for one group or `head`.
    - `head`, `workers`: hosts of machines that are there.
    - `ssh_user`: who may log in on all machines, by key.
    - `workers_per_node`: as many workers of a stage share a machine.
    """

    provider: Literal["aws", "local"]
    image: str | None = None
    region: str | None = None
    instance_types: tuple[str, ...] = ()
    head: str | None = None
    workers: tuple[str, ...] = ()
    ssh_user: str = SSH_USER
    workers_per_node: int = 1


def cluster_yaml(config: Config, machines: Machines) -> Document:
    """Return the document that `ray up` reads.

    Raises:
        ConfigError: an option is not allowed, or one that the provider needs is missing.
    """
    if machines.image is not None:
        check_image(machines.image)
    groups = node_groups(config, machines.workers_per_node)
    if not re.fullmatch(r"[a-z_][a-z0-9_-]*", machines.ssh_user):
        raise ConfigError(f"--ssh-user {machines.ssh_user}: is no name of a user")
    own = _aws(machines, groups) if machines.provider == "aws" else _local(machines)
    document: Document = {"cluster_name": object_name(config)} | own
    document |= {
        "idle_timeout_minutes": IDLE_MINUTES,
        "auth": {"ssh_user": machines.ssh_user},
        # Every machine has the token of whoever starts the cluster: `ray get-auth-token --generate` makes one.
        "file_mounts": {TOKEN_FILE: TOKEN_FILE},
        "head_start_ray_commands": [
            "ray stop",
            f"{_OPEN} ray start --head --num-cpus=0 --num-gpus=0 --port=6379 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{_OPEN} ray start --address=$RAY_HEAD_IP:6379"],
    }
    if machines.image:
        shared = max(group.shared_gib for group in groups)
        options = [f"--shm-size={shared}g", "--ulimit nofile=65536:65536"]
        document["docker"] = {"image": machines.image, "container_name": "stylegan", "run_options": options}
    return document


def _aws(machines: Machines, groups: tuple[NodeGroup, ...]) -> Document:
    if machines.head is not None or machines.workers:
        raise ConfigError("--head and --worker name machines that are there; leave them out, or use --provider local")
    if machines.region is None or not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-[0-9]", machines.region):
        raise ConfigError(f"--region {machines.region or ''}: must be a region of AWS, such as --region eu-central-1")
    types = _instance_types(machines, groups)
    kinds: dict[str, Any] = {"head": _node_type(types["head"], {"CPU": 0}, {}, 0)}
    for group in groups:
        counted = {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {}) | group.resources
        kinds[group.name] = _node_type(types[group.name], counted, group.labels, group.most)
    return {
        "max_workers": sum(group.most for group in groups),
        "provider": {"type": "aws", "region": machines.region, "cache_stopped_nodes": False},
        "head_node_type": "head",
        "available_node_types": kinds,
    }


def _node_type(machine: str, resources: dict[str, int], labels: dict[str, str], most: int) -> Document:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GB, "VolumeType": "gp3"}}
    kind: Document = {"min_workers": 0, "max_workers": most, "resources": resources}
    if labels:
        kind["labels"] = dict(labels)
    return kind | {"node_config": {"InstanceType": machine, "BlockDeviceMappings": [disk]}}


def _instance_types(machines: Machines, groups: tuple[NodeGroup, ...]) -> dict[str, str]:
    """Return the type of machine of the head and of each group, and check them."""
    names = ("head", *(group.name for group in groups))
    types = {"head": HEAD_MACHINE} | {group.name: SHARDS_MACHINE for group in groups if not group.gpus}
    for text in machines.instance_types:
        found = _MACHINE.fullmatch(text)
        if not found:
            raise ConfigError(f"--instance-type {text}: must be a type of machine such as g6e.xlarge, or GROUP:TYPE")
        if found[1] and found[1] not in names:
            raise ConfigError(f"--instance-type {text}: no group {found[1]}; there are {', '.join(names)}")
        types |= dict.fromkeys([found[1]] if found[1] else [g.name for g in groups if g.gpus], found[2])
    for group in groups:
        if group.name not in types:
            wanted = f"{group.gpus} GPU(s)" + (f" of model {group.accelerator_type}" if group.accelerator_type else "")
            raise ConfigError(
                f"--instance-type: is missing for group {group.name}, whose nodes have {wanted}, {group.cpus} CPU(s) and "
                f"{group.memory_gib} GiB; give one such as --instance-type {group.name}:g6e.xlarge"
            )
    return types


def _local(machines: Machines) -> Document:
    if machines.region is not None or machines.instance_types:
        raise ConfigError("--region and --instance-type are for --provider aws")
    if machines.head is None or not machines.workers:
        raise ConfigError(
            "--provider local starts Ray on machines that are there; name them: --head HOST --worker HOST --worker HOST"
        )
    for option, host in (("--head", machines.head), *(("--worker", host) for host in machines.workers)):
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{option} {host}: is no name or address of a host")
    if machines.head in machines.workers or len(set(machines.workers)) < len(machines.workers):
        raise ConfigError("--worker: a host is named twice; the head runs no work, so it is no worker, too")
    provider = {"type": "local", "head_ip": machines.head, "worker_ips": list(machines.workers)}
    return {"max_workers": len(machines.workers), "provider": provider}
