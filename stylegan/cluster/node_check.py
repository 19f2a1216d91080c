"""Look at every node of a cluster by a task there: versions, GPUs, disks, storage and clock, against those of this process."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from stylegan import storage
from stylegan.cluster.session import connect
from stylegan.config.sections import RayConfig, StorageConfig
from stylegan.config.tree import Config
from stylegan.data.cache import cache_root
from stylegan.errors import StepError, UnavailableError, UserError, one_line
from stylegan.places import FULL, check_place, nearest, shown_bytes
from stylegan.records import Record
from stylegan.retry import storage_settings
from stylegan.training.gpus import Device, cuda_problem, driver_version, gpus_here, triton_cure

logger = logging.getLogger("stylegan")
LOOK_SECONDS = 60.0  # in which a node must have answered
SKEW_SECONDS = 5.0  # between two clocks; more confuses whoever compares times of files, logs and runs
PATIENCE = 5.0  # seconds that a node waits for a store which does not answer


class Probe(Record):
    """A file in storage that every node must see: its root as the config has it, its URI, and its content."""

    root: str
    uri: str
    content: str


class Disk(Record):
    """The disk of a folder that workers write to: the setting that names it, the folder, free and all bytes."""

    setting: str
    folder: str
    free: int
    size: int


class Look(Record):
    """Say what is seen of a node; by default nothing, as of one that does not answer.

    - `versions`: of Python and of packages, those of torch without the build.
    - `code`: digest of the package's modules.
    - `problem`: why torch cannot use the GPUs of the node.
    - `triton`: how to install Triton, where it is missing.
    - `skew`: seconds by which its clock is ahead of that of this process; those that the answer took count as well.
    - `faults`: what does not work there, a line with the cure for each.
    - `unavailable`: which store does not answer there but may do so a little later, a line with the reason for each.
    """

    versions: dict[str, str] = {}
    code: str = ""
    problem: str | None = None
    devices: tuple[Device, ...] = ()
    driver: str | None = None
    triton: str | None = None
    disks: tuple[Disk, ...] = ()
    skew: float = 0.0
    faults: tuple[str, ...] = ()
    unavailable: tuple[str, ...] = ()

    @property
    def answered(self) -> bool:
        """Return whether the node has answered."""
        return bool(self.versions)


class NodeFacts(Record):
    """A node of the cluster, what is seen of it, and what is wrong with it, a line with the cure for each.

    `name` is its address, with the beginning of its id if other nodes have the same.
    """

    name: str
    node_id: str
    head: bool
    resources: dict[str, float]
    look: Look
    problems: tuple[str, ...] = ()


def check_nodes(ray_config: RayConfig, storage_config: StorageConfig | None = None) -> list[NodeFacts]:
    """Look at every node of the cluster that a config joins, by a task that takes none of its resources.

    Args:
        ray_config: names the cluster.
        storage_config: its root must be seen from every node, and takes files from it; None: that is not tried.

    Raises:
        StepError: the cluster cannot be joined, or this process cannot write to storage.
    """
    import ray

    connect(ray_config)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in nodes]
    with _probe(storage_config) as probe:
        looks = look_at(nodes, storage_config, probe)
    for place, look in enumerate(looks):
        if (
            abs(look.skew) > SKEW_SECONDS
        ):  # the answer may have been late: this one comes from a process that runs already
            (again,) = look_at([nodes[place]])
            if again.answered:
                looks[place] = look.model_copy(update={"skew": min(look.skew, again.skew, key=abs)})
    ours, code = _version_reader()(), code_digest()
    found = []
    for node, address, look in zip(nodes, addresses, looks, strict=True):
        alone = addresses.count(address) == 1
        found.append(
            NodeFacts(
                name=address if alone else f"{address} ({node['NodeID'][:8]})",
                node_id=node["NodeID"],
                head="node:__internal_head__" in node["Resources"],
                resources=node["Resources"],
                look=look,
                problems=tuple(_problems(look, ours, code)),
            )
        )
    return found


def require_nodes(config: Config) -> list[NodeFacts]:
    """Check that the nodes of the cluster that a config joins can do its work. One that does not answer is only warned of.

    Returns:
        what is seen of the nodes; nothing for a Ray of its own on this machine.

    Raises:
        StepError: one cannot; the line names all nodes of which the same is true.
    """
    if config.ray.address is None:
        return []
    nodes = check_nodes(config.ray, config.storage)
    if any(node.look.unavailable for node in nodes):
        # A store that is away for all is no fault of a node: this process waits for it as for any request, and asks again.
        nodes = check_nodes(config.ray, config.storage)
    for node in nodes:
        if not node.look.answered:
            logger.warning("node %s: %s", node.name, node.problems[0])
    lines = problem_lines([node for node in nodes if node.look.answered])
    if lines:
        more = f" (and {len(lines) - 1} more: `{config.command('doctor')}` shows them)" if len(lines) > 1 else ""
        raise StepError(f"{lines[0]}{more}")
    return nodes


def problem_lines(nodes: Sequence[NodeFacts]) -> list[str]:
    """Return a line for each problem, with all nodes that have it."""
    where: dict[str, list[str]] = {}
    for node in nodes:
        for problem in node.problems:
            where.setdefault(problem, []).append(node.name)
    return [f"node{'s' if len(names) > 1 else ''} {', '.join(names)}: {problem}" for problem, names in where.items()]


def _problems(look: Look, ours: dict[str, str], code: str) -> Iterator[str]:
    """Yield what is wrong with a node."""
    if not look.answered:
        yield f"does not answer within {LOOK_SECONDS:.0f} s; look at its load and at the logs of its Ray, or take it away"
        return
    different = {name: look.versions[name] for name in ours if look.versions.get(name) != ours[name]}
    if "Python" in different and _minor(different["Python"]) == _minor(ours["Python"]):
        del different["Python"]  # Ray itself decides whether the last number matters
    if different:
        theirs, here = _shown(different), _shown({name: ours[name] for name in different})
        yield f"has {theirs}, and this process {here}; install the same on all nodes, best in one image"
    elif look.code and look.code != code:
        yield (
            f"its stylegan {look.versions['stylegan']} has other code than that of this process; install the same on all "
            "nodes, best in one image"
        )
    yield from look.faults
    yield from look.unavailable
    for disk in look.disks:
        if disk.free < FULL:
            yield f"no space left on the disk of {disk.setting} ({disk.folder}); free some, or move it by {disk.setting}"
    if abs(look.skew) > SKEW_SECONDS:
        yield (
            f"its clock is {abs(look.skew):.0f} s {'ahead of' if look.skew > 0 else 'behind'} that of this process; let both "
            "be set by a time server (NTP)"
        )


def _minor(python: str) -> list[str]:
    return python.split(".")[:2]


def _shown(found: dict[str, str]) -> str:
    return " and ".join(f"{name} {number}" for name, number in found.items())


@contextmanager
def _probe(storage_config: StorageConfig | None) -> Iterator[Probe | None]:
    """Write a small file to storage for the block, and yield what a node must find there."""
    if storage_config is None:
        yield None
        return
    with storage.probe(storage.absolute(storage_config.root)) as (uri, content):
        yield Probe(root=storage_config.root, uri=uri, content=content.decode())


# --- the look ---


def look_at(
    nodes: Sequence[dict[str, Any]], storage_config: StorageConfig | None = None, probe: Probe | None = None
) -> list[Look]:
    """Look at nodes, as `ray.nodes()` has them, all at the same time; nothing is seen of one that does not answer in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    settings = storage_config.model_dump(mode="json") if storage_config else None
    asked = probe.model_dump(mode="json") if probe else None
    places = {}
    for place, node in enumerate(nodes):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_task())
        places[task.remote(bool(node["Resources"].get("GPU")), settings, asked)] = place
    looks, pending, end = [Look()] * len(nodes), list(places), time.monotonic() + LOOK_SECONDS
    while pending and (left := end - time.monotonic()) > 0:
        done, pending = ray.wait(pending, timeout=left)
        now = time.time()
        for answer in done:
            with suppress(ray.exceptions.RayError):  # the node is lost or cannot start a process
                found = ray.get(answer)
                looks[places[answer]] = Look.model_validate(found | {"skew": found["clock"] - now})
    for answer in pending:
        with suppress(Exception):  # its node may be gone by now
            ray.cancel(answer, force=True)
    return looks


def _version_reader() -> Callable[[], dict[str, str]]:
    """Return a function that returns the versions of its process. It is sent as code, and works without this package."""

    def read() -> dict[str, str]:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        found = {"Python": platform.python_version()}
        for name, package in (("Ray", "ray"), ("torch", "torch"), ("stylegan", "stylegan-pipeline")):
            try:
                found[name] = version(package).partition("+")[0]
            except PackageNotFoundError:
                found[name] = "(not installed)"
        return found

    return read


def _task() -> Callable[..., dict[str, Any]]:
    """Return the task that looks at its node, which is sent as code as well."""
    read = _version_reader()

    def look(gpus: bool, settings: dict[str, Any] | None, asked: dict[str, Any] | None) -> dict[str, Any]:
        import os
        import time

        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # so Ray hides the GPUs from a task that reserves none
            del os.environ["CUDA_VISIBLE_DEVICES"]
        found: dict[str, Any] = {"versions": read()}
        try:
            from stylegan.cluster.node_check import look_here

            found |= look_here(gpus, settings, asked)
        except Exception as error:  # another version of the package, or none
            found["faults"] = [
                f"stylegan does not work there ({type(error).__name__}: {error}); install it as it is here"
            ]
        return found | {"clock": time.time()}

    return look


def look_here(gpus: bool, settings: dict[str, Any] | None, asked: dict[str, Any] | None) -> dict[str, Any]:
    """Look at this node and take none of its GPUs; return fields of a `Look` as JSON has them.

    Args:
        gpus: whether it should have some that torch can use.
        settings: the `StorageConfig`, if storage is tried.
        asked: the `Probe` to look for there.
    """
    faults, unavailable = [], []
    if settings is not None and asked is not None:
        with storage_settings(StorageConfig.model_validate(settings | {"patience_s": PATIENCE})):
            try:
                faults += _storage_faults(Probe.model_validate(asked))
            except UnavailableError as error:
                unavailable.append(f"storage.root={settings['root']}: {error}")
    try:
        check_place("STYLEGAN_CACHE", cache_root())
    except StepError as error:
        faults.append(str(error))
    look = Look(
        code=code_digest(),
        problem=cuda_problem(expected=gpus),
        devices=gpus_here(),
        driver=driver_version(),
        triton=triton_cure(),
        disks=tuple(_disks()),
        faults=tuple(faults),
        unavailable=tuple(unavailable),
    )
    return look.model_dump(mode="json", exclude={"versions", "skew"})


@cache
def code_digest() -> str:
    """Return a digest of the modules of this package: versions are the same for code that somebody has changed."""
    root, content = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        data = path.read_bytes()
        content.update(f"{path.relative_to(root)} {len(data)}\n".encode())
        content.update(data)
    return content.hexdigest()[:10]


def _storage_faults(probe: Probe) -> list[str]:
    """Return why the file of a probe cannot be seen from here, or none be written beside it.

    Raises:
        UnavailableError: the store does not answer, which need not be a fault of this node.
    """
    where = f"storage.root={probe.root}"
    own = f"{probe.uri}-{uuid.uuid4().hex[:8]}"
    try:
        if not storage.exists(probe.uri) or storage.read_bytes(probe.uri) != probe.content.encode():
            return [
                f"{where}: what this process wrote to {probe.uri} is not seen there; give a folder or bucket that every node "
                "of the cluster reaches"
            ]
        storage.write_bytes(own, b"probe")
        storage.delete(own)
    except UnavailableError:
        raise
    except UserError as error:
        return [f"{where}: {error}"]
    except OSError as error:
        return [f"{where}: cannot be read and written there ({one_line(error, 160)})"]
    return []


def _disks() -> Iterator[Disk]:
    from ray._common.utils import get_default_ray_temp_dir
    from ray._private.worker import _global_node

    ray_folder = _global_node.get_temp_dir_path() if _global_node else get_default_ray_temp_dir()
    for setting, folder in (("STYLEGAN_CACHE", str(cache_root())), ("RAY_TMPDIR", ray_folder)):
        with suppress(OSError):
            usage = shutil.disk_usage(nearest(folder))
            yield Disk(setting=setting, folder=folder, free=usage.free, size=usage.total)


def describe_node(node: NodeFacts) -> str:
    """Return the facts of a node for people, in one line without its name."""
    look = node.look
    if not look.answered:
        return "no answer"
    amounts = {name: node.resources[name] for name in ("CPU", "GPU") if node.resources.get(name)}
    models = [device.name for device in look.devices]
    gpus = [f"{models.count(model)} x {model}" for model in dict.fromkeys(models)]
    if look.problem:
        gpus.append(f"GPUs cannot be used: {look.problem}")
    parts = [
        *(["head"] if node.head else []),
        " ".join(f"{amount:g} {name}" for name, amount in amounts.items()) or "no CPUs for work",
        ", ".join(f"{name} {number}" for name, number in look.versions.items()),
        *gpus,
        *([f"driver {look.driver}"] if look.driver else []),
        *(f"{shown_bytes(disk.free)} free in {disk.folder} ({disk.setting})" for disk in look.disks),
        f"clock {look.skew:+.1f} s",
    ]
    return ", ".join(parts)
