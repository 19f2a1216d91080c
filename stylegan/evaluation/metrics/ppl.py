"""Perceptual path length (Karras et al. 2019, section 4.1): the perceptual distance of a small step in latent space.

There are four variants. The path between two latents is in z (spherical interpolation) or in w (linear interpolation),
and the step is at a random place of the path (`full`) or at its start (`end`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stylegan.evaluation.metrics.numerics import Estimate

LARGEST_INPUT = 256  # pixels of a side; larger images are averaged down, after the crop and before the distance

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """One of the four variants, with the length of its steps.

    Attributes:
        space: z or w.
        full: steps start anywhere on the path (t uniform in [0, 1)); otherwise at its end t = 0.
        epsilon: length of a step, in t.
        cropped: compare the face region of the images only.
        normalised: z has unit length on a path in z. A mapping network normalises it anyway; to a generator without one
            its length matters, and goes from that of one end to that of the other.
    """

    space: str
    full: bool
    epsilon: float
    cropped: bool
    normalised: bool = True

    @classmethod
    def named(cls, metric: str, *, epsilon: float, cropped: bool, normalised: bool = True) -> Path:
        """Return the path of a metric: ppl_zfull, ppl_wfull, ppl_zend or ppl_wend."""
        return cls(metric[4], metric.endswith("full"), epsilon, cropped, normalised)

    def ends(self, z0: Tensor, z1: Tensor, t: Tensor, mapping: Map) -> Tensor:
        """Return w [2N, L] at the two ends of each step: first all at t, then all at t + epsilon.

        Args:
            z0, z1: both ends of each path, [N, L].
            t: where on the path each step starts, [N, 1]; ignored unless `full`.
            mapping: the mapping network, from z to w.
        """
        t = t if self.full else torch.zeros_like(t)
        if self.space == "z":
            return mapping(torch.cat([self._between(z0, z1, t), self._between(z0, z1, t + self.epsilon)]))
        w0, w1 = mapping(torch.cat([z0, z1])).chunk(2)
        return torch.cat([torch.lerp(w0, w1, t), torch.lerp(w0, w1, t + self.epsilon)])

    def _between(self, z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
        z = slerp(z0, z1, t)
        return z if self.normalised else z * torch.lerp(_length(z0), _length(z1), t)

    def lengths(self, images: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the path lengths [N]: distances between the images of both ends, divided by epsilon^2.

        Args:
            images: [2N, C, r, r], of the w that `ends` returns and with the same noise at both ends of a step.
            distance: a perceptual distance [N] of two batches of images; it gets them cropped and averaged down.
        """
        first, second = average_down(crop(images) if self.cropped else images).chunk(2)
        return distance(first, second) / self.epsilon**2


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Interpolate spherically between vectors [N, L] at t [N, 1]. The result has unit length for any a and b."""
    a, b = _unit(a), _unit(b)
    cosine = (a * b).sum(dim=1, keepdim=True).clamp(-1, 1)
    angle = t * torch.acos(cosine)
    return _unit(a * torch.cos(angle) + _unit(b - cosine * a) * torch.sin(angle))


def _unit(x: Tensor) -> Tensor:
    return x / _length(x)


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def crop(images: Tensor) -> Tensor:
    """Return v1's face region: rows 3/8 to 7/8, columns 2/8 to 6/8 of [N, C, r, r]. Images below 8x8 stay whole."""
    eighth = images.shape[-1] // 8
    return images[:, :, 3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth] if eighth else images


def cropped_side(resolution: int) -> int:
    """Return the side of the images that `crop` returns, in pixels."""
    return resolution // 8 * 4 or resolution


def average_down(images: Tensor) -> Tensor:
    """Reduce images above 256x256 to 256x256 by averaging squares of pixels. Smaller images stay unchanged."""
    factor = images.shape[-1] // LARGEST_INPUT
    return functional.avg_pool2d(images, factor) if factor > 1 else images


def path_length(lengths: np.ndarray) -> Estimate:
    """Return the perceptual path length of [N] single lengths, with its 95 % interval.

    It is the mean of the lengths from the 1st percentile (rounded down) to the 99th (rounded up). What is outside counts
    as an outlier.
    """
    low, high = np.percentile(lengths, 1, method="lower"), np.percentile(lengths, 99, method="higher")
    return Estimate.of_trimmed_mean(lengths.astype(np.float64), float(low), float(high))
