"""Operations with hand-written derivatives: blur, activation, and instance normalisation with style.

Torch can derive all of them, but at a cost: its backward pass of a depthwise filter is several times slower, and each
element-wise operation keeps its own copy of its input. Here one tensor per layer is kept for the backward pass. The
convolutions are in `convolution`.

Every operation takes and returns [N, C, H, W] in any memory format (channels_last is the fast one) and any floating
type. Statistics and their gradients are computed in single precision or better. All operations can be differentiated
any number of times. Without gradients they are plain torch operations, which exporters can read.

The element-wise parts are pure functions marked `_fusable`. Within `fused()` torch.compile turns each into one kernel,
which makes one pass over memory where torch needs up to ten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.2  # slope of the leaky ReLU below zero
EPS = 1e-8  # added under the root by every normalisation

P = ParamSpec("P")
R = TypeVar("R")
_fused = False


@contextlib.contextmanager
def fused(enabled: bool = True) -> Iterator[None]:
    """Compile element-wise operations inside this context, or do not.

    The setting holds for the whole process, because backward passes run in threads of their own.
    """
    global _fused
    before, _fused = _fused, enabled
    try:
        yield
    finally:
        _fused = before


def _fusable(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function run compiled within `fused()`."""

    @lru_cache(maxsize=1)
    def compiled() -> Callable[P, R]:
        # With symbolic sizes one kernel serves every resolution.
        return torch.compile(function, dynamic=True)

    @wraps(function)
    def either(*args: P.args, **kwargs: P.kwargs) -> R:
        # With gradients enabled the result may be differentiated again, so it must stay visible to autograd.
        return compiled()(*args, **kwargs) if _fused and not torch.is_grad_enabled() else function(*args, **kwargs)

    return either


def act_gradient(g: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the leaky ReLU with result `y`; it is linear in g, and its derivative in y is zero."""
    return torch.ops.aten.leaky_relu_backward(g, y.detach(), SLOPE, False)


def act_bias_gradients(g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x [N, C, H, W] and of the bias [C] for y = leaky ReLU(x + bias) and output gradient g."""
    # Torch's own sum over pixels is faster than the compiled one, but it has no kernel from half to single precision.
    half = g.dtype in (torch.bfloat16, torch.float16)
    return _fusable_act_bias_gradients(g, y) if half else _plain_act_bias_gradients(g, y)


def _plain_act_bias_gradients(g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    g = act_gradient(g, y)
    return g, g.sum((0, 2, 3), dtype=torch.promote_types(g.dtype, torch.float32))


_fusable_act_bias_gradients = _fusable(_plain_act_bias_gradients)


def lrelu(x: Tensor) -> Tensor:
    """Apply a leaky ReLU with slope 0.2 to any tensor; its derivative at 0 is 1, where torch's own has 0.2."""
    return F.leaky_relu(x + tiny(x.dtype), SLOPE)


def tiny(dtype: torch.dtype) -> float:
    """Return a number that moves an exact zero to the positive side of the leaky ReLU.

    It changes nothing else that matters. It is the smallest normal number of the type. For float16, where that would be
    too large, it is the smallest positive number.
    """
    return torch.finfo(dtype).tiny if dtype != torch.float16 else 2.0**-24


def blur(x: Tensor) -> Tensor:
    """Blur each channel of [N, C, H, W] with [1, 2, 1] x [1, 2, 1] / 16 (StyleGAN, appendix C).

    The padding is zero, so borders darken.
    """
    return _Blur.apply(x) if needs_graph(x) else _blur(x)


def _blur(x: Tensor) -> Tensor:
    channels = x.shape[1]
    taps = x.new_ones(3)
    taps[1] = 2
    kernel = torch.outer(taps, taps / 16)
    return F.conv2d(x, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


class _Blur(torch.autograd.Function):
    """`blur` with a hand-written backward pass.

    A symmetric filter with zero padding is its own adjoint, so the derivatives of every order are the blur again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _blur(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return blur(grads[0])


def fades(alpha: float | Tensor) -> bool:
    """Return whether a resolution with this weight is faded in. A weight that is a tensor always is one that fades."""
    return isinstance(alpha, Tensor) or alpha < 1


def fade(coarse: Tensor, fine: Tensor, alpha: float | Tensor) -> Tensor:
    """Return (1 - alpha) * coarse + alpha * fine, rounded once.

    Args:
        coarse: as `fine`.
        fine: any shape, in any floating type.
        alpha: in [0, 1]: a number, or a tensor [] in single precision or better, which is not rounded either.
    """
    if isinstance(alpha, Tensor) and alpha.dtype != fine.dtype:
        return torch.lerp(coarse.to(alpha.dtype), fine.to(alpha.dtype), alpha).to(fine.dtype)
    return torch.lerp(coarse, fine, alpha)


def noise_bias_act(x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor) -> Tensor:
    """Compute lrelu(x + noise * noise_weight + bias), the first half of a synthesis layer's epilogue.

    Args:
        x: [N, C, H, W].
        noise: [N or 1, 1, H, W], or None.
        noise_weight: [C], or None. Without noise or its weight the term is left out.
        bias: [C].
    """
    bias = bias + tiny(x.dtype)
    if noise is None or noise_weight is None:
        noise = noise_weight = None
    if needs_graph(x, noise, noise_weight, bias):
        return _NoiseBiasAct.apply(x, noise, noise_weight, bias)
    return _noise_bias_act(x, noise, noise_weight, bias)


@_fusable
def _noise_bias_act(x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor) -> Tensor:
    if noise is not None and noise_weight is not None:
        x = torch.addcmul(x, noise.to(x.dtype), noise_weight.to(x.dtype).view(-1, 1, 1)).add_(
            bias.to(x.dtype).view(-1, 1, 1)
        )
    else:
        x = x + bias.to(x.dtype).view(-1, 1, 1)
    return F.leaky_relu(x, SLOPE, inplace=True)


class _NoiseBiasAct(torch.autograd.Function):
    """`noise_bias_act` with a hand-written backward pass; it keeps the result instead of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor) -> Tensor:
        y = _noise_bias_act(x, noise, noise_weight, bias)
        ctx.save_for_backward(y, noise, noise_weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, noise, noise_weight = ctx.saved_tensors
        g, grad_bias = act_bias_gradients(grads[0], y)
        grad_noise = grad_noise_weight = None
        if ctx.needs_input_grad[1]:
            grad_noise = (g * noise_weight.to(g.dtype).view(-1, 1, 1)).sum(1, keepdim=True).sum_to_size(noise.shape)
        if ctx.needs_input_grad[2]:
            # A matrix product reads g once; an element-wise product would also write a tensor of its size.
            rows = noise.to(g.dtype).expand(g.shape[0], -1, -1, -1).reshape(1, -1)
            grad_noise_weight = (rows @ g.movedim(1, -1).reshape(-1, g.shape[1])).view(-1)
        return g, grad_noise, grad_noise_weight, grad_bias


def instance_norm_style(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise each channel of each image, then multiply by `scale` and add `shift`.

    This is AdaIN (Huang & Belongie 2017, equation 8).

    Args:
        x: [N, C, H, W].
        scale: [N, C].
        shift: [N, C].
    """
    if needs_graph(x, scale, shift):
        return _InstanceNormStyle.apply(x, scale, shift)
    return _instance_norm_style(x, scale, shift)[0]


@_fusable
def _instance_norm_style(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, and mean and reciprocal deviation [N, C, 1, 1] in single precision or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = wide.mean((2, 3), keepdim=True)
    centred = wide - mean  # subtract first, so that a constant channel gives exactly 0
    rstd = torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + EPS)
    y = torch.addcmul(shift[:, :, None, None].to(wide.dtype), centred, rstd * scale[:, :, None, None])
    return y.to(x.dtype), mean, rstd


class _InstanceNormStyle(torch.autograd.Function):
    """`instance_norm_style` with a hand-written backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y, mean, rstd = _instance_norm_style(x, scale, shift)
        ctx.save_for_backward(x, scale, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradient will be differentiated again, so autograd must see that mean and rstd depend on x.
            wide = x.to(rstd.dtype)
            mean = wide.mean((2, 3), keepdim=True)
            rstd = torch.rsqrt((wide - mean).square().mean((2, 3), keepdim=True) + EPS)
        return _instance_norm_style_backward(grads[0], x, scale, mean, rstd)


@_fusable
def _instance_norm_style_backward(
    g: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, scale and shift for the output gradient g."""
    wide = g.to(rstd.dtype)
    centred = x.to(rstd.dtype) - mean
    mean_g = wide.mean((2, 3), keepdim=True)
    slope = (wide * centred).mean((2, 3), keepdim=True) * rstd  # mean over pixels of g times the normalised x
    gain = rstd * scale[:, :, None, None]
    grad = torch.addcmul(-mean_g * gain, wide, gain)
    grad = grad.addcmul_(centred, -slope * rstd * gain)
    pixels = x.shape[2] * x.shape[3]
    grad_scale, grad_shift = slope[:, :, 0, 0] * pixels, mean_g[:, :, 0, 0] * pixels
    return grad.to(x.dtype), grad_scale.to(scale.dtype), grad_shift.to(scale.dtype)


def needs_graph(*tensors: Tensor | None) -> bool:
    """Return whether autograd must record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
