"""`stylegan doctor`: the facts of this machine and of a cluster, and a try of every engine: what works, what to do.

What it prints belongs into a report of a bug: secrets are redacted.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import psutil

from stylegan import storage
from stylegan.cluster.head import check_address
from stylegan.cluster.node_check import SKEW_SECONDS, NodeFacts, check_nodes, problem_lines
from stylegan.cluster.resources import check_gpu_nodes, check_resources, describe_cluster
from stylegan.cluster.session import connect, is_open, ray_session
from stylegan.cluster.stage_launch import backend
from stylegan.commands import shell_command
from stylegan.config.sections import RayConfig, StorageConfig
from stylegan.config.tree import Config
from stylegan.data.cache import cache_root
from stylegan.errors import StepError, UserError
from stylegan.evaluation.features import public_weights as weights
from stylegan.pipeline.preflight import try_writing
from stylegan.places import nearest, shown_bytes
from stylegan.records import Record
from stylegan.retry import storage_settings
from stylegan.tracking.connection import check_server, resolve_uri, server_version, sqlite_file
from stylegan.tracking.open_run import check_experiment
from stylegan.training.faults import check_gpus, check_named
from stylegan.training.gpus import cuda_problem, driver_version, gpus_here, triton_cure
from stylegan.training.hardware import COMPUTE_DTYPES, operations_path
from stylegan.training.schedule import Stage, stages
from stylegan.uris import redact


class Warned(NamedTuple):
    """A check that works, but with something to mend."""

    detail: str


# Returns what works, in words; raises UserError with what does not.
Check = Callable[[Config | None], str | Warned]


PACKAGES = ("torch", "ray", "prefect", "mlflow", "webdataset", "s3fs", "numpy")


class Fact(Record):
    """A fact of this machine."""

    name: str
    detail: str


class Finding(Record):
    """The result of one check; `warning` if it works, but there is something to mend."""

    name: str
    ok: bool
    detail: str
    warning: bool = False


class Examination(Record):
    """The facts of this machine and of the nodes of a cluster, and the results of all checks; `ok` if everything works."""

    machine: tuple[Fact, ...] = ()
    nodes: tuple[NodeFacts, ...] = ()
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything works."""
        return all(finding.ok for finding in self.findings)


def examine(config: Config | None, ray_config: RayConfig | None = None) -> Examination:
    """Check what a run of this config needs; without a config, what the defaults need on this machine.

    Args:
        config: that of the run.
        ray_config: names the cluster, if it is not that of the config.
    """
    settings = config.storage if config else StorageConfig()
    ray_config = ray_config or (config.ray if config else RayConfig())
    checks: list[tuple[str, Check]] = [
        ("storage", _storage),
        ("data", _data),
        ("device", _training),
        ("metrics", _metrics),
        *(weight_checks(config) if config else ()),
        ("mlflow", _mlflow),
        ("prefect", _prefect),
    ]
    patient = settings.model_copy(update={"patience_s": 5.0})  # a store that is away is not waited for
    nodes: list[NodeFacts] = []
    with storage_settings(patient), ray_session():
        findings = [_try(name, check, config) for name, check in checks]
        findings.append(_try("ray", partial(_ray, ray_config), config))
        if ray_config.address is not None and is_open():
            findings += _nodes(config, ray_config, nodes)
    return Examination(machine=tuple(machine_facts(config)), nodes=tuple(nodes), findings=tuple(findings))


# --- the machine ---


def machine_facts(config: Config | None) -> list[Fact]:
    """Return versions, devices, and the disks that a run of this config writes to (without one: that of the defaults)."""
    facts = [
        ("stylegan", f"{_version('stylegan-pipeline')} in {Path(__file__).parents[2]}"),
        ("config", _config(config)),
        ("python", f"{platform.python_version()} at {sys.executable}"),
        ("system", f"{_system()}, {platform.machine()}"),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)),
        ("cpu", _cpu()),
        ("memory", _memory()),
        *_gpus(),
        *((f"disk of {name}", _disk(folder)) for name, folder in _folders(config)),
    ]
    return [Fact(name=name, detail=redact(detail)) for name, detail in facts]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _config(config: Config | None) -> str:
    if config is None:
        return "none given: the defaults"
    return f"{' '.join(config._arguments)}: name {config.name}, storage.root {config.storage.root}"


def _system() -> str:
    with suppress(OSError, KeyError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.release()}"
    return platform.platform()


def _first_line(path: str, pattern: str) -> str | None:
    """Return the first group of a pattern in a file of the kernel, None where there is none."""
    with suppress(OSError):
        found = re.search(pattern, Path(path).read_text(errors="replace"), re.MULTILINE)
        return found[1].strip() if found else None
    return None


def _cpu() -> str:
    model = _first_line("/proc/cpuinfo", r"^model name\s*:(.*)$") or platform.processor() or platform.machine()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _first_line("/sys/fs/cgroup/cpu.max", r"^(\d+ \d+)$")
    limit = ""
    if quota:
        share, period = map(int, quota.split())
        limit = f", limited to {share / period:g}"
    return f"{model}, {usable} of {os.cpu_count()} cores{limit}"


def _memory() -> str:
    memory = psutil.virtual_memory()
    limit = _first_line("/sys/fs/cgroup/memory.max", r"^(\d+)$")
    limited = f", limited to {shown_bytes(int(limit))}" if limit and int(limit) < memory.total else ""
    shared = Path("/dev/shm")  # Ray keeps its objects there
    shm = f", {shown_bytes(shutil.disk_usage(shared).free)} free in {shared}" if shared.is_dir() else ""
    return f"{shown_bytes(memory.total)}, {shown_bytes(memory.available)} available{limited}{shm}"


def _gpus() -> list[tuple[str, str]]:
    """Return a fact for CUDA and one for each GPU; a driver that this torch cannot use is named."""
    import torch

    here = gpus_here()
    if not here:
        return [("gpu", cuda_problem(expected=False) or "none")]
    cudnn = torch.backends.cudnn.version() or 0
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "is missing"
    parts = [f"CUDA {torch.version.cuda}", f"cuDNN {cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}", f"NCCL {nccl}"]
    cure = triton_cure()
    triton = f"Triton is missing (`{cure}`)" if cure else f"Triton {_version('triton')}"
    found = [("cuda", ", ".join([*parts, triton, f"driver {driver_version() or 'unknown'}"]))]
    for number, gpu in enumerate(here):
        free = ""
        with suppress(RuntimeError):  # another process may have taken all of it
            free = f", {shown_bytes(torch.cuda.mem_get_info(number)[0])} free"
        able = ", ".join(precision for precision in COMPUTE_DTYPES if gpu.computes(precision))
        capability = f"compute {gpu.capability[0]}.{gpu.capability[1]}"
        found.append((f"gpu {number}", f"{gpu.name}, {shown_bytes(gpu.memory)}{free}, {capability}: {able}"))
    return found


def _folders(config: Config | None) -> list[tuple[str, str]]:
    """Return the folders of this machine that a run writes to, by the setting that names each."""
    root = config.storage.root if config else StorageConfig().root
    local_root = storage.absolute(root) if storage.is_local(root) else ""
    database = sqlite_file(resolve_uri(config)) if config else None
    folders = [
        ("storage.root", local_root),
        ("tracking.uri", str(database.parent) if database and str(database.parent) != local_root else ""),
        ("STYLEGAN_CACHE", str(cache_root())),
        ("PREFECT_HOME", os.environ.get("PREFECT_HOME") or "~/.prefect"),
        ("RAY_TMPDIR", os.environ.get("RAY_TMPDIR") or "/tmp/ray"),
        ("TMPDIR", tempfile.gettempdir()),
    ]
    return [(name, os.path.expanduser(folder)) for name, folder in folders if folder]


def _disk(folder: str) -> str:
    try:
        usage = shutil.disk_usage(nearest(folder))
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return f"{folder}: {shown_bytes(usage.free)} free of {shown_bytes(usage.total)}"


# --- the checks ---


def weight_checks(config: Config) -> list[tuple[str, Check]]:
    """Return a check for each file of the published networks that the metrics need."""
    return [("weights", partial(_weights, kind)) for kind in weights.needed(config.evaluation)]


def _try(name: str, check: Check, config: Config | None) -> Finding:
    try:
        found = check(config)
    except UserError as error:
        return Finding(name=name, ok=False, detail=str(error))
    if isinstance(found, Warned):
        return Finding(name=name, ok=True, detail=redact(found.detail), warning=True)
    return Finding(name=name, ok=True, detail=redact(found))


def _storage(config: Config | None) -> str:
    root = storage.absolute(config.storage.root if config else "stylegan-data")
    existed = storage.exists(root)
    try_writing(root)
    if not storage.is_local(root):
        return f"{root} can be written and read"
    folder = root if existed else "."
    return f"{root} can be written and read, {shown_bytes(shutil.disk_usage(folder).free)} free"


def _data(config: Config | None) -> str:
    from stylegan.data.sources.open_source import open_source
    from stylegan.pipeline.check_data import check_data
    from stylegan.pipeline.run import find_origin

    if config is None:
        return "give a CONFIG to look at its data"
    source = open_source(config.data, config.storage.root)
    check_data(config, len(source.images), source.label_names, source.attribute_names)
    find_origin(config, source)
    if source.attribute_names:
        labels = f"{len(source.attribute_names)} attributes"
    else:
        labels = f"{len(source.label_names) or 'no'} classes"
    return f"{len(source.images):,} images, {labels} in {config.data.source}"


def _metrics(config: Config | None) -> str:
    from stylegan.data.sources.open_source import open_source
    from stylegan.evaluation.features.spaces import check_features

    if config is None:
        return "the embedded classifier needs no weights"
    check_features(config.evaluation, labelled=bool(open_source(config.data, config.storage.root).label_names))
    features = config.evaluation.features
    what = "public networks, see below" if features == "inception" else "is there or trained on demand"
    return f"evaluation.features={features}: {what}"


def _weights(kind: weights.WeightName, config: Config | None) -> str:
    """Check one file of a published network; say where it is, or whence `run` would download it and to where."""
    assert config is not None
    place = weights.locate(kind, getattr(config.evaluation.weights, kind))
    size = weights.shown_size(place.num_bytes)
    if place.path:
        return f"{kind}: {place.path}, {size}"
    if not storage.exists(place.uri):
        raise StepError(
            f"{kind}: not on this machine, and no way to {place.uri}; get it by other means and put it at {place.target}"
        )
    return f"{kind}: not on this machine yet; a run downloads {place.uri} ({size}) to {place.target}"


def _training(config: Config | None) -> str:
    """Say on what the stages train and by which path, and why; for stages that differ, from which one on."""
    if config is None:
        here = gpus_here()
        return (
            f"give a CONFIG to see its path; ray.gpus_per_worker=1 would train on {here[0].name}" if here else "on CPUs"
        )
    all_stages = stages(config)
    check_named(config, all_stages)
    if config.ray.address is None and any(config.workers_at(stage.resolution).gpus_per_worker for stage in all_stages):
        if problem := cuda_problem(expected=False):
            raise StepError(f"ray.gpus_per_worker: {problem}")
        if not gpus_here():
            raise StepError(
                "ray.gpus_per_worker: this machine has no GPU; set it to 0, or ray.address to a cluster that has some"
            )
        check_gpus(config, all_stages, gpus_here())
    paths: dict[str, str] = {}  # path -> the first stage that takes it
    for stage in all_stages:
        paths.setdefault(_path(config, stage), stage.name)
    if len(paths) == 1:
        return next(iter(paths))
    return "; ".join(f"from {first} on: {path}" for path, first in paths.items())


def _path(config: Config, stage: Stage) -> str:
    import torch

    need, training = config.workers_at(stage.resolution), config.training
    counts = config.worker_counts_at(stage.resolution)
    workers = f"{counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'} worker(s)"
    if not need.gpus_per_worker:
        how = (
            "torch.compile fuses operations" if training.compile else "torch's own operations (training.compile=false)"
        )
        unused = gpus_here() if config.ray.address is None else ()
        hint = f"; {unused[0].name} is unused, ray.gpus_per_worker=1 trains on it" if unused else ""
        return f"{workers} on {need.cpus_per_worker:g} CPU core(s) each, {training.precision}: {how}{hint}"
    if config.ray.address is not None:
        return f"{workers} on {need.gpus_per_worker:g} GPU of the cluster each, {training.precision}; its curves have time/path"
    path = operations_path(training, torch.device("cuda", 0))
    how = {
        "fused": f"the project's kernels (Triton {_version('triton')})",
        "compiled": "torch.compile (training.compile=true)",
        "eager": f"torch's own operations, as Triton's kernels do not work here{_triton_cure()}",
    }[path]
    return f"{workers} on {gpus_here()[0].name}, {training.precision}: {how}; {_graphs(config, stage)}"


def _triton_cure() -> str:
    cure = triton_cure()
    return f" (it is missing: `{cure}`)" if cure else ""


def _graphs(config: Config, stage: Stage) -> str:
    """Say whether the whole steps of a stage on a GPU are captured as CUDA graphs, and why."""
    setting = config.training.cuda_graphs
    if setting is False:
        return "no CUDA graphs (training.cuda_graphs=false)"
    if config.most_workers_at(stage.resolution) > 1 and backend(config, stage.resolution) != "nccl":
        return "no CUDA graphs, because workers share a GPU"
    return f"whole steps as CUDA graphs (training.cuda_graphs={str(setting).lower()})"


def _mlflow(config: Config | None) -> str | Warned:
    if config is None:
        return "SQLite below storage.root unless tracking.uri is set"
    uri = resolve_uri(config)
    check_server(uri)
    check_experiment(config)
    if not uri.startswith("http"):
        return uri
    upgrade = shell_command("mlflow", "db", "upgrade", "URL")
    return _answer(uri, "MLflow", server_version(uri), f", run `{upgrade}` with the URL of its database")


def _prefect(config: Config | None) -> str | Warned:
    from flows import prefect_server

    with prefect_server.api() as url:
        version_there = prefect_server.server_version(url)
        return _answer(url, "Prefect", version_there)  # upgrades its database as it starts


def _answer(url: str, name: str, there: str | None, upgrade: str = "") -> str | Warned:
    """Say that a server answers, with which version; warn if the client here has another one, patches aside.

    Args:
        url: that of the server.
        name: that of the product; in small letters, of its package.
        there: the version that the server tells, if any.
        upgrade: what it takes besides the package to bring the server to another version.
    """
    here = version(name.lower())
    server, client = (re.match(r"(\d+)\.(\d+)\b", text or "") for text in (there, here))
    if server is None or client is None:  # it does not tell, or something else answers there
        return f"{url} answers"
    answers = f"{url} answers, {name} {there}"
    if server.groups() == client.groups():
        return answers
    if tuple(map(int, server.groups())) < tuple(map(int, client.groups())):
        return Warned(
            f"{answers}: older than the client here, {here}; stop that server, copy its database, install {name.lower()} "
            f"{client[0]} where it runs{upgrade}, and start it"
        )
    return Warned(
        f"{answers}: newer than the client here, {here}; update this program to a release with {name} {server[0]}, or "
        f"serve with {name} {client[0]} and a database of that time"
    )


def _ray(ray_config: RayConfig, config: Config | None) -> str:
    check_address(ray_config)
    connect(ray_config)
    fits = ""
    if config is not None:
        fits = f"; {check_resources(config, stages(config)) or 'every stage fits'}"
        if ray_config.address is not None:
            check_gpu_nodes(config, stages(config))
    where = f"the cluster at {ray_config.address}" if ray_config.address else "a Ray of its own on this machine"
    return f"{where}, {describe_cluster()}{fits}"


def _nodes(config: Config | None, ray_config: RayConfig, nodes: list[NodeFacts]) -> list[Finding]:
    """Look at the nodes of the cluster, append them to `nodes`, and return what is wrong with them, or that all is well."""
    try:
        nodes += check_nodes(ray_config, config.storage if config else None)
    except UserError as error:
        return [Finding(name="nodes", ok=False, detail=str(error))]
    lines = problem_lines(nodes)
    if config is None:  # otherwise `check_gpu_nodes` knows whether a stage needs them
        lines += [f"node {node.name}: {node.look.problem}" for node in nodes if node.look.problem]
    if lines:
        return [Finding(name="nodes", ok=False, detail=redact(line)) for line in lines]
    seen = "see storage.root" if config else "give a CONFIG to see whether they reach its storage"
    detail = (
        f"{len(nodes)}, all with the versions and the code of this process, clocks within {SKEW_SECONDS:.0f} s; {seen}"
    )
    return [Finding(name="nodes", ok=True, detail=detail)]
