"""Comparison of tensors with the tensors of the yardstick, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor | None]


def deviations(ours: Tensors, plain: Tensors, *, allowed: float, least: float = 1e-6) -> list[str]:
    """Return a line for every tensor that deviates by more than is allowed.

    The deviation is relative to the norm of the plain tensor, or to `least` if that is larger. None counts as zeros.
    """
    lines = [f"{name}: only in one of the two" for name in sorted(ours.keys() ^ plain.keys())]
    for name in sorted(ours.keys() & plain.keys()):
        mine, other = (
            torch.zeros(()) if tensor is None else tensor.detach().double().cpu()
            for tensor in (ours[name], plain[name])
        )
        norm = other.norm().item()
        error = (mine - other).norm().item() / max(norm, least)
        if not error <= allowed:  # also true for NaN
            lines.append(f"{name}: off by {error:.2g} of its norm {max(norm, least):.3g}; allowed is {allowed:g}")
    return lines


def assert_near(ours: Tensors, plain: Tensors, *, allowed: float, least: float = 1e-6) -> None:
    """Raise AssertionError with the name and the deviation of every tensor that is too far from the plain one."""
    lines = deviations(ours, plain, allowed=allowed, least=least)
    assert not lines, f"{len(lines)} of {len(plain)} tensors differ:\n" + "\n".join(lines)
