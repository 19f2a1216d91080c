"""The discriminator of StyleGAN (Karras et al. 2019), which is the one of ProGAN (Karras et al. 2018) plus blur.

It works at its native resolution: it contains the blocks up to `resolution` only, and `grow` adds the next one in
place. An optional second head reads the same features as the score and predicts by how much an image was rotated
(SS-GAN, Chen et al. 2019).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.layers import (
    NO_ROTATION,
    TURNS,
    Conv,
    Dense,
    DownConv,
    minibatch_stddev,
    missing_labels,
    normalise_spectrally,
    num_fmaps,
)
from stylegan.networks.ops import fade, fades, lrelu
from stylegan.networks.resnet import ResNetDiscriminator


class Block(nn.Module):
    """Convolution at one resolution, blur, and convolution to half of it: [N, C, 2H, 2W] -> [N, C', H, W]."""

    def __init__(self, model: ModelConfig, stage: int) -> None:
        super().__init__()
        self.conv0 = Conv(num_fmaps(model, stage), num_fmaps(model, stage), activate=True, blurs=model.blur)
        self.conv1_down = DownConv(num_fmaps(model, stage), num_fmaps(model, stage - 1), activate=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1_down(self.conv0(x))


class Head(nn.Module):
    """The 4x4 block: mini-batch standard deviation, a convolution and two dense layers.

    It maps features [N, C, 4, 4] to logits [N, outputs].
    """

    def __init__(self, model: ModelConfig, outputs: int) -> None:
        super().__init__()
        fmaps = num_fmaps(model, 1)
        self.group = model.mbstd_group
        self.conv = Conv(fmaps + (1 if self.group > 1 else 0), fmaps, activate=True, pads_channels=self.group > 1)
        self.dense0 = Dense(fmaps * 16, num_fmaps(model, 0))
        self.dense1 = Dense(num_fmaps(model, 0), outputs, gain=1)

    def features(self, x: Tensor, group: int) -> Tensor:
        """Return the input [N, F] of the last layer.

        `group` images share one standard deviation, unless the model works without mini-batch standard deviation.
        """
        if self.group > 1:
            x = minibatch_stddev(x, group)
        x = self.conv(x).flatten(1)
        return lrelu(self.dense0(x.to(next(self.parameters()).dtype)))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense1(self.features(x, self.group))


class Discriminator(nn.Module):
    """A network from images to one score each, high for real.

    Its weights are drawn from torch's global random state, coarse blocks first.
    """

    compute_dtype: torch.dtype | None = None  # type of the convolutions; None takes the type of the images

    def __init__(
        self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0, rotation: bool = False
    ) -> None:
        """Make the network.

        Args:
            model: sizes and switches.
            resolution: side of the images, a power of two from 4.
            channels: 1 (grey) or 3 (RGB).
            num_labels: number of classes, each with its own logit; 0 makes the network unconditional.
            rotation: add the head that `rotation_logits` needs. All other weights are the same with and without it.
        """
        super().__init__()
        self.model, self.channels, self.num_labels = model, channels, num_labels
        self.head = Head(model, max(num_labels, 1))
        self.blocks = nn.ModuleList()  # for 8x8, 16x16, ...
        # For 4x4, 8x8, ...
        self.from_rgb = nn.ModuleList([Conv(channels, num_fmaps(model, 1), kernel=1, activate=True)])
        while self.resolution < resolution:
            self.grow()
        self.rotation = Dense(num_fmaps(model, 0), TURNS, gain=1) if rotation else None
        self._normalise()

    @property
    def resolution(self) -> int:
        """The side of the images."""
        return 4 << len(self.blocks)

    def grow(self) -> None:
        """Double the resolution in place: add a block with fresh weights on the same device, and keep all others."""
        stage = int(math.log2(2 * self.resolution)) - 1
        self.blocks.append(Block(self.model, stage))
        self.from_rgb.append(Conv(self.channels, num_fmaps(self.model, stage), kernel=1, activate=True))
        self._normalise()
        self.to(next(self.parameters())).train(self.training)

    def forward(self, images: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0) -> Tensor:
        """Score images.

        Args:
            images: [N, C, r, r], nominally in [-1, 1].
            labels: class numbers, int64 [N]; needed if and only if the discriminator is class-conditional.
            alpha: fade-in weight of the newest block in [0, 1]; the remainder comes from the images at half the
                resolution (ProGAN, figure 2). Has no effect at 4x4.

        Returns:
            Raw scores [N]. With labels, the score is the logit of the image's label.

        Raises:
            StepError: the discriminator is conditional and `labels` is None.
        """
        if self.num_labels and labels is None:
            raise missing_labels("discriminator", self.num_labels)
        logits = self.head(self._convolve(images, alpha))
        if labels is not None and self.num_labels:
            logits = logits.gather(1, labels[:, None])
        return logits.squeeze(1)

    def features(self, images: Tensor, *, alpha: float | Tensor = 1.0) -> Tensor:
        """Compute the activations [N, F] of the last layer but one for images [N, C, r, r].

        The score is a linear function of them. As in `forward`, the images of a mini-batch standard deviation group
        share one number.
        """
        return self.head.features(self._convolve(images, alpha), self.head.group)

    def rotation_logits(self, images: Tensor, *, alpha: float | Tensor = 1.0) -> Tensor:
        """Predict by how much images are rotated (SS-GAN, section 3); labels are not used.

        The mini-batch standard deviation is taken over the four rotations of one image. It is then the same for all
        four, so it does not give the answer away, and no image depends on another one. Groups of images with equal
        rotation would give it away, because all of them have the same answer.

        Args:
            images: [4n, C, r, r]: n upright images, then the same n rotated by 90, by 180 and by 270 degrees.
            alpha: fade-in weight as in `forward`.

        Returns:
            Logits [4n, 4] of 0, 90, 180 and 270 degrees.

        Raises:
            StepError: the discriminator was made without `rotation`.
        """
        if self.rotation is None:
            raise StepError(NO_ROTATION)
        return self.rotation(self.head.features(self._convolve(images, alpha), TURNS))

    def layer_maps(self, images: Tensor, *, alpha: float | Tensor = 1.0) -> list[Tensor]:
        """Compute the activations after each block for images [N, C, r, r], the finest block first: [N, C', H, W] each.

        At 4x4 there is no block, and no map.
        """
        maps: list[Tensor] = []
        self._convolve(images, alpha, maps)
        return maps

    def maps_and_features(self, images: Tensor, *, alpha: float | Tensor = 1.0) -> tuple[list[Tensor], Tensor]:
        """Compute both `layer_maps` and `features` in one pass."""
        maps: list[Tensor] = []
        return maps, self.head.features(self._convolve(images, alpha, maps), self.head.group)

    def _normalise(self) -> None:
        if self.model.spectral_norm:
            normalise_spectrally(self)

    def _convolve(self, images: Tensor, alpha: float | Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """Apply all blocks, with fade-in: images to features [N, C', 4, 4]. `maps` receives the result of each block."""
        if self.compute_dtype is not None:
            images = images.to(self.compute_dtype, memory_format=torch.channels_last)
        x = self.from_rgb[-1](images)
        for level in reversed(range(len(self.blocks))):
            x = self.blocks[level](x)
            if fades(alpha) and level == len(self.blocks) - 1:
                coarse = self.from_rgb[level](F.avg_pool2d(images, 2))
                x = fade(coarse, x, alpha)
            if maps is not None:
                maps.append(x)
        return x


AnyDiscriminator = Discriminator | ResNetDiscriminator


def make_discriminator(
    model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0, rotation: bool = False
) -> AnyDiscriminator:
    """Make the discriminator of `model.architecture`; arguments and errors as for its class."""
    kind = ResNetDiscriminator if model.is_resnet else Discriminator
    return kind(model, resolution=resolution, channels=channels, num_labels=num_labels, rotation=rotation)
