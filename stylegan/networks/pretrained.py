"""Common parts of the published feature networks: layers, input, and the PyTorch files that contain their weights."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from stylegan.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
Net = TypeVar("Net", bound=nn.Module)


class RectifiedConv(nn.Conv2d):
    """Convolution with bias and ReLU."""

    def reset_parameters(self) -> None:
        """Draw weights that preserve the variance (He et al. 2015), so that deep stacks still depend on their input."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu_(super().forward(x))


def as_rgb(images: Tensor) -> Tensor:
    """Return images [N, 1 or 3, h, w] as [N, 3, h, w]; a grey channel is repeated (StyleGAN2-ADA)."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def read_state(
    data: bytes, shapes: Shapes, *, network: str, cure: str, optional: Collection[str] = ()
) -> dict[str, Tensor]:
    """Read the tensors of a PyTorch state dict as float32 on the CPU.

    Nothing in the file is run, because it is read with weights_only.

    Args:
        data: the file, in the zip format or the older format of torch.save.
        shapes: names and shapes of all tensors that the file must contain.
        network: name of the expected network, for the error message.
        cure: which file to give instead, for the error message.
        optional: names that the file may contain too; they are ignored.

    Raises:
        ConfigError: the file is damaged or of another kind; a tensor is missing, unknown, of another shape or not
            finite.
    """
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files raise nearly everything
        reason = "the file is damaged or not written by torch.save" if data else "the file is empty"
        raise ConfigError(f"{network}: these {len(data)} bytes do not hold its weights ({reason}); {cure}") from error
    problem = _problem(content, shapes, optional)
    if problem:
        raise ConfigError(f"{network}: this file does not hold its weights ({problem}); {cure}")
    return {name: content[name].to(torch.float32) for name in shapes}


def frozen(network: Net, weights: Mapping[str, Tensor]) -> Net:
    """Give the network its weights and return it in eval mode, without gradients.

    Weights that the network does not have are ignored. Kernels are stored in channels_last memory format, which
    convolves fastest.
    """
    own_weights = {}
    for name in network.state_dict():
        memory_format = torch.channels_last if weights[name].ndim == 4 else torch.contiguous_format
        own_weights[name] = weights[name].contiguous(memory_format=memory_format)
    network.load_state_dict(own_weights, assign=True)
    return network.eval().requires_grad_(False)


def _problem(content: Any, shapes: Shapes, optional: Collection[str]) -> str | None:
    """Describe what is wrong with the content of a file, or return None if nothing is."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}, not a state dict"
    unknown = [name for name in content if name not in shapes and name not in optional]
    missing = [name for name in shapes if name not in content]
    if unknown:
        return f"{str(unknown[0])[:80]!r} is not part of this network; {len(unknown)} such names"
    if missing:
        return f"{missing[0]!r} is missing; {len(missing)} such names"
    return next((problem for name in shapes if (problem := _tensor_problem(name, content[name], shapes[name]))), None)


def _tensor_problem(name: str, value: Any, shape: tuple[int, ...]) -> str | None:
    """Describe what is wrong with one tensor of a file, or return None if nothing is."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or not value.is_floating_point():
        return f"{name!r} is not a tensor of real numbers"
    if tuple(value.shape) != shape:
        return f"{name!r} has the shape {list(value.shape)}, not {list(shape)}"
    return None if bool(value.isfinite().all()) else f"{name!r} has values that are not finite"
