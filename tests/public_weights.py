"""Random weights in the layout of the published files of Inception-v3, VGG16 and LPIPS, and random images."""

import io

import torch
from torch import Tensor
from torch.nn import functional

from stylegan.networks.inception import inception_file_shapes
from stylegan.networks.vgg import lpips_file_shapes, vgg16_file_shapes


def inception_state() -> dict[str, Tensor]:
    """Return random weights and statistics of Inception-v3.

    Many variances are as small as the normalisation's epsilon, so that every mistake with them shows.
    """
    random = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in inception_file_shapes().items():
        noise = torch.randn(shape, generator=random)
        if name.endswith("conv.weight"):
            # The variance of each channel. The normalisation divides by it, so that activations stay in range.
            variance = 0.002 + 0.5 * torch.rand(len(noise), generator=random) ** 3
            state[name] = noise * (2 * variance / noise[0].numel()).sqrt()[:, None, None, None]
        elif name.endswith("running_var"):
            state[name] = variance
        else:
            state[name] = 1 + 0.2 * noise if name.endswith("bn.weight") else 0.02 * noise
    return state


def vgg16_state() -> dict[str, Tensor]:
    """Return random weights of VGG16; the rows of large layers overlap in memory, so that files stay small."""
    random = torch.Generator().manual_seed(2)
    return {
        name: _windows(shape, random) if len(shape) > 1 else 0.1 * torch.randn(shape, generator=random)
        for name, shape in vgg16_file_shapes().items()
    }


def _windows(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Return a tensor whose rows are overlapping windows of one line of random numbers."""
    fan_in = torch.Size(shape[1:]).numel()
    step = min(fan_in, 101)
    line = torch.randn(fan_in + step * (shape[0] - 1), generator=random) * (2 / fan_in) ** 0.5
    return line.as_strided(shape, (step, *torch.empty(shape, device="meta").stride()[1:]))


def lpips_state() -> dict[str, Tensor]:
    """Return random heads of LPIPS, positive as the trained ones are."""
    random = torch.Generator().manual_seed(3)
    return {name: torch.rand(shape, generator=random) for name, shape in lpips_file_shapes().items()}


def file_bytes(state: object) -> bytes:
    """Return a state dict, or any other object, as the bytes of a PyTorch file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def pictures(num: int, side: int, channels: int = 3) -> Tensor:
    """Return uint8 images [num, channels, side, side]: different patches of colour, and some noise."""
    random = torch.Generator().manual_seed(side)
    patches = 255 * torch.rand(num, channels, 4, 4, generator=random)
    noise = 40 * torch.randn(num, channels, side, side, generator=random)
    return (functional.interpolate(patches, size=side, mode="bilinear") + noise).clamp(0, 255).to(torch.uint8)
