"""Style mixing: an image that takes the styles of some of its layers from another one (StyleGAN, section 3.1 and figure 3)."""

from __future__ import annotations

import re
from typing import Literal, get_args

import torch
from torch import Tensor

from stylegan.errors import ConfigError
from stylegan.networks.generator import layer_resolution

Part = Literal["coarse", "middle", "fine"]
PARTS: tuple[Part, ...] = get_args(Part)


def part_layers(part: Part, num_layers: int) -> range:
    """Return the layers of a part of a generator; all layers belong to one part.

    They are those of the paper at 1024x1024 (coarse 4x4 and 8x8, middle 16x16 and 32x32, fine above). A smaller model has
    the same share of its resolutions, at least one in each part; below 16x16 it has the same of its layers.
    """
    unit = 2 if num_layers >= 6 else 1
    share = unit * max(round(2 / 9 * num_layers / 2), 1)
    ends = {"coarse": (0, share), "middle": (share, 2 * share), "fine": (2 * share, num_layers)}
    if num_layers == 2:  # 4x4: no middle
        ends = {"coarse": (0, 1), "middle": (1, 1), "fine": (1, 2)}
    return range(*ends[part])


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Read `--styles`: coarse, middle, fine, or layers such as 0-3 or 0,2,4-5.

    Raises:
        ConfigError: it is not such a text, or the model has no such layers.
    """
    if text in PARTS:
        layers = tuple(part_layers(text, num_layers))
        if not layers:
            raise ConfigError(f"--styles {text}: a model of {num_layers} layers has none in the middle; give 0 or 1")
        return layers
    layers = ()
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", item, re.ASCII)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--styles {text}: must be {', '.join(PARTS)}, or layers such as 0-3 or 0,2,4-5")
        layers += tuple(range(int(match[1]), int(match[2] or match[1]) + 1))
    if max(layers) >= num_layers:
        raise ConfigError(f"--styles {text}: this model has the layers 0 to {num_layers - 1}; {describe(num_layers)}")
    return tuple(sorted(set(layers)))


def describe(num_layers: int) -> str:
    """Return which layers the parts are, for people."""
    return ", ".join(
        f"{part} is {_span(layers)} ({layer_resolution(layers[0])}x{layer_resolution(layers[0])} on)"
        for part in PARTS
        if (layers := part_layers(part, num_layers))
    )


def _span(layers: range) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


def mix_layers(ws: Tensor, source: Tensor, layers: tuple[int, ...] | range) -> Tensor:
    """Return styles ws [N, num_layers, L] with these layers of `source` [N or 1, num_layers, L]."""
    chosen = torch.zeros(ws.shape[1], 1, dtype=torch.bool, device=ws.device)
    chosen[list(layers)] = True
    return torch.where(chosen, source, ws)
