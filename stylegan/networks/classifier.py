"""The network whose features measure images: a ladder of strided convolutions that ends in a class.

It takes the place of Inception-v3 (FID), VGG-16 (path length) and the attribute classifiers (separability) of Karras et al.
2019, whose weights cannot be had everywhere. Small on purpose: a Frechet distance needs many more images than features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_INPUT = (
    256  # larger images are averaged down to this side, as the paper does before its distance and its classifiers
)
FEATURES = 64  # dimensions of the pooled vector


def _width(side: int) -> int:
    return min(max(1024 // side, 16), FEATURES)


class _Rung(nn.Module):
    """3x3 convolution, batch normalisation, leaky ReLU (never exactly zero, so that the distance stays smooth)."""

    def __init__(self, fan_in: int, fan_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), 0.2)


class Classifier(nn.Module):
    """Images [N, C, r, r] in [-1, 1] to feature maps, a pooled vector and logits; any power of two r from 4 to 1024.

    Built for one resolution; smaller crops of such images are accepted too (all but the pooled size adapts to them).
    """

    def __init__(self, *, resolution: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.resolution, self.channels, self.num_classes = resolution, channels, num_classes
        side = min(resolution, LARGEST_INPUT)
        rungs = [_Rung(channels, _width(side), stride=1)]
        while side > 4:
            rungs.append(_Rung(_width(side), _width(side // 2), stride=2))
            side //= 2
        rungs.append(_Rung(_width(side), FEATURES, stride=1))
        self.rungs = nn.ModuleList(rungs)
        self.head = nn.Linear(FEATURES, num_classes)

    @property
    def num_features(self) -> int:
        """Dimensions of the pooled vector."""
        return FEATURES

    def maps(self, images: Tensor) -> list[Tensor]:
        """The activations after every rung, finest first, each [N, width, h, w]."""
        side = images.shape[-1]
        x = functional.avg_pool2d(images, side // LARGEST_INPUT) if side > LARGEST_INPUT else images
        found = []
        for rung in self.rungs:
            x = rung(x)
            found.append(x)
        return found

    def pooled(self, images: Tensor) -> Tensor:
        """[N, FEATURES]: the last map averaged over its pixels."""
        return torch.mean(self.maps(images)[-1], dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        logits: Tensor = self.head(self.pooled(images))
        return logits
