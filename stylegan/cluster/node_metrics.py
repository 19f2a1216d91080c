"""The load of the machines that train: CPU, memory, disk, network and NVIDIA GPUs, named as MLflow's own monitors name them.

A process on each node starts by importing this file, so the file imports almost nothing.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import re
import threading
from collections.abc import Collection
from types import TracebackType
from typing import Any

import psutil

from stylegan.errors import one_line

logger = logging.getLogger("stylegan")
ANSWER_SECONDS = 5.0  # that a node may take; a later answer counts for the next sample
Load = dict[str, float]


def host_name() -> str:
    """Return the name of this machine, of characters that MLflow allows in the name of a metric."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", platform.node()) or "unknown"


class LoadReader:
    """Reads the load of this machine. Made and used on one thread: the use of the CPU is that since its last reading."""

    def __init__(self) -> None:
        psutil.cpu_percent()
        self._network = psutil.net_io_counters()
        self._nvml, self._gpus = _open_nvml()

    def read(self) -> Load:
        """Return the load of now by name; of GPUs what their driver says."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / 1e6,
            "disk_available_megabytes": disk.free / 1e6,
            "network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv) / 1e6,
            "network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent) / 1e6,
        }
        for number, gpu in enumerate(self._gpus):
            found |= {f"gpu_{number}_{name}": value for name, value in self._of_gpu(gpu).items()}
        return found

    def _of_gpu(self, gpu: Any) -> Load:
        nvml, found = self._nvml, Load()
        with contextlib.suppress(nvml.NVMLError):  # a slice of a GPU (MIG) knows only some of them
            memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
            found["memory_usage_megabytes"] = memory.used / 1e6
            found["memory_usage_percentage"] = 100 * memory.used / memory.total
        with contextlib.suppress(nvml.NVMLError):
            found["utilization_percentage"] = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
        with contextlib.suppress(nvml.NVMLError):
            milliwatts = nvml.nvmlDeviceGetPowerUsage(gpu)
            found["power_usage_watts"] = milliwatts / 1000
            found["power_usage_percentage"] = 100 * milliwatts / nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
        return found


def _open_nvml() -> tuple[Any, list[Any]]:
    """Return NVIDIA's library and its GPUs of this machine, none without a driver. It sees those that Ray hides, too."""
    try:
        import pynvml
    except ImportError:
        from ray._private.thirdparty import pynvml  # Ray's own copy
    try:
        pynvml.nvmlInit()
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return pynvml, []


class NodeReader:
    """The actor that reads the load of its node."""

    def __init__(self) -> None:
        self._reader = LoadReader()

    def read(self) -> tuple[str, Load]:
        """Return the name of the machine and its load."""
        return host_name(), self._reader.read()


class NodeMetrics:
    """A block that reads the load of nodes, by a process on each that takes no share of the cluster's resources.

    The node of this process has none: whoever reads the others reads this machine itself.

        with NodeMetrics() as nodes:
            nodes.follow(ids)
            nodes.read()

    No failure leaves this class: the first one is logged as a warning. A node that dies has none, because the stage that
    has lost it says so.
    """

    def __init__(self) -> None:
        self._readers: dict[str, Any] = {}  # by id of the node, as all of these
        self._answers: dict[str, Any] = {}  # those under way
        self._names: dict[str, str] = {}  # of those that have answered
        self._closed = self._warned = False
        self._lock = threading.Lock()

    def __enter__(self) -> NodeMetrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            self._leave(list(self._readers))

    def follow(self, nodes: Collection[str]) -> None:
        """Read these nodes from now on, given by their ids, and no others. Returns at once."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        with self._lock:
            if self._closed:
                return
            try:
                wanted = set(nodes) - {ray.get_runtime_context().get_node_id()}
                self._leave(self._readers.keys() - wanted)
                for node in wanted - self._readers.keys():
                    there = NodeAffinitySchedulingStrategy(node, soft=False)
                    self._readers[node] = ray.remote(num_cpus=0, scheduling_strategy=there)(NodeReader).remote()
            except Exception as error:
                self._warn(error)

    def read(self) -> dict[str, Load]:
        """Return the load of each node by the name of its machine, without those that do not answer in time.

        The beginning of a node's id follows the name if another node, or this process, is on the same machine.
        """
        from stylegan.cluster.head import head_answers

        try:
            with self._lock:
                if not self._readers or not head_answers():
                    return {}
                for node in self._readers.keys() - self._answers.keys():
                    self._answers[node] = self._readers[node].read.remote()
                asked = dict(self._answers)
            return self._results(asked)
        except Exception as error:
            self._warn(error)
            return {}

    def _results(self, asked: dict[str, Any]) -> dict[str, Load]:
        """Wait for answers. Those that are late count for the next call; a node whose process is lost is not asked again."""
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, ActorUnschedulableError

        done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
        found = {}
        with self._lock:
            for node in [node for node, answer in asked.items() if answer in done and node in self._answers]:
                try:
                    host, load = ray.get(self._answers.pop(node))
                    found[self._name(node, host)] = load
                except ActorUnavailableError:
                    pass  # its node cannot be reached for a moment
                except (ActorDiedError, ActorUnschedulableError) as error:
                    self._leave([node])
                    if isinstance(error, ActorDiedError) and error.actor_init_failed:
                        self._warn(error)
        return found

    def _name(self, node: str, host: str) -> str:
        if node not in self._names:
            taken = {host_name(), *self._names.values()}
            self._names[node] = f"{host}-{node[:8]}" if host in taken else host
        return self._names[node]

    def _leave(self, nodes: Collection[str]) -> None:
        """End the processes on nodes."""
        import ray

        from stylegan.cluster.head import head_answers

        for node in nodes:
            reader = self._readers.pop(node)
            self._answers.pop(node, None)
            self._names.pop(node, None)
            with contextlib.suppress(Exception):  # its node may be gone; if Ray is gone, so is the process
                if head_answers():
                    ray.kill(reader)

    def _warn(self, error: Exception) -> None:
        """Log a warning, but only the first of this object."""
        if not self._warned:
            logger.warning("system metrics of other nodes are missing, training goes on: %s", one_line(error))
        self._warned = True
