"""The GPUs that stages train on: what their makers say of each kind, those of this machine, and why torch cannot use them."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch

from stylegan.config.tree import Config
from stylegan.errors import one_line
from stylegan.records import Record

ACCELERATOR = "accelerator_type:"  # with it begins the resource that Ray gives a node for the kind of its GPUs
TENSOR_CORES = (8, 0)  # compute capability from which on a GPU multiplies in bf16 and tf32
TENSOR_TYPES = ("bf16", "tf32")


@dataclass(frozen=True)
class Kind:
    """A kind of GPU and the figures of its maker's datasheet.

    - `pattern`: regular expression that finds it in the name of a device and in Ray's accelerator types.
    - `tflops`: peak of dense products, in 10^12 operations per second, by `training.precision`; what it lacks is left out.
    - `bandwidth`: of its memory, in TB/s.
    """

    name: str
    pattern: str
    tflops: dict[str, float]
    bandwidth: float


def _kind(name: str, pattern: str, bandwidth: float, **tflops: float) -> Kind:
    return Kind(name, pattern, tflops, bandwidth)


# From NVIDIA's datasheets of the V100, A100, H100 and H200. Their figures "with sparsity" are halved. The first pattern
# that is found counts, so an exact name comes before a general one.
KINDS = (
    _kind("NVIDIA V100", r"\bV100\b", 0.9, fp32=15.7, fp16=125),
    _kind("NVIDIA A100 80GB", r"\bA100\b.*\b80\s?G", 2.04, fp32=19.5, tf32=156, bf16=312, fp16=312),
    _kind("NVIDIA A100 40GB", r"\bA100\b", 1.56, fp32=19.5, tf32=156, bf16=312, fp16=312),
    _kind("NVIDIA H100 PCIe", r"\bH100 PCIe\b", 2.0, fp32=51, tf32=378, bf16=756, fp16=756),
    _kind("NVIDIA H100 NVL", r"\bH100 NVL\b", 3.9, fp32=60, tf32=418, bf16=836, fp16=836),
    _kind("NVIDIA H100", r"\bH100\b", 3.35, fp32=67, tf32=495, bf16=990, fp16=990),
    _kind("NVIDIA H200", r"\bH200\b", 4.8, fp32=67, tf32=495, bf16=990, fp16=990),
)
MEASURED = KINDS[-1]  # the kind that training was measured on, see cost.py


def find_kind(name: str) -> Kind | None:
    """Return the kind of a device or of an accelerator type of Ray by its name, None if nothing is known of it.

    A slice of a GPU (MIG) is no GPU of its kind.
    """
    if re.search(r"\bMIG\b", name):
        return None
    return next((kind for kind in KINDS if re.search(kind.pattern, name)), None)


class Device(Record):
    """A GPU that torch can use: name, memory in bytes, compute capability, and the number of its chip."""

    name: str
    memory: int
    capability: tuple[int, int]
    uuid: str = ""

    @property
    def gib(self) -> float:
        """The memory in GiB."""
        return self.memory / 2**30

    def computes(self, precision: str) -> bool:
        """Return whether it multiplies in a `training.precision`, instead of emulating it."""
        return precision not in TENSOR_TYPES or self.capability >= TENSOR_CORES


def device_facts(device: torch.device | int) -> Device:
    """Return the facts of a GPU of this process."""
    found = torch.cuda.get_device_properties(device)
    return Device(
        name=found.name,
        memory=found.total_memory,
        capability=(found.major, found.minor),
        uuid=str(getattr(found, "uuid", "")),
    )


def gpus_here() -> tuple[Device, ...]:
    """Return the GPUs of this machine that torch can use. None of their memory is taken."""
    if not _cuda_works():
        return ()
    return tuple(device_facts(number) for number in range(torch.cuda.device_count()))


@dataclass(frozen=True)
class Target:
    """The GPU that a stage will train on, as far as it is known before.

    - `kind`: None if nothing is known of it.
    - `known`: from the machine, from the config, or not at all.
    """

    name: str
    kind: Kind | None
    known: Literal["here", "named", "assumed"]


def named_accelerators(config: Config, resolution: int) -> tuple[str, ...]:
    """Return the models of GPU that the config names for a stage, as Ray names them."""
    own = config.workers_at(resolution).accelerator_type
    resources = [name for name, amount in config.ray.resources_per_worker.items() if amount]
    named = [name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)]
    return tuple(filter(None, (own, *named)))


def target(config: Config, resolution: int) -> Target:
    """Return the GPU that a stage trains on, if it trains on GPUs.

    It is the one that `ray.accelerator_type`, of the stage or of the run, or `ray.resources_per_worker` names, otherwise the
    first of this machine if Ray is started here.
    Without either one of the kind that was measured is assumed.
    """
    for name in named_accelerators(config, resolution)[:1]:
        kind = find_kind(name)
        return Target(kind.name if kind else name, kind, "named")
    if config.ray.address is None and (here := gpus_here()):
        return Target(here[0].name, find_kind(here[0].name), "here")
    return Target(MEASURED.name, MEASURED, "assumed")


# --- torch and the driver ---


def _cuda_works() -> bool:
    with warnings.catch_warnings():  # `cuda_problem` says in one line what torch warns of in five
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def driver_version() -> str | None:
    """Return the version of this machine's NVIDIA driver, None without one."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(errors="replace")
        found = re.search(r"Kernel Module\s.*?(\d+\.[\d.]+)", text)
        return found[1] if found else "unknown"
    return None


def cuda_problem(*, expected: bool) -> str | None:
    """Return why torch cannot use the NVIDIA GPUs of this machine, and the cure; None if it can.

    Args:
        expected: whether there must be one, even if no driver is seen. Without it a machine without GPUs has no problem.
    """
    driver = driver_version()
    if _cuda_works() or (driver is None and not expected):
        return None
    cuda, release = torch.version.cuda, torch.__version__
    machine = f"the GPU of this machine (driver {driver})" if driver else "a GPU"
    if cuda is None and torch.version.hip is None:
        return (
            f"torch {release} is a build for CPUs and cannot use {machine}; install torch {release.partition('+')[0]} in a build "
            "for CUDA, see https://pytorch.org/get-started"
        )
    reason = "it finds none; look at CUDA_VISIBLE_DEVICES and at `nvidia-smi`"
    try:
        torch.cuda.init()
    except Exception as error:  # of a type that depends on what is wrong
        reason = one_line(error, 120)
        if "driver" in reason and "too old" in reason:
            found = re.search(r"found version (\d+)(\d\d)\d\b", reason)
            newest = f" (for CUDA {int(found[1])}.{int(found[2])} at most)" if found else ""
            return (
                f"the NVIDIA driver {driver or 'here'}{newest} is too old for torch {release}, which is built for CUDA {cuda}; "
                "update the driver, or install torch in a build for an older CUDA, see https://pytorch.org/get-started"
            )
    return f"torch {release} (CUDA {cuda}) cannot use {machine}: {reason}"


def triton_cure() -> str | None:
    """Return how to install the Triton that this torch goes with, None if there is one."""
    with suppress(PackageNotFoundError):
        version("triton")
        return None
    wanted = (re.match(r"triton\s*==\s*([\w.]+)", line) for line in requires("torch") or ())
    exact = next((f"=={found[1]}" for found in wanted if found), "")
    return f"pip install triton{exact}"
