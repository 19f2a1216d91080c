"""Building blocks of StyleGAN: equalised weights, resampling convolutions, pixel norm, minibatch standard deviation.

Sources: Karras et al. 2018 ("ProGAN": equalised learning rate and pixel norm, section 4; mini-batch standard deviation,
section 3) and Karras et al. 2019 ("StyleGAN": styles, section 2; blur and the learning rate multiplier of the mapping
network, appendix C). Everything here can be differentiated twice, as R1 needs.

Weights are stored in single precision. A convolution casts them to the type of its input, so the type of the first
features decides the precision of a network. Dense layers stay in single precision: they are small, and w and the scores
need it. `training.precision: tf32` alone rounds their products on GPUs.
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
from stylegan.networks.convolution import Geometry, convolve, four_tap, prepare, scale_weight
from stylegan.networks.ops import EPS, act_blur, blur, kernels_for

SQRT2 = math.sqrt(2)
UP, DOWN = Geometry(stride=2, padding=1, transposed=True), Geometry(stride=2, padding=1)
TURNS = 4  # rotations by 0, 90, 180 and 270 degrees, which a discriminator may tell apart
NO_ROTATION = (
    "this discriminator has no rotation head; set training.rotation (`{}` takes the defaults) and train it anew"
)
ALIGNMENT = 8  # channels that a GPU's tensor cores take at a time in half precision
FUSED_FROM = 128  # from this resolution (of the finer side) on, StyleGAN fuses resampling and convolution


def missing_labels(network: str, num_labels: int) -> StepError:
    """Return the error for a conditional network that was given no labels."""
    return StepError(
        f"labels=None: this {network} is conditional; give each image a class number from 0 to {num_labels - 1}"
    )


def num_fmaps(model: ModelConfig, stage: int) -> int:
    """Return the number of channels at a stage; the block at resolution 2^k is stage k - 1 (ProGAN, table 2)."""
    # At least one channel: a small fmap_base would leave fine resolutions without any.
    return max(min(int(model.fmap_base / 2 ** (stage * model.fmap_decay)), model.fmap_max), 1)


class Dense(nn.Module):
    """Fully connected layer [N, num_in] -> [N, num_out] with equalised learning rate (ProGAN, section 4.1).

    Stored weights are N(0, 1 / lrmul^2). The layer uses weight * gain / sqrt(num_in) * lrmul and bias * lrmul.
    """

    def __init__(
        self, num_in: int, num_out: int, *, gain: float = SQRT2, lrmul: float = 1.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in) / lrmul)
        self.bias = nn.Parameter(torch.zeros(num_out)) if bias else None
        self.scale = gain / math.sqrt(num_in) * lrmul
        self.lrmul = lrmul

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.lrmul
        return F.linear(x * self.scale, self.weight, bias)  # scale x, which is smaller than the weight


class Conv(nn.Module):
    """Zero-padded convolution [N, num_in, H, W] -> [N, num_out, H, W] with equalised learning rate.

    Stored weights are N(0, 1). The layer uses weight * gain / sqrt(kernel^2 * num_in).
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kernel: int = 3,
        gain: float = SQRT2,
        bias: bool = True,
        activate: bool = False,
        blurs: bool = False,
        pads_channels: bool = False,
    ) -> None:
        """Make the layer; with `activate` a leaky ReLU follows the bias, and with `blurs` as well a blur follows that.

        With `pads_channels` a GPU convolves a multiple of ALIGNMENT channels, some of them zeros: for an odd number of input
        channels, and small features, whose copy costs little.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in, kernel, kernel).to(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(num_out)) if bias else None
        self.scale = gain / math.sqrt(kernel * kernel * num_in)
        self.size, self.activate, self.blurs, self.pads_channels = kernel, activate, blurs, pads_channels

    def forward(self, x: Tensor) -> Tensor:
        missing = -x.shape[1] % ALIGNMENT if self.pads_channels and kernels_for(x) is not None else 0
        weight = prepare(self, lambda dtype: add_channels(self.kernel(dtype), missing), x)
        x = add_channels(x, missing)
        if self.activate and self.blurs and self.bias is not None and kernels_for(x) is not None:
            return act_blur(convolve(x, weight, None, self.geometry), self.bias)
        x = convolve(x, weight, self._bias(x), self.geometry._replace(activate=self.activate))
        return blur(x) if self.blurs else x

    @property
    def geometry(self) -> Geometry:
        """How the layer convolves with `kernel()`."""
        return Geometry(padding=self.size // 2)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Return what the layer convolves with, in a type; with spectral normalisation every call computes another."""
        return scale_weight(self.weight, self.scale, dtype)

    def _bias(self, x: Tensor) -> Tensor | None:
        # The kernels that activate take the bias as it is stored.
        if self.bias is None or (self.activate and kernels_for(x) is not None):
            return self.bias
        return self.bias.to(x.dtype)


class UpConv(Conv):
    """A layer that doubles the side, then convolves: [N, num_in, H, W] -> [N, num_out, 2H, 2W].

    It has no bias, because the bias belongs after the blur.
    """

    geometry = UP

    def __init__(self, num_in: int, num_out: int, *, resolution: int) -> None:
        """Make the layer; `resolution` is the side of its output."""
        super().__init__(num_in, num_out, bias=False)
        self.fused = resolution >= FUSED_FROM
        # Memory order [I, 3, 3, O], in which the transposed convolution reads the weight.
        self.weight.data = (
            self.weight.data.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
        )

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Return what the layer convolves with, see `up_kernel`."""
        return up_kernel(self.weight, scale=self.scale, fused=self.fused, dtype=dtype)


class DownConv(Conv):
    """A layer that convolves, halves the side and adds the bias: [N, num_in, 2H, 2W] -> [N, num_out, H, W]."""

    geometry = DOWN

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Return what the layer convolves with, see `down_kernel`."""
        return down_kernel(self.weight, scale=self.scale, dtype=dtype)


def up_kernel(weight: Tensor, *, scale: float = 1.0, fused: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Make the kernel that doubles the side by nearest neighbour and convolves, in one transposed convolution, `UP`.

    That takes 16 instead of 36 products per pixel.

    Args:
        weight: [O, I, 3, 3].
        scale: multiplies the weight.
        dtype: of the result; None: that of the weight.
        fused: True if the weight belongs to a transposed convolution (StyleGAN's layers from 128x128 on). This is the
            adjoint of a correlation, so its kernel is rotated by 180 degrees. False if the weight belongs to a plain
            convolution.

    Returns:
        [I, O, 4, 4].
    """
    return four_tap(weight.transpose(0, 1), scale=scale, rotated=not fused, dtype=dtype)


def down_kernel(weight: Tensor, *, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
    """Make the kernel that convolves and takes the mean of each 2x2 block, in one strided convolution, `DOWN`.

    StyleGAN's fused and unfused layers compute the same numbers, so there is no switch.

    Args:
        weight: [O, I, 3, 3].
        scale: multiplies the weight.
        dtype: of the result; None: that of the weight.

    Returns:
        [O, I, 4, 4].
    """
    return four_tap(weight, scale=scale / 4, dtype=dtype)


def add_channels(x: Tensor, count: int) -> Tensor:
    """Append so many channels of zeros to [N, C, H, W]."""
    return F.pad(x, (0, 0, 0, 0, 0, count)) if count else x


def pixel_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over dimension 1 of [N, C] or [N, C, H, W] (ProGAN, section 4.2)."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPS)


def modulate(x: Tensor, style: Tensor) -> Tensor:
    """Apply a learned style without the normalisation of AdaIN: x * (scale + 1) + shift; arguments as in `adain`."""
    scale, shift = style[:, :, None, None].to(x.dtype).chunk(2, dim=1)
    return torch.addcmul(shift, x, scale + 1)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """Append one channel with the mean standard deviation within groups of images (ProGAN, section 3).

    The batch is split into groups of equal size G: the largest size that divides N and is not above `group`. A group
    contains the images n, n + N/G, n + 2N/G, ...

    Args:
        x: [N, C, H, W].
        group: wanted size of a group.

    Returns:
        [N, C + 1, H, W].
    """
    n, _, height, width = x.shape
    members = max(size for size in range(1, min(group, n) + 1) if n % size == 0)
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (members, n // members))
    variance = (grouped - grouped.mean(0)).square().mean(0)  # [N/G, C, H, W]; Tensor.var is far slower
    level = (variance + EPS).sqrt().mean((1, 2, 3)).to(x.dtype)  # [N/G]
    return torch.cat([x, level.repeat(members).view(n, 1, 1, 1).expand(n, 1, height, width)], dim=1)


def normalise_spectrally(network: nn.Module) -> None:
    """Add spectral normalisation to every layer that lacks it: the layer then uses W / sigma(W) (Miyato et al. 2018).

    sigma(W) is the largest singular value of the weight. All layers are normalised, heads included. There is no learned
    factor, and the factor of the equalised learning rate is dropped because it would undo the bound.

    Each forward pass in training makes one step of the power method to estimate sigma, a pass in inference makes none;
    the vectors of the method are buffers (as in the code of SS-GAN, Chen et al. 2019).

    Stored weights stay as they are, those of StyleGAN N(0, 1). W / sigma does not depend on their size, but the angle of
    one Adam step does, and this way it is the same as without.
    """
    for layer in list(network.modules()):
        if isinstance(layer, Conv | Dense) and not is_parametrized(layer):
            spectral_norm(layer)
            layer.scale = 1.0
