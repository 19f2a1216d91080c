"""Perceptual path length (Karras et al. 2019, section 4.1): how far images move, in a perceptual distance, for a small step.

Four variants: from z (spherical) or w (linear interpolation), and at a random place of the path (`full`) or at its start (`end`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LARGEST_INPUT = 256  # larger images are averaged down before the distance, after the crop

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """Which steps are taken and how they are seen.

    `space` is z or w; `full` takes them anywhere (t uniform in [0, 1)), else at the end t = 0; `epsilon` is their length;
    `cropped` looks at the face region only.
    """

    space: str
    full: bool
    epsilon: float
    cropped: bool

    @classmethod
    def named(cls, metric: str, *, epsilon: float, cropped: bool) -> Path:
        """Of ppl_zfull, ppl_wfull, ppl_zend or ppl_wend."""
        return cls(space=metric[4], full=metric.endswith("full"), epsilon=epsilon, cropped=cropped)

    def ends(self, z0: Tensor, z1: Tensor, t: Tensor, mapping: Map) -> Tensor:
        """w [2N, L]: all at t, then all at t + epsilon; for pairs of latents [N, L] and places [N, 1] (not used at the end)."""
        t = t if self.full else torch.zeros_like(t)
        if self.space == "z":
            return mapping(torch.cat([slerp(z0, z1, t), slerp(z0, z1, t + self.epsilon)]))
        w0, w1 = mapping(torch.cat([z0, z1])).chunk(2)
        return torch.cat([torch.lerp(w0, w1, t), torch.lerp(w0, w1, t + self.epsilon)])

    def lengths(self, images: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Distances over epsilon^2, [N], of the images [2N, C, r, r] of `ends`, which share their noise: cropped, averaged down."""
        first, second = average_down(crop(images) if self.cropped else images).chunk(2)
        return distance(first, second) / self.epsilon**2


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation of [N, L] at [N, 1]; unit vectors come out, whatever the lengths that go in."""
    a, b = _unit(a), _unit(b)
    cosine = (a * b).sum(dim=1, keepdim=True).clamp(-1, 1)
    angle = t * torch.acos(cosine)
    return _unit(a * torch.cos(angle) + _unit(b - cosine * a) * torch.sin(angle))


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def crop(images: Tensor) -> Tensor:
    """The face region of v1, rows 3/8 to 7/8 and columns 2/8 to 6/8 of [N, C, r, r]; images below 8x8 stay whole."""
    eighth = images.shape[-1] // 8
    return images[:, :, 3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth] if eighth else images


def cropped_side(resolution: int) -> int:
    """Side of what `crop` leaves."""
    return resolution // 8 * 4 or resolution


def average_down(images: Tensor) -> Tensor:
    """Images above 256x256 as means of whole squares of pixels, 256x256; others as they are, never enlarged."""
    factor = images.shape[-1] // LARGEST_INPUT
    return functional.avg_pool2d(images, factor) if factor > 1 else images


def trim(lengths: np.ndarray) -> np.ndarray:
    """The values from the 1st (rounded down) to the 99th (rounded up) percentile; their mean is the path length."""
    low, high = np.percentile(lengths, 1, method="lower"), np.percentile(lengths, 99, method="higher")
    return lengths[(lengths >= low) & (lengths <= high)]
