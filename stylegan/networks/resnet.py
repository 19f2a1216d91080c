"""The ResNet GAN of Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks" (appendix B.4).

G and D for 32x32, 64x64 and 128x128. With labels they are the pair of Miyato & Koyama 2018: conditional batch
normalisation in G, and a projection of the class in D. Blocks, channels and poolings are those of the authors' code:

- G: a dense layer to 4x4, blocks that double the side (normalisation, ReLU, enlarge by nearest neighbour, 3x3;
  normalisation, ReLU, 3x3; beside it enlarge, 1x1), normalisation, ReLU, 3x3 to the colours, tanh.
- D: blocks (ReLU, 3x3, ReLU, 3x3, 2x2 mean; beside it 1x1, 2x2 mean), of which the first has no ReLU in front of it, the
  last ones keep the side; ReLU, sum over the pixels, a dense layer to the score.

The code of SS-GAN (Chen et al. 2019) builds the same blocks with 3x3 convolutions beside them, zeros between the pixels
of what is enlarged, a mean over the pixels and, at 128x128, half the channels. As there, the score has a bias at every
resolution; that of Miyato et al. has none at 32x32.

Convolutions and resampling are combined as in StyleGAN's layers: 4x4 kernels take fewer products and give the same
numbers but for rounding. A 1x1 convolution and a resampling are exchanged for the same reason.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.convolution import Geometry
from stylegan.networks.layers import (
    DOWN,
    NO_ROTATION,
    SQRT2,
    TURNS,
    UP,
    Conv,
    Dense,
    down_kernel,
    missing_labels,
    normalise_spectrally,
    up_kernel,
)
from stylegan.networks.normalisation import Normalisation
from stylegan.networks.ops import needs_graph


class Shape(NamedTuple):
    """The published channels for one resolution.

    Attributes:
        generator: of the features at 4x4 and after each block, all of which double the side.
        discriminator: after each block.
        halvings: the number of D's blocks, from the first on, that halve the side.
    """

    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    halvings: int


SHAPES = {
    32: Shape((256, 256, 256, 256), (128, 128, 128, 128), 2),
    64: Shape((1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024), 5),
    128: Shape((1024, 1024, 512, 256, 128, 64), (64, 128, 256, 512, 1024, 1024), 5),
}


def shape_for(resolution: int) -> Shape:
    """Return the published channels for a resolution. Raises StepError if there are none."""
    if resolution not in SHAPES:
        raise StepError(f"resolution {resolution}: the architecture resnet has {sorted(SHAPES)} only")
    return SHAPES[resolution]


def widths(model: ModelConfig, channels: tuple[int, ...]) -> list[int]:
    """Return published channels times `model.width`, rounded, at least 1."""
    return [max(round(number * model.width), 1) for number in channels]


class ResNetConv(Conv):
    """Zero-padded convolution with bias, whose weights are used as they are stored; they begin as Glorot's.

    It can double the side before it (by nearest neighbour), or halve it after it (by the mean of each 2x2).
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kernel: int = 3,
        gain: float = SQRT2,
        relu: bool = False,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        """Make the layer; with `relu` a ReLU follows, and `gain` is that of the first weights."""
        super().__init__(num_in, num_out, kernel=kernel, activate=relu)
        nn.init.xavier_uniform_(self.weight, gain)
        self.scale, self.resample = 1.0, resample
        if resample == "up":  # memory order [I, 3, 3, O], in which the transposed convolution reads the weight
            self.weight.data = self.weight.data.transpose(0, 1).contiguous(memory_format=torch.channels_last)
            self.weight.data = self.weight.data.transpose(0, 1)

    @property
    def geometry(self) -> Geometry:
        """How the layer convolves with `kernel()`."""
        plain = {"up": UP, "down": DOWN, None: Geometry(padding=self.size // 2)}[self.resample]
        return plain._replace(slope=0.0, joint=True)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Return what the layer convolves with, in a type; with spectral normalisation every call computes another."""
        if self.resample == "up":
            return up_kernel(self.weight, fused=False, dtype=dtype)
        return down_kernel(self.weight, dtype=dtype) if self.resample == "down" else self.weight.to(dtype)


class ResNetDense(Dense):
    """Fully connected layer whose weights are used as they are stored; they begin as Glorot's, or as N(0, std^2)."""

    def __init__(self, num_in: int, num_out: int, *, bias: bool = True, std: float | None = None) -> None:
        super().__init__(num_in, num_out, gain=1, bias=bias)
        self.scale = 1.0
        nn.init.xavier_uniform_(self.weight) if std is None else nn.init.normal_(self.weight, std=std)


def add_enlarged(y: Tensor, coarse: Tensor) -> Tensor:
    """Return y [N, C, 2H, 2W] plus `coarse` [N, C, H, W] enlarged by nearest neighbour; y's memory is used for it."""
    return _AddEnlarged.apply(y, coarse) if needs_graph(y, coarse) else _add_enlarged(y, coarse)


def _add_enlarged(y: Tensor, coarse: Tensor) -> Tensor:
    h, w = coarse.shape[2:]
    y.unflatten(2, (h, 2)).unflatten(4, (w, 2)).add_(coarse[:, :, :, None, :, None])
    return y


class _AddEnlarged(torch.autograd.Function):
    """`add_enlarged` with a hand-written backward pass: torch's own sums over pairs of pixels are slow."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, coarse: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return _add_enlarged(y, coarse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], F.avg_pool2d(grads[0], 2, divisor_override=1)


def one_hot(labels: Tensor, num_labels: int, dtype: torch.dtype) -> Tensor:
    """Return 1 for the own class and 0 for the others, [N] -> [N, num_labels]; torch's function waits for a GPU."""
    return (labels[:, None] == torch.arange(num_labels, device=labels.device)).to(dtype)


class LatentMapping(nn.Module):
    """The place of a mapping network: w is z, and after it the class as numbers, 1 for the image's own, 0 for others."""

    def __init__(self, model: ModelConfig, num_labels: int) -> None:
        super().__init__()
        self.num_labels, self.w_size = num_labels, model.latent_size + num_labels

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return w.

        Args:
            z: [N, L], drawn from N(0, 1).
            labels: class numbers, int64 [N]; needed if and only if the generator is class-conditional.

        Returns:
            w [N, L + num_labels].

        Raises:
            StepError: the generator is conditional and `labels` is None.
        """
        if not self.num_labels:
            return z
        if labels is None:
            raise missing_labels("generator", self.num_labels)
        return torch.cat([z, one_hot(labels, self.num_labels, z.dtype)], dim=1)


class GeneratorBlock(nn.Module):
    """Normalisation, ReLU and convolution twice, doubling the side, beside a 1x1 convolution."""

    def __init__(self, model: ModelConfig, num_in: int, num_out: int, *, w_size: int, num_labels: int) -> None:
        super().__init__()
        of = {"latent_size": w_size, "num_labels": num_labels}
        self.norm0 = Normalisation(model.norm_used, num_in, **of)
        self.conv0 = ResNetConv(num_in, num_out, resample="up")
        self.norm1 = Normalisation(model.norm_used, num_out, **of)
        self.conv1 = ResNetConv(num_out, num_out)
        self.shortcut = ResNetConv(num_in, num_out, kernel=1, gain=1)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y = self.conv1(self.norm1(self.conv0(self.norm0(x, w)), w))
        return add_enlarged(y, self.shortcut(x))


class ResNetSynthesis(nn.Module):
    """From w to images, in the place of StyleGAN's synthesis network. It has one layer with a w, and no noise."""

    # Type of the features after the dense layer; None takes the type of the weights.
    compute_dtype: torch.dtype | None = None

    def __init__(self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int) -> None:
        """Make the network.

        Raises:
            StepError: it is not published for this resolution.
        """
        super().__init__()
        self.resolution, self.num_layers, self.latent_size = resolution, 1, model.latent_size
        of = {"w_size": model.latent_size + num_labels, "num_labels": num_labels}
        fmaps = widths(model, shape_for(resolution).generator)
        self.dense = ResNetDense(model.latent_size, fmaps[0] * 16)
        self.blocks = nn.ModuleList(GeneratorBlock(model, num_in, num_out, **of) for num_in, num_out in pairwise(fmaps))
        # Miyato & Koyama have no class in the last normalisation; self-modulation is everywhere (Chen et al. 2018).
        last = {"conditional_batch": "batch", "conditional_instance": "instance"}.get(model.norm_used, model.norm_used)
        self.norm = Normalisation(last, fmaps[-1], latent_size=of["w_size"], num_labels=num_labels)  # type: ignore[arg-type]
        self.to_rgb = ResNetConv(fmaps[-1], channels, gain=1)

    def forward(self, ws: Tensor, *, alpha: float | Tensor = 1.0, noise: object = None) -> Tensor:
        """Compute images.

        Args:
            ws: [N, 1, L + num_labels].
            alpha: has no effect, because nothing fades in.
            noise: has no effect.

        Returns:
            [N, C, r, r] in [-1, 1].
        """
        w = ws[:, 0]
        x = self.dense(w[:, : self.latent_size]).unflatten(1, (-1, 4, 4))
        x = x.to(self.compute_dtype or x.dtype, memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, w)
        return torch.tanh(self.to_rgb(self.norm(x, w)).to(ws.dtype))


class DiscriminatorBlock(nn.Module):
    """ReLU and convolution twice, which may halve the side at the end, beside a 1x1 convolution.

    The first block sees the images, in which nothing is below zero for a ReLU to take away: it has none in front. Blocks
    that keep side and channels have nothing beside them but their input.
    """

    def __init__(self, num_in: int, num_out: int, *, first: bool, halves: bool) -> None:
        super().__init__()
        hidden = num_out if first else num_in
        self.first, self.halves = first, halves
        self.conv0 = ResNetConv(num_in, hidden, relu=True)
        self.conv1 = ResNetConv(hidden, num_out, resample="down" if halves else None)
        changes = halves or num_in != num_out
        self.shortcut = ResNetConv(num_in, num_out, kernel=1, gain=1) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.conv0(x if self.first else F.relu(x)))
        if self.halves:
            x = F.avg_pool2d(x, 2)
        return y.add_(x if self.shortcut is None else self.shortcut(x))


class ResNetDiscriminator(nn.Module):
    """A network from images to one score each, high for real. Its methods are those of StyleGAN's `Discriminator`."""

    compute_dtype: torch.dtype | None = None  # type of the convolutions; None takes the type of the images

    def __init__(
        self, model: ModelConfig, *, resolution: int, channels: int, num_labels: int = 0, rotation: bool = False
    ) -> None:
        """Make the network.

        Args:
            model: sizes and switches.
            resolution: side of the images, 32, 64 or 128.
            channels: 1 (grey) or 3 (RGB).
            num_labels: number of classes, each projected on the features; 0 makes the network unconditional.
            rotation: add the head that `rotation_logits` needs. All other weights are the same with and without it.

        Raises:
            StepError: it is not published for this resolution.
        """
        super().__init__()
        self.model, self.resolution, self.channels, self.num_labels = model, resolution, channels, num_labels
        shape = shape_for(resolution)
        fmaps = [channels, *widths(model, shape.discriminator)]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(num_in, num_out, first=number == 0, halves=number < shape.halvings)
            for number, (num_in, num_out) in enumerate(pairwise(fmaps))
        )
        self.score = ResNetDense(fmaps[-1], 1)
        self.classes = ResNetDense(num_labels, fmaps[-1], bias=False) if num_labels else None
        self.rotation = ResNetDense(fmaps[-1], TURNS, std=0.02) if rotation else None
        if model.spectral_norm:
            normalise_spectrally(self)

    def forward(self, images: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0) -> Tensor:
        """Score images.

        Args:
            images: [N, C, r, r], nominally in [-1, 1].
            labels: class numbers, int64 [N]; needed if and only if the discriminator is class-conditional.
            alpha: has no effect, because nothing fades in.

        Returns:
            Raw scores [N]. With labels the product of the features with the vector of the image's class is a part of
            the score (Miyato & Koyama 2018, equation 3).

        Raises:
            StepError: the discriminator is conditional and `labels` is None.
        """
        features = self.features(images)
        scores = self.score(features).squeeze(1)
        if self.classes is None:
            return scores
        if labels is None:
            raise missing_labels("discriminator", self.num_labels)
        embedded = self.classes(one_hot(labels, self.num_labels, features.dtype))
        return scores + (embedded * features).sum(1)

    def layer_maps(self, images: Tensor, *, alpha: float | Tensor = 1.0) -> list[Tensor]:
        """Compute the activations after each block for images [N, C, r, r], the first block first: [N, C', H, W] each."""
        if self.compute_dtype is not None:
            images = images.to(self.compute_dtype, memory_format=torch.channels_last)
        maps = [images]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[1:]

    def features(self, images: Tensor, *, alpha: float | Tensor = 1.0) -> Tensor:
        """Compute the features [N, F] of images [N, C, r, r]: the ReLU of the last block, summed over the pixels.

        The score is a linear function of them, without labels.
        """
        return self.maps_and_features(images)[1]

    def maps_and_features(self, images: Tensor, *, alpha: float | Tensor = 1.0) -> tuple[list[Tensor], Tensor]:
        """Compute both `layer_maps` and `features` in one pass."""
        maps = self.layer_maps(images)
        last = F.relu(maps[-1])
        return maps, last.sum((2, 3), dtype=torch.promote_types(last.dtype, torch.float32))

    def rotation_logits(self, images: Tensor, *, alpha: float | Tensor = 1.0) -> Tensor:
        """Predict by how much images are rotated (SS-GAN, section 3); labels are not used.

        Args:
            images: [N, C, r, r].
            alpha: has no effect.

        Returns:
            Logits [N, 4] of 0, 90, 180 and 270 degrees.

        Raises:
            StepError: the discriminator was made without `rotation`.
        """
        if self.rotation is None:
            raise StepError(NO_ROTATION)
        logits: Tensor = self.rotation(self.features(images))
        return logits
