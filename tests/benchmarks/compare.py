"""How far tensors are from those of the yardstick, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor | None]


def deviations(ours: Tensors, plain: Tensors, *, allowed: float, least: float = 1e-6) -> list[str]:
    """A line for every tensor that is further off than allowed, relative to the norm of the plain one, or to `least` if that is more.

    None counts as zeros.
    """
    lines = [f"{name}: only in one of the two" for name in sorted(ours.keys() ^ plain.keys())]
    for name in sorted(ours.keys() & plain.keys()):
        mine, other = (
            torch.zeros(()) if tensor is None else tensor.detach().double().cpu()
            for tensor in (ours[name], plain[name])
        )
        norm = other.norm().item()
        error = (mine - other).norm().item() / max(norm, least)
        if not error <= allowed:  # NaN is far off too
            lines.append(f"{name}: off by {error:.2g} of its norm {max(norm, least):.3g}; allowed is {allowed:g}")
    return lines


def assert_near(ours: Tensors, plain: Tensors, *, allowed: float, least: float = 1e-6) -> None:
    """Fails with the name and the distance of every tensor that is too far from the plain one."""
    lines = deviations(ours, plain, allowed=allowed, least=least)
    assert not lines, f"{len(lines)} of {len(plain)} tensors differ:\n" + "\n".join(lines)
