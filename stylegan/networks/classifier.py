"""A small convolutional classifier, whose features measure images when no public network is available.

It replaces Inception-v3 (FID), VGG-16 (path length) and the attribute classifiers (separability) of Karras et al. 2019,
whose weights cannot be downloaded everywhere. It is small on purpose: a Frechet distance needs many more images than
features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Larger images are averaged down to this side, as the paper does before its distance and its classifiers.
LARGEST_INPUT = 256
NUM_FEATURES = 64  # length of the pooled feature vector


def _width(side: int) -> int:
    """Return the number of channels of a feature map with this side."""
    return min(max(1024 // side, 16), NUM_FEATURES)


class _Rung(nn.Module):
    """3x3 convolution, batch normalisation and leaky ReLU.

    A leaky ReLU is never exactly zero, which keeps distances between features smooth.
    """

    def __init__(self, fan_in: int, fan_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(fan_out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), 0.2)


class Classifier(nn.Module):
    """A network from images [N, C, r, r] in [-1, 1] to feature maps, a pooled vector and logits.

    r is any power of two from 4 to 1024. A network is built for one resolution, but accepts smaller crops of such
    images too. Their feature maps are smaller; the pooled vector keeps its length.
    """

    def __init__(self, *, resolution: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.resolution, self.channels, self.num_classes = resolution, channels, num_classes
        side = min(resolution, LARGEST_INPUT)
        rungs = [_Rung(channels, _width(side), stride=1)]
        while side > 4:
            rungs.append(_Rung(_width(side), _width(side // 2), stride=2))
            side //= 2
        rungs.append(_Rung(_width(side), NUM_FEATURES, stride=1))
        self.rungs = nn.ModuleList(rungs)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    @property
    def num_features(self) -> int:
        """The length of the pooled vector."""
        return NUM_FEATURES

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the activations [N, width, h, w] after every rung, finest first."""
        side = images.shape[-1]
        x = functional.avg_pool2d(images, side // LARGEST_INPUT) if side > LARGEST_INPUT else images
        activations = []
        for rung in self.rungs:
            x = rung(x)
            activations.append(x)
        return activations

    def pooled(self, images: Tensor) -> Tensor:
        """Return the feature vectors [N, 64]: the last map averaged over its pixels."""
        return torch.mean(self.maps(images)[-1], dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, num_classes]."""
        logits: Tensor = self.head(self.pooled(images))
        return logits
