"""The discriminator of StyleGAN (Karras et al. 2019; the architecture is that of ProGAN, Karras et al. 2018, plus blur).

It works at its native resolution: it holds the blocks up to `resolution` only, and `grow` adds the next one in place. When
asked it has a second head, on the same features as the score, that tells by how much an image was turned (SS-GAN, Chen et al.
2019).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.layers import Conv, Dense, DownConv, minibatch_stddev, num_fmaps
from stylegan.networks.ops import blur, lrelu

TURNS = 4  # by 0, 90, 180 and 270 degrees


class Block(nn.Module):
    """Convolution at one resolution, blur, convolution to half of it: [N, C, 2H, 2W] -> [N, C', H, W]."""

    def __init__(self, model: ModelConfig, stage: int) -> None:
        super().__init__()
        self.conv0 = Conv(num_fmaps(model, stage), num_fmaps(model, stage), activate=True)
        self.conv1_down = DownConv(num_fmaps(model, stage), num_fmaps(model, stage - 1), activate=True)
        self.blurs = model.blur

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        return self.conv1_down(blur(x) if self.blurs else x)


class Head(nn.Module):
    """The 4x4 block: minibatch standard deviation, convolution, two dense layers; [N, C, 4, 4] -> logits [N, outputs]."""

    def __init__(self, model: ModelConfig, outputs: int) -> None:
        super().__init__()
        fmaps = num_fmaps(model, 1)
        self.group = model.mbstd_group
        self.conv = Conv(fmaps + (1 if self.group > 1 else 0), fmaps, activate=True)
        self.dense0 = Dense(fmaps * 16, num_fmaps(model, 0))
        self.dense1 = Dense(num_fmaps(model, 0), outputs, gain=1)

    def features(self, x: Tensor, group: int) -> Tensor:
        """What the last layer sees, [N, F]; `group` images share one standard deviation if the model has that at all."""
        if self.group > 1:
            x = minibatch_stddev(x, group)
        x = self.conv(x).flatten(1)
        return lrelu(self.dense0(x.to(next(self.parameters()).dtype)))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense1(self.features(x, self.group))


def normalise_spectrally(network: nn.Module) -> None:
    """Let every layer that does not yet do so use W / sigma(W), its weight over its largest singular value (Miyato et al. 2018).

    All layers, heads included, without a learned factor and without the factor of the equalised learning rate, which would undo
    the bound; sigma comes from one step of the power method per forward pass in training, none in inference, by vectors that are
    buffers (as in the code of SS-GAN, Chen et al. 2019). The stored weights are N(0, 1) as ever: W / sigma does not depend on
    their size, but how far one step of Adam turns them does, and is thus what it is in StyleGAN.
    """
    for layer in list(network.modules()):
        if isinstance(layer, Conv | Dense) and not is_parametrized(layer):
            spectral_norm(layer)
            layer.scale = 1.0


class Discriminator(nn.Module):
    """Images to one score each, high for real. Weights come from torch's global random state, coarse blocks first."""

    compute_dtype: torch.dtype | None = None  # of the convolutions; None is that of the images

    def __init__(
        self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0, rotation: bool = False
    ) -> None:
        """Make the network.

        Args:
            model: sizes and switches.
            resolution: side of the images, a power of two from 4.
            channels: 1 (grey) or 3 (RGB).
            num_labels: classes, each with a logit of its own; 0 makes it unconditional.
            rotation: add the head that `rotation_logits` needs; all other weights are the same with and without it.
        """
        super().__init__()
        self.model, self.channels, self.num_labels = model, channels, num_labels
        self.head = Head(model, max(num_labels, 1))
        self.blocks = nn.ModuleList()  # of 8x8, 16x16, ...
        self.from_rgb = nn.ModuleList(
            [Conv(channels, num_fmaps(model, 1), kernel=1, activate=True)]
        )  # of 4x4, 8x8, ...
        while self.resolution < resolution:
            self.grow()
        self.rotation = Dense(num_fmaps(model, 0), TURNS, gain=1) if rotation else None
        self._normalise()

    @property
    def resolution(self) -> int:
        """Side of the images."""
        return 4 << len(self.blocks)

    def grow(self) -> None:
        """Add the block of twice the resolution in place, fresh, on the same device; all others stay as they are."""
        stage = int(math.log2(2 * self.resolution)) - 1
        self.blocks.append(Block(self.model, stage))
        self.from_rgb.append(Conv(self.channels, num_fmaps(self.model, stage), kernel=1, activate=True))
        self._normalise()
        self.to(next(self.parameters())).train(self.training)

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
        logits = self.head(self._convolve(images, alpha))
        return (
            logits.squeeze(1) if labels is None or not self.num_labels else logits.gather(1, labels[:, None]).squeeze(1)
        )

    def features(self, images: Tensor, *, alpha: float = 1.0) -> Tensor:
        """What the score is a linear function of: images [N, C, r, r] to the activations [N, F] of the last layer but one.

        As in `forward`, the images of a minibatch-stddev group have one number in common.
        """
        return self.head.features(self._convolve(images, alpha), self.head.group)

    def rotation_logits(self, images: Tensor, *, alpha: float = 1.0) -> Tensor:
        """By how much images are turned (SS-GAN, section 3), without a look at their labels.

        The minibatch standard deviation is taken over the four turns of one image. It is then a function of that image
        whichever way it lies, so it says nothing about the answer, and no image depends on another one. In groups of images
        turned alike it would: they all have the same answer.

        Args:
            images: [4n, C, r, r]: n images as they are, then the same n turned by 90, by 180 and by 270 degrees.
            alpha: as in `forward`.

        Returns:
            Logits [4n, 4] of 0, 90, 180 and 270 degrees.

        Raises:
            StepError: the discriminator was made without `rotation`.
        """
        if self.rotation is None:
            raise StepError(
                "this discriminator has no rotation head; set training.rotation (`{}` takes the defaults) and train it anew"
            )
        return self.rotation(self.head.features(self._convolve(images, alpha), TURNS))

    def _normalise(self) -> None:
        if self.model.spectral_norm:
            normalise_spectrally(self)

    def _convolve(self, images: Tensor, alpha: float) -> Tensor:
        """All blocks, faded: images to [N, C', 4, 4]."""
        if self.compute_dtype is not None:
            images = images.to(self.compute_dtype, memory_format=torch.channels_last)
        x = self.from_rgb[-1](images)
        for level in reversed(range(len(self.blocks))):
            x = self.blocks[level](x)
            if alpha < 1 and level == len(self.blocks) - 1:
                coarse = self.from_rgb[level](F.avg_pool2d(images, 2))
                x = torch.lerp(coarse, x, alpha)
        return x
