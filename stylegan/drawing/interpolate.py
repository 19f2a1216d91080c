"""Closed walks through latent space: along great circles of z, or along a smooth curve of styles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def slerp(z0: Tensor, z1: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate along a great circle, and between the lengths of both ends.

    Args:
        z0: [..., L].
        z1: [..., L].
        t: position from 0 to 1, a number or [..., 1].

    Returns:
        [..., L]. Exactly z0 at 0 and z1 at 1.
    """
    length0, length1 = z0.norm(dim=-1, keepdim=True), z1.norm(dim=-1, keepdim=True)
    t = torch.as_tensor(t, dtype=z0.dtype, device=z0.device)
    cosine = ((z0 / length0) * (z1 / length1)).sum(-1, keepdim=True).clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    straight = sine < 1e-6  # equal or opposite directions: a line does as well
    safe = torch.where(straight, torch.ones_like(sine), sine)
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / safe)
    second = torch.where(straight, t, torch.sin(t * angle) / safe)
    length = torch.lerp(length0, length1, t)
    found = (first * z0 / length0 + second * z1 / length1) * length
    return torch.where(t == 0, z0, torch.where(t == 1, z1, found))


def walk_z(keys: Tensor, position: float) -> Tensor:
    """Return the z [..., L] at a position of a closed walk through z's [K, ..., L], which is at key k at position k."""
    count = len(keys)
    whole = int(np.floor(position))
    return slerp(keys[whole % count], keys[(whole + 1) % count], position - whole)


class StyleWalk:
    """A closed cubic spline through styles [K, ..., L]: it is at key k at position k, and smooth everywhere."""

    def __init__(self, keys: Tensor) -> None:
        from scipy.interpolate import CubicSpline

        values = keys.detach().cpu().double().numpy()
        self.count, self.like = len(keys), keys
        closed = np.concatenate([values, values[:1]])
        self.spline = CubicSpline(np.arange(len(closed)), closed, axis=0, bc_type="periodic")

    def __call__(self, position: float) -> Tensor:
        """Return the styles [..., L] at a position."""
        return torch.from_numpy(self.spline(position % self.count)).to(self.like)
