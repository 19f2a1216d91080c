"""Normalisation of features: one implementation of the statistics, and what the papers make of it.

Every normalisation here is

    y = scale * (x - mean) / sqrt(variance + eps) + shift

and differs from the others in two things alone. The mean and the (biased) variance of a channel are those of its pixels
in one image, or in all images of the batch. Scale and shift are learned numbers of the channel, numbers of the image's
class, or computed from its latent:

                      learned          of the class             from the latent
    of the batch      batch            conditional batch        self-modulated
    of each image     instance         conditional instance     adaptive instance (AdaIN)

The README of this folder tells them apart, with their sources.

Statistics and their gradients are computed in single precision or better. As in `ops`, everything takes and returns
[N, C, H, W] in any memory format, and can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config.sections import OF_BATCH, Norm
from stylegan.networks.ops import EPS, fusable, kernels_for, needs_graph

# Replaces a tensor by its mean over all ranks, in place, and returns it.
MeanOverRanks = Callable[[Tensor], Tensor]
PIXELS, BATCH = (2, 3), (0, 2, 3)  # dimensions over which statistics are taken


class Normaliser(NamedTuple):
    """The statistics and the activation of a normalisation.

    Attributes:
        over: the dimensions of the statistics, PIXELS (of each image) or BATCH.
        eps: is added to the variance.
        relu: whether a ReLU follows.
        ranks: makes the statistics those of the batch of all ranks, which have equally many images each; None: of this
            rank alone.
    """

    over: tuple[int, ...] = PIXELS
    eps: float = EPS
    relu: bool = False
    ranks: MeanOverRanks | None = None

    def mean(self, values: Tensor, over: tuple[int, ...]) -> Tensor:
        """Return the mean over some dimensions, which stay with length 1, and over the ranks."""
        mean = values.mean(over, keepdim=True)
        return mean if self.ranks is None else self.ranks(mean)


INSTANCE = Normaliser()


def normalise(x: Tensor, scale: Tensor, shift: Tensor, how: Normaliser = INSTANCE) -> Tensor:
    """Normalise each channel, then multiply by `scale`, add `shift`, and apply the ReLU if `how` asks for it.

    Args:
        x: [N, C, H, W].
        scale: [N, C], or [1, C] for all images alike.
        shift: as `scale`.
        how: which pixels share statistics.
    """
    if needs_graph(x, scale, shift):
        return _Normalise.apply(x, scale, shift, how)
    return _forward(x, scale, shift, how)[0]


def adain(x: Tensor, style: Tensor) -> Tensor:
    """Apply AdaIN with a learned style (StyleGAN, equation 1): instance_norm(x) * (scale + 1) + shift.

    Args:
        x: features [N, C, H, W].
        style: [N, 2C], the C scales before the C shifts.
    """
    scale, shift = style.chunk(2, dim=1)
    return normalise(x, scale + 1, shift)


def instance_norm(x: Tensor) -> Tensor:
    """Normalise each channel of each image of [N, C, H, W] to zero mean and unit (biased) variance."""
    n, c = x.shape[:2]
    return normalise(x, x.new_ones(n, c), x.new_zeros(n, c))


def adaptive_instance_norm(content: Tensor, style: Tensor) -> Tensor:
    """Give the features of `content` the mean and deviation of `style`: AdaIN of style transfer.

    Source: Huang & Belongie 2017, equation 8.

    Args:
        content: features [N, C, H, W].
        style: features [N, C, h, w] of the images whose style is wanted; any size.

    Returns:
        [N, C, H, W]: each channel has the mean and the (biased) standard deviation of the same channel of `style`.
    """
    mean, deviation = channel_statistics(style)
    return normalise(content, deviation, mean)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [N, C] of each channel of each image [N, C, H, W]: what AdaIN calls a style.

    They are in single precision or better, and those by which `normalise` works.
    """
    _, mean, variance = _statistics(x, INSTANCE)
    return mean[:, :, 0, 0], variance.sqrt()[:, :, 0, 0]


def _statistics(x: Tensor, how: Normaliser) -> tuple[Tensor, Tensor, Tensor]:
    """Return x minus the mean of its channel, that mean, and the variance, never 0, in single precision or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = how.mean(wide, how.over)
    centred = wide - mean  # subtract first, so that a constant channel gives exactly 0
    return centred, mean, how.mean(centred.square(), how.over) + how.eps


def _is_plain_batch_norm(x: Tensor, scale: Tensor, how: Normaliser) -> bool:
    """Return whether torch's own batch normalisation for CPUs, in fewer passes over memory, does the same."""
    return how.over == BATCH and how.ranks is None and len(scale) == 1 and x.device.type == "cpu"


def _forward(x: Tensor, scale: Tensor, shift: Tensor, how: Normaliser) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, and mean and reciprocal deviation [N or 1, C, 1, 1] in single precision or better."""
    kernels = kernels_for(x)
    if kernels is not None:
        of_images: tuple[Tensor, Tensor] = kernels.moments(x, eps=how.eps)
        mean, rstd = _merged(of_images, how)
        return kernels.affine(x, mean, rstd * scale, shift, relu=how.relu), _as_features(mean), _as_features(rstd)
    if not _is_plain_batch_norm(x, scale, how):
        return _normalise(x, scale, shift, how)
    y, mean, rstd = torch.native_batch_norm(x, scale[0], shift[0], None, None, True, 0.0, how.eps)
    return F.relu(y, inplace=True) if how.relu else y, _as_features(mean[None]), _as_features(rstd[None])


def _as_features(numbers: Tensor) -> Tensor:
    """Give numbers [N, C] the dimensions of features, [N, C, 1, 1]."""
    return numbers[:, :, None, None]


def _merged(of_images: tuple[Tensor, Tensor], how: Normaliser) -> tuple[Tensor, Tensor]:
    """Make the statistics of images, mean and rstd [N, C], those of the pixels that share them, [N or 1, C]."""
    mean, rstd = of_images
    if how.over == PIXELS:
        return mean, rstd
    middle = how.mean(mean, (0,))
    # The variance of all pixels is the mean of those of the images and the variance of the means.
    return middle, torch.rsqrt(how.mean(rstd.pow(-2) + (mean - middle).square(), (0,)))


@fusable
def _normalise(x: Tensor, scale: Tensor, shift: Tensor, how: Normaliser) -> tuple[Tensor, Tensor, Tensor]:
    centred, mean, variance = _statistics(x, how)
    rstd = torch.rsqrt(variance)
    y = torch.addcmul(shift[:, :, None, None].to(centred.dtype), centred, rstd * scale[:, :, None, None])
    return (F.relu(y, inplace=True) if how.relu else y).to(x.dtype), mean, rstd


class _Normalise(torch.autograd.Function):
    """`normalise` with a hand-written backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, how: Normaliser) -> Tensor:
        y, mean, rstd = _forward(x, scale, shift, how)
        ctx.how = how
        ctx.save_for_backward(x, scale, shift, mean, rstd, y if how.relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (g,), (x, scale, shift, mean, rstd, y) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradient will be differentiated again, so autograd must see that mean and rstd depend on x.
            _, mean, variance = _statistics(x, ctx.how)
            rstd = torch.rsqrt(variance)
        elif kernels_for(x) is not None:
            return *_backward_by_kernels(g, x, scale, shift, mean[:, :, 0, 0], rstd[:, :, 0, 0], ctx.how), None
        elif _is_plain_batch_norm(x, scale, ctx.how):
            g = g if y is None else torch.ops.aten.threshold_backward(g, y, 0)
            statistics = mean.flatten(), rstd.flatten(), True, ctx.how.eps, [True, True, True]
            grad, *others = torch.ops.aten.native_batch_norm_backward(g, x, scale[0], None, None, *statistics)
            return grad, *(other[None] for other in others), None
        return *_normalise_backward(g, y, x, scale, mean, rstd, ctx.how), None


def _backward_by_kernels(
    g: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, how: Normaliser
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_normalise_backward` does, in two passes; mean and rstd are [N or 1, C]."""
    kernels, pixels = kernels_for(x), x.shape[2] * x.shape[3]
    assert kernels is not None
    affine = mean, rstd * scale, shift
    grad_shift, products = kernels.affine_sums(g, x, *affine, relu=how.relu)
    grad_scale = products * rstd
    offset, factor = _shared(grad_shift / pixels, grad_scale / pixels, rstd, affine[1], how)
    grad = kernels.affine_backward(g, x, *affine, offset, factor, relu=how.relu)
    return grad, *(t.sum_to_size(scale.shape).to(scale.dtype) for t in (grad_scale, grad_shift))


def _shared(mean_g: Tensor, slope: Tensor, rstd: Tensor, gain: Tensor, how: Normaliser) -> tuple[Tensor, Tensor]:
    """Return what the dependence of mean and deviation on x adds to the gradient of x.

    It is the same for all pixels that share them: an offset, and a factor of x minus the mean.

    Args:
        mean_g: mean over an image's pixels of the gradient of the result, [N, C, ...] as all others.
        slope: the same of its product with the normalised x.
        rstd: reciprocal deviation.
        gain: rstd times the scale.
        how: which pixels share statistics.
    """
    offset, factor = -mean_g * gain, -slope * rstd * gain
    if how.over == BATCH:
        offset, factor = how.mean(torch.cat([offset, factor], 1), (0,)).chunk(2, dim=1)
    return offset, factor


@fusable
def _normalise_backward(
    g: Tensor, y: Tensor | None, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor, how: Normaliser
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, scale and shift for the output gradient g; y is the result if a ReLU made it."""
    if y is not None:
        g = torch.ops.aten.threshold_backward(g, y.detach(), 0)
    wide = g.to(rstd.dtype)
    centred = x.to(rstd.dtype) - mean
    mean_g = wide.mean(PIXELS, keepdim=True)
    slope = (wide * centred).mean(PIXELS, keepdim=True) * rstd  # mean over pixels of g times the normalised x
    gain = rstd * scale[:, :, None, None]
    offset, factor = _shared(mean_g, slope, rstd, gain, how)
    grad = torch.addcmul(offset, wide, gain)
    grad = grad.addcmul_(centred, factor)
    pixels = x.shape[2] * x.shape[3]
    grad_scale, grad_shift = slope[:, :, 0, 0] * pixels, mean_g[:, :, 0, 0] * pixels
    return (
        grad.to(x.dtype),
        grad_scale.sum_to_size(scale.shape).to(scale.dtype),
        grad_shift.sum_to_size(scale.shape).to(scale.dtype),
    )


# --- layers -----------------------------------------------------------------------------------------------------------

BATCH_EPS = 2e-5  # added to the variance of a batch, as in the code of Miyato et al. 2018
HIDDEN = 32  # units of the hidden layer of self-modulation (Chen et al. 2018, section 3)


class Normalisation(nn.Module):
    """One of the six normalisations, followed by a ReLU.

    In training it takes the statistics of what it sees. In evaluation a normalisation over the batch takes those that
    `settle` found, so that an image does not depend on those beside it.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: Norm, channels: int, *, latent_size: int, num_labels: int) -> None:
        """Make the layer.

        Args:
            norm: which one.
            channels: of the features.
            latent_size: of w, see `forward`.
            num_labels: the number of classes, the last numbers of w.
        """
        super().__init__()
        self.norm, self.num_labels = norm, num_labels
        self.ranks: MeanOverRanks | None = None
        self.seen: list[tuple[Tensor, Tensor]] | None = None  # statistics of batches, while `settle` collects them
        if norm in ("batch", "instance"):
            self.affine = nn.Parameter(torch.cat([torch.ones(1, channels), torch.zeros(1, channels)], 1))
        elif norm.startswith("conditional"):
            self.classes = nn.Parameter(
                torch.cat([torch.ones(num_labels, channels), torch.zeros(num_labels, channels)], 1)
            )
        else:
            self.hidden = nn.Linear(latent_size, HIDDEN)
            self.modulation = nn.Linear(HIDDEN, 2 * channels)
            for layer in (self.hidden, self.modulation):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        if self.of_batch:
            self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
            self.register_buffer("variance", torch.ones(1, channels, 1, 1))

    @property
    def of_batch(self) -> bool:
        """Return whether the statistics are those of a batch."""
        return self.norm in OF_BATCH

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Normalise, scale, shift and apply the ReLU.

        Args:
            x: features [N, C, H, W].
            w: [N, L + num_labels]: the latent, and after it how far the image belongs to each class, usually 1 for one
                and 0 for the others.

        Returns:
            [N, C, H, W].
        """
        scale, shift = self.scale_and_shift(w).chunk(2, dim=1)
        if self.of_batch and not self.training:
            gain = scale * torch.rsqrt(self.variance[:, :, 0, 0] + BATCH_EPS)
            offset = shift - self.mean[:, :, 0, 0] * gain
            return F.relu(torch.addcmul(offset[:, :, None, None], x.to(gain.dtype), gain[:, :, None, None])).to(x.dtype)
        if self.seen is not None:
            _, mean, variance = _statistics(x, Normaliser(BATCH, BATCH_EPS))
            self.seen.append((mean, variance - BATCH_EPS))
        over, ranks = (BATCH, self.ranks) if self.of_batch else (PIXELS, None)
        return normalise(x, scale, shift, Normaliser(over, BATCH_EPS, True, ranks))

    def scale_and_shift(self, w: Tensor) -> Tensor:
        """Return the scales and the shifts, [N or 1, 2C]."""
        if self.norm in ("batch", "instance"):
            return self.affine
        if self.norm.startswith("conditional"):
            return w[:, -self.num_labels :] @ self.classes
        scale, shift = self.modulation(F.relu(self.hidden(w))).chunk(2, dim=1)
        return torch.cat([1 + scale, shift], dim=1)


def of_batch(network: nn.Module) -> list[Normalisation]:
    """Return the layers of a network that normalise over the batch."""
    return [module for module in network.modules() if isinstance(module, Normalisation) and module.of_batch]


@torch.no_grad()
def settle(network: nn.Module, layers: Collection[Normalisation], passes: Callable[[], None]) -> None:
    """Find the statistics by which layers normalise in evaluation: their means over some passes in training mode.

    These are the standing statistics of Brock et al. 2019 (appendix B). The weights stay as they are.

    Args:
        network: contains the layers.
        layers: those of `of_batch(network)`.
        passes: lets some batches go through the network.
    """
    was_training = network.training
    network.train()
    for layer in layers:
        layer.seen = []
    try:
        passes()
        for layer in layers:
            assert layer.seen
            for own, values in zip((layer.mean, layer.variance), zip(*layer.seen, strict=True), strict=True):
                own.copy_(torch.stack(values).mean(0))
    finally:
        for layer in layers:
            layer.seen = None
        network.train(was_training)
