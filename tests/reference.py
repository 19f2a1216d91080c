"""torch-fidelity, the reference that the feature networks and metrics are compared with where it is installed."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

_declared: list[torch.library.Library] = []  # operators live as long as the library that declares them


def torch_fidelity(module: str) -> ModuleType:
    """A module of torch-fidelity; the test is skipped where the package or torchvision, which it imports, is not installed."""
    for package in ("torch_fidelity", "torchvision"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: nothing to compare with")
    _declare_torchvision_operators()
    return importlib.import_module(f"torch_fidelity.{module}")


def _declare_torchvision_operators() -> None:
    """torchvision's compiled part needs CUDA libraries; without them its import fails unless its operators are declared first."""
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
