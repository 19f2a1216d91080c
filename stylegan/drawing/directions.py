"""Edit images along the directions of attributes that an evaluation has found."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan.errors import ConfigError, shown
from stylegan.evaluation.directions import DIRECTIONS, Direction, read_directions
from stylegan.networks.generator import Generator

__all__ = ["DIRECTIONS", "MAX_STRENGTH", "Direction", "apply", "directions_of", "find_direction", "read_directions"]

MAX_STRENGTH = 10.0  # deviations: far beyond any use


def apply(ws: Tensor, direction: Direction, strength: float) -> Tensor:
    """Move styles along a direction.

    Args:
        ws: [N, num_layers, L].
        direction: of these styles' generator.
        strength: in standard deviations of w along it; negative is away from the attribute.

    Returns:
        [N, num_layers, L]; for strength 0 exactly `ws`.
    """
    if strength == 0:
        return ws
    return ws + strength * direction.scale * torch.from_numpy(direction.normal).to(ws)


def directions_of(folder_uri: str, generator: Generator) -> tuple[Direction, ...]:
    """Return the directions in a folder, if they are of such a generator: none are left out silently.

    Raises:
        ConfigError: they are those of another model.
        DamagedError: as `read_directions`.
    """
    found = read_directions(folder_uri)
    size = generator.w_avg.shape[0]
    if found and len(found[0].normal) != size:
        raise ConfigError(
            f"{folder_uri}: its directions have length {len(found[0].normal)}, w of this model has {size}; they are of "
            "another model"
        )
    return found


def find_direction(directions: Sequence[Direction], name: str, option: str = "--attribute") -> Direction:
    """Return the direction of an attribute. Raises ConfigError, with the nearest name, if there is none."""
    names = {direction.name: direction for direction in directions}
    if name in names:
        return names[name]
    folded = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    meant = f"; did you mean {folded[near[0]]}?" if near else "."
    raise ConfigError(
        f"{option} {name}: no such attribute{meant} This model's attributes are {shown(', '.join(names), 300)}"
    )
