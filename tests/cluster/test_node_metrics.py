"""The load of a machine as it is read; tests/integration/test_many_nodes.py reads that of several nodes."""

import platform
import sys
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from stylegan.cluster.node_metrics import LoadReader, host_name
from stylegan.tracking.metric_names import find


def test_the_load_of_this_machine():
    reader = LoadReader()
    sum(range(1_000_000))
    load = reader.read()
    assert 0 < load["cpu_utilization_percentage"] <= 100
    assert load["system_memory_usage_megabytes"] < psutil.virtual_memory().total / 1e6
    assert 0 < load["system_memory_usage_percentage"] < 100
    assert load["disk_usage_megabytes"] + load["disk_available_megabytes"] <= psutil.disk_usage("/").total / 1e6 + 1
    assert 0 <= load["network_receive_megabytes"] < 10_000
    assert all(find(f"system/{host_name()}/{name}") for name in load)


@pytest.mark.parametrize(
    ("host", "safe"), [("gpu-7.example.org", "gpu-7.example.org"), ("größe 1/a", "gr--e-1-a"), ("", "unknown")]
)
def test_a_host_name_can_be_part_of_a_metric(monkeypatch, host, safe):
    monkeypatch.setattr(platform, "node", lambda: host)
    assert host_name() == safe


def make_nvml(*gpus, fails=False):
    """Return a module with the functions of NVIDIA's library that are used, since this machine has no GPU.

    Args:
        gpus: each as its use in percent, None for one that does not know it, such as a slice of a GPU.
        fails: whether there is no driver.
    """
    nvml = ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})

    def init():
        if fails:
            raise nvml.NVMLError("Driver Not Loaded")

    def utilization(gpu):
        if gpu is None:
            raise nvml.NVMLError("Not Supported")
        return SimpleNamespace(gpu=gpu, memory=3)

    nvml.nvmlInit = init
    nvml.nvmlDeviceGetCount = lambda: len(gpus)
    nvml.nvmlDeviceGetHandleByIndex = lambda number: gpus[number]
    nvml.nvmlDeviceGetMemoryInfo = lambda gpu: SimpleNamespace(total=80_000_000_000, free=0, used=20_000_000_000)
    nvml.nvmlDeviceGetUtilizationRates = utilization
    nvml.nvmlDeviceGetPowerUsage = lambda gpu: 350_000
    nvml.nvmlDeviceGetEnforcedPowerLimit = lambda gpu: 700_000
    return nvml


def of_gpus(load):
    return {name: value for name, value in load.items() if name.startswith("gpu_")}


def test_the_load_of_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", make_nvml(97, None))
    load = of_gpus(LoadReader().read())
    each = {
        "memory_usage_megabytes": 20_000,
        "memory_usage_percentage": 25,
        "power_usage_watts": 350,
        "power_usage_percentage": 50,
    }
    assert load == {f"gpu_{number}_{name}": value for number in (0, 1) for name, value in each.items()} | {
        "gpu_0_utilization_percentage": 97
    }
    assert all(find(f"system/here/{name}") for name in load)


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", make_nvml(97, fails=True))
    assert of_gpus(LoadReader().read()) == {}


def test_without_the_package_the_copy_of_ray_is_taken(monkeypatch):
    """It has everything that is used; that it finds no library here is the same as no driver."""
    import ray._private.thirdparty.pynvml as copy

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert all(hasattr(copy, name) for name in vars(make_nvml()) if name.startswith(("nvml", "NVML")))
    reader = LoadReader()
    assert reader._nvml is copy
