"""Building blocks of both networks: equalised weights, resampling convolutions, normalisation, batch statistics.

Sources: Karras et al. 2018 ("ProGAN": equalised learning rate and pixel norm, section 4; minibatch stddev, section 3) and
Karras et al. 2019 ("StyleGAN": AdaIN, section 2; blur and the learning rate multiplier of the mapping network, appendix C).
Everything here can be differentiated twice, as R1 needs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config import ModelConfig

SQRT2 = math.sqrt(2)
SLOPE = 0.2  # of the leaky ReLU
EPS = 1e-8  # of every normalisation
FUSED_FROM = 128  # resampling and convolution are one operation from this resolution of the finer side


def num_fmaps(model: ModelConfig, stage: int) -> int:
    """Channels at a stage; the block at resolution 2^k computes in stage k - 1 (ProGAN, table 2)."""
    # At least one: a small fmap_base would leave fine resolutions without any channel.
    return max(min(int(model.fmap_base / 2 ** (stage * model.fmap_decay)), model.fmap_max), 1)


class Dense(nn.Module):
    """Fully connected layer [N, num_in] -> [N, num_out] with equalised learning rate (ProGAN, section 4.1).

    Stored weights are N(0, 1 / lrmul^2) and used as weight * gain / sqrt(num_in) * lrmul; the bias is used as bias * lrmul.
    """

    def __init__(self, num_in: int, num_out: int, *, gain: float = SQRT2, lrmul: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in) / lrmul)
        self.bias = nn.Parameter(torch.zeros(num_out)) if bias else None
        self.scale = gain / math.sqrt(num_in) * lrmul
        self.lrmul = lrmul

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.lrmul
        return F.linear(x, self.weight * self.scale, bias)


class Conv(nn.Module):
    """Convolution [N, num_in, H, W] -> [N, num_out, H, W], zero padded, with equalised learning rate.

    Stored weights are N(0, 1) and used as weight * gain / sqrt(kernel^2 * num_in).
    """

    def __init__(self, num_in: int, num_out: int, *, kernel: int = 3, gain: float = SQRT2, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(num_out)) if bias else None
        self.scale = gain / math.sqrt(kernel * kernel * num_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class UpConv(Conv):
    """Doubles the side, then convolves: [N, num_in, H, W] -> [N, num_out, 2H, 2W], no bias (it belongs after the blur)."""

    def __init__(self, num_in: int, num_out: int, *, resolution: int) -> None:
        """Make the layer; `resolution` is the side of its output."""
        super().__init__(num_in, num_out, bias=False)
        self.fused = resolution >= FUSED_FROM

    def forward(self, x: Tensor) -> Tensor:
        return up_conv(x, self.weight * self.scale, fused=self.fused)


class DownConv(Conv):
    """Convolves, then halves the side: [N, num_in, 2H, 2W] -> [N, num_out, H, W], plus bias."""

    def forward(self, x: Tensor) -> Tensor:
        return down_conv(x, self.weight * self.scale, bias=self.bias)


def four_tap(weight: Tensor) -> Tensor:
    """Kernel [..., 3, 3] convolved with a 2x2 block of ones: [..., 4, 4] (the sum of its four shifts by one pixel)."""
    padded = F.pad(weight, (1, 1, 1, 1))
    rows = padded[..., 1:, :] + padded[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]


def up_conv(x: Tensor, weight: Tensor, *, fused: bool) -> Tensor:
    """Nearest-neighbour doubling and 3x3 convolution in one transposed convolution with 16 instead of 36 products per pixel.

    Args:
        x: [N, I, H, W].
        weight: [O, I, 3, 3], already scaled.
        fused: the weight is that of a transposed convolution (StyleGAN's layers from 128x128), which is the adjoint of a
            correlation: its kernel lies rotated by 180 degrees. False: the weight is that of the plain convolution.

    Returns:
        [N, O, 2H, 2W].
    """
    kernel = weight if fused else weight.flip(2, 3)
    return F.conv_transpose2d(x, four_tap(kernel).transpose(0, 1), stride=2, padding=1)


def down_conv(x: Tensor, weight: Tensor, *, bias: Tensor | None) -> Tensor:
    """3x3 convolution and 2x2 mean in one strided convolution; the same numbers fused or not.

    Args:
        x: [N, I, 2H, 2W].
        weight: [O, I, 3, 3], already scaled.
        bias: [O], added after the mean.

    Returns:
        [N, O, H, W].
    """
    return F.conv2d(x, four_tap(weight) * 0.25, bias, stride=2, padding=1)


class _LeakyReLU(torch.autograd.Function):
    """Slope 0.2 with derivative 1 at exactly 0, where torch's own has 0.2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.leaky_relu(x, SLOPE)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        # The smallest normal number lifts an exact zero, and nothing else, to the positive side.
        sign = y.detach() + torch.finfo(y.dtype).tiny
        return torch.ops.aten.leaky_relu_backward(grads[0], sign, SLOPE, False)


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2; its derivative at 0 is 1."""
    return _LeakyReLU.apply(x)


class _Blur(torch.autograd.Function):
    """A symmetric filter with zero padding is its own adjoint: backward, and backward of backward, are the blur again.

    Autograd would do the same sums, but its second derivative of a depthwise convolution is many times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        channels = x.shape[1]
        taps = 2 - (torch.arange(3, device=x.device, dtype=x.dtype) - 1).abs()
        kernel = torch.outer(taps, taps) / 16
        return F.conv2d(x, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Blur.apply(grads[0])


def blur(x: Tensor) -> Tensor:
    """[1, 2, 1] x [1, 2, 1] / 16 on each channel of [N, C, H, W], zero padded, so borders darken (StyleGAN, appendix C)."""
    return _Blur.apply(x)


def pixel_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over dimension 1 of [N, C] or [N, C, H, W] (ProGAN, section 4.2)."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPS)


def instance_norm(x: Tensor) -> Tensor:
    """Zero mean and unit (biased) variance of each channel of each image, [N, C, H, W]; statistics in single precision or better."""
    # The kernel of layer_norm accumulates half precision in single, and subtracts the mean first: a constant channel gives 0.
    return F.layer_norm(x, x.shape[2:], eps=EPS)


def modulate(x: Tensor, style: Tensor) -> Tensor:
    """The affine half of AdaIN (StyleGAN, equation 1): x * (scale + 1) + shift.

    Args:
        x: normalised features [N, C, H, W].
        style: [N, 2C], the C scales before the C shifts.
    """
    scale, shift = style[:, :, None, None].chunk(2, dim=1)
    return torch.addcmul(shift, x, scale + 1)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append one channel with the mean standard deviation within groups of images (ProGAN, section 3).

    The batch is split into groups of the largest size that divides N and is not above `group`; with G members a group holds
    the images n, n + N/G, n + 2N/G, ...

    Args:
        x: [N, C, H, W].
        group: wanted members of a group.

    Returns:
        [N, C + 1, H, W].
    """
    n, _, height, width = x.shape
    members = max(size for size in range(1, min(group, n) + 1) if n % size == 0)
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (members, n // members))
    variance = grouped.var(0, correction=0)  # [N/G, C, H, W]
    level = (variance + EPS).sqrt().mean((1, 2, 3)).to(x.dtype)  # [N/G]
    return torch.cat([x, level.repeat(members).view(n, 1, 1, 1).expand(n, 1, height, width)], dim=1)
