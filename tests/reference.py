"""torch-fidelity, the reference for feature networks and metrics where it is installed."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

_declared: list[torch.library.Library] = []  # keeps libraries alive, because their operators exist only as long


def torch_fidelity(module: str) -> ModuleType:
    """Import a module of torch-fidelity, or skip the test if torch-fidelity or torchvision is not installed.

    torch-fidelity imports torchvision.
    """
    for package in ("torch_fidelity", "torchvision"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: nothing to compare with")
    _declare_torchvision_operators()
    return importlib.import_module(f"torch_fidelity.{module}")


def _declare_torchvision_operators() -> None:
    """Declare torchvision's operators if its compiled part, which needs CUDA libraries, cannot be loaded.

    Without the declarations the import of torchvision would fail.
    """
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    for compiled in Path(str(spec.origin)).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(compiled)
        except OSError:
            continue
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
            _declared[-1].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
