"""The discriminator of StyleGAN (Karras et al. 2019; the architecture is that of ProGAN, Karras et al. 2018, plus blur).

It works at its native resolution: it holds the blocks up to `resolution` only, and `grow` adds the next one in place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.layers import Conv, Dense, DownConv, blur, lrelu, minibatch_stddev, num_fmaps


class Block(nn.Module):
    """Convolution at one resolution, blur, convolution to half of it: [N, C, 2H, 2W] -> [N, C', H, W]."""

    def __init__(self, model: ModelConfig, stage: int) -> None:
        super().__init__()
        self.conv0 = Conv(num_fmaps(model, stage), num_fmaps(model, stage))
        self.conv1_down = DownConv(num_fmaps(model, stage), num_fmaps(model, stage - 1))
        self.blurs = model.blur

    def forward(self, x: Tensor) -> Tensor:
        x = lrelu(self.conv0(x))
        return lrelu(self.conv1_down(blur(x) if self.blurs else x))


class Head(nn.Module):
    """The 4x4 block: minibatch standard deviation, convolution, two dense layers; [N, C, 4, 4] -> logits [N, outputs]."""

    def __init__(self, model: ModelConfig, outputs: int) -> None:
        super().__init__()
        fmaps = num_fmaps(model, 1)
        self.group = model.mbstd_group
        self.conv = Conv(fmaps + (1 if self.group > 1 else 0), fmaps)
        self.dense0 = Dense(fmaps * 16, num_fmaps(model, 0))
        self.dense1 = Dense(num_fmaps(model, 0), outputs, gain=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.group > 1:
            x = minibatch_stddev(x, self.group)
        x = lrelu(self.conv(x))
        return self.dense1(lrelu(self.dense0(x.flatten(1))))


class Discriminator(nn.Module):
    """Images to one score each, high for real. Weights come from torch's global random state, coarse blocks first."""

    def __init__(self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0) -> None:
        """Make the network.

        Args:
            model: sizes and switches.
            resolution: side of the images, a power of two from 4.
            channels: 1 (grey) or 3 (RGB).
            num_labels: classes, each with a logit of its own; 0 makes it unconditional.
        """
        super().__init__()
        self.model, self.channels, self.num_labels = model, channels, num_labels
        self.head = Head(model, max(num_labels, 1))
        self.blocks = nn.ModuleList()  # of 8x8, 16x16, ...
        self.from_rgb = nn.ModuleList([Conv(channels, num_fmaps(model, 1), kernel=1)])  # of 4x4, 8x8, ...
        while self.resolution < resolution:
            self.grow()

    @property
    def resolution(self) -> int:
        """Side of the images."""
        return 4 << len(self.blocks)

    def grow(self) -> None:
        """Add the block of twice the resolution in place, fresh, on the same device; all others stay as they are."""
        stage = int(math.log2(2 * self.resolution)) - 1
        self.blocks.append(Block(self.model, stage))
        self.from_rgb.append(Conv(self.channels, num_fmaps(self.model, stage), kernel=1))
        self.to(self.head.dense1.weight).train(self.training)

    def forward(self, images: Tensor, labels: Tensor | None = None, *, alpha: float = 1.0) -> Tensor:
        """Score images.

        Args:
            images: [N, C, r, r], nominally in [-1, 1].
            labels: class numbers, int64 [N]; needed if and only if the discriminator is class-conditional.
            alpha: weight of the newest block in [0, 1]; the rest comes from the images at half the resolution
                (ProGAN, figure 2). Without effect at 4x4.

        Returns:
            Raw scores [N]; with labels, the logit of each image's label.

        Raises:
            StepError: the discriminator is conditional and `labels` is None.
        """
        if self.num_labels and labels is None:
            raise StepError(
                f"labels=None: this discriminator is conditional; give each image a class number from 0 to {self.num_labels - 1}"
            )
        x = lrelu(self.from_rgb[-1](images))
        for level in reversed(range(len(self.blocks))):
            x = self.blocks[level](x)
            if alpha < 1 and level == len(self.blocks) - 1:
                coarse = lrelu(self.from_rgb[level](F.avg_pool2d(images, 2)))
                x = torch.lerp(coarse, x, alpha)
        logits = self.head(x)
        return logits.squeeze(1) if labels is None or not self.num_labels else logits.gather(1, labels[:, None]).squeeze(1)
