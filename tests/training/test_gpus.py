"""What is known of GPUs by their names, and why torch cannot use those of a machine."""

from types import SimpleNamespace

import pytest
import torch

from stylegan.config.file import build
from stylegan.training import gpus
from stylegan.training.gpus import MEASURED, cuda_problem, find_kind, target


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Tesla V100-SXM2-16GB", "NVIDIA V100"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("A100-80G", "NVIDIA A100 80GB"),  # names of Ray
        ("H100", "NVIDIA H100"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA L4", None),
    ],
)
def test_a_kind_is_found_by_the_names_of_devices_and_of_ray(name, kind):
    found = find_kind(name)
    assert (found and found.name) == kind


def config(**ray):
    return build({"name": "t", "data": {"source": "digits", "resolution": 8}, "ray": ray})


def fake_gpu(monkeypatch, name, gib=80, capability=(9, 0), uuid="GPU-1"):
    """Describe a machine with one GPU."""
    facts = SimpleNamespace(name=name, total_memory=gib * 2**30, major=capability[0], minor=capability[1], uuid=uuid)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: facts)


def test_the_gpu_of_a_stage_is_the_named_one_or_that_of_this_machine(monkeypatch):
    """What the config names counts more; a cluster has other GPUs than this machine."""
    assert (target(config(gpus_per_worker=1), 8).known, target(config(), 8).kind) == ("assumed", MEASURED)
    fake_gpu(monkeypatch, "NVIDIA A100-SXM4-40GB")
    here = target(config(gpus_per_worker=1), 8)
    assert (here.known, here.name, here.kind.name) == ("here", "NVIDIA A100-SXM4-40GB", "NVIDIA A100 40GB")
    assert target(config(address="1.2.3.4:5"), 8).known == "assumed"
    named = target(config(address="1.2.3.4:5", resources_per_worker={"accelerator_type:V100": 0.001}), 8)
    assert (named.known, named.name) == ("named", "NVIDIA V100")
    own = config(accelerator_type="H100", stages={8: {"accelerator_type": "A100"}})
    assert [target(own, resolution).name for resolution in (4, 8)] == ["NVIDIA H100", "NVIDIA A100 40GB"]


def test_a_machine_without_a_driver_has_no_problem_unless_it_must_have_a_gpu(monkeypatch):
    """This torch may be a build for CPUs or not; with a driver and no GPU that it can use, there is a problem."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpus, "driver_version", lambda: None)
    assert cuda_problem(expected=False) is None
    monkeypatch.setattr(torch.version, "cuda", None)
    assert f"torch {torch.__version__} is a build for CPUs and cannot use a GPU; " in cuda_problem(expected=True)
    monkeypatch.setattr(gpus, "driver_version", lambda: "470.86")
    assert "cannot use the GPU of this machine (driver 470.86); install torch" in cuda_problem(expected=False)


def test_a_driver_that_is_too_old_is_named_with_both_versions(monkeypatch):
    """The text is that of torch, which says so when CUDA is initialised."""

    def init():
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
            "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "driver_version", lambda: "470.86")
    line = cuda_problem(expected=False)
    assert line.startswith("the NVIDIA driver 470.86 (for CUDA 11.4 at most) is too old for torch ")
    assert "built for CUDA 13.0; update the driver, or install torch" in line
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert "look at CUDA_VISIBLE_DEVICES" in cuda_problem(expected=False)


def test_a_missing_triton_is_installed_in_the_version_that_torch_wants(monkeypatch):
    def version(package):
        raise gpus.PackageNotFoundError(package)

    monkeypatch.setattr(gpus, "version", version)
    monkeypatch.setattr(gpus, "requires", lambda _: ["sympy>=1.13", 'triton==3.6.0; platform_system == "Linux"'])
    assert gpus.triton_cure() == "pip install triton==3.6.0"
    monkeypatch.setattr(gpus, "requires", lambda _: None)
    assert gpus.triton_cure() == "pip install triton"
    monkeypatch.setattr(gpus, "version", lambda package: "3.6.0")
    assert gpus.triton_cure() is None
