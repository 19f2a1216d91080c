"""Operations with hand-written derivatives: convolutions, blur, activation, instance normalisation with style.

Torch can derive all of them, but pays for its generality: its second derivative of a convolution, which R1 needs, takes a
convolution with a kernel as large as the image where one weight gradient does, a depthwise filter is several times slower
still, and each element-wise operation keeps its own copy of its input. Here

- a backward pass is made of the same three convolution kernels (forward, gradient of the input, gradient of the weight) as
  often as one differentiates;
- bias and activation happen in the memory that the convolution wrote;
- one tensor per layer is kept for the backward pass.

Every operation takes and gives [N, C, H, W] in any memory format (channels_last is the fast one) and any floating type;
statistics and their gradients are computed in single precision or better. All can be differentiated any number of times.
Without gradients they are plain torch operations, which is what exporters see.

The element-wise parts are pure functions marked `_fusable`: within `fused()` they run as kernels that torch.compile makes of
them, one pass over memory each where torch needs up to ten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPE = 0.2  # of the leaky ReLU
EPS = 1e-8  # of every normalisation

P = ParamSpec("P")
R = TypeVar("R")
_fused = False
_input_gradients_only = False


@contextlib.contextmanager
def fused(enabled: bool = True) -> Iterator[None]:
    """Whether element-wise operations are compiled, for this process (backward passes run in threads of their own)."""
    global _fused
    before, _fused = _fused, enabled
    try:
        yield
    finally:
        _fused = before


def input_gradients(outputs: Tensor, inputs: Tensor, scale: Tensor | None = None) -> Tensor:
    """Gradient of the sum of `outputs` at `inputs`, to be differentiated again.

    Like torch.autograd.grad, which does not tell the operations here that nobody asks for the gradients of their weights.
    `scale` multiplies on the way and is divided by at the end, so that small gradients survive in half precision.
    """
    global _input_gradients_only
    total = outputs.sum() if scale is None else outputs.sum() * scale
    _input_gradients_only = True
    try:
        (gradient,) = torch.autograd.grad(total, inputs, create_graph=True)
    finally:
        _input_gradients_only = False
    return gradient if scale is None else gradient / scale


def _fusable(function: Callable[P, R]) -> Callable[P, R]:
    @lru_cache(maxsize=1)
    def compiled() -> Callable[P, R]:
        # Sizes stay symbols: one kernel serves every resolution.
        return torch.compile(function, dynamic=True)

    @wraps(function)
    def either(*args: P.args, **kwargs: P.kwargs) -> R:
        # What is to be differentiated again must stay visible to autograd.
        return compiled()(*args, **kwargs) if _fused and not torch.is_grad_enabled() else function(*args, **kwargs)

    return either


class Geometry(NamedTuple):
    """How a convolution lies on its input, and whether a leaky ReLU follows."""

    stride: int = 1
    padding: int = 0
    transposed: bool = False
    activate: bool = False


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """(Transposed) convolution, bias and, if asked, leaky ReLU.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k]; transposed: [I, O, k, k].
        bias: [O].
        geometry: stride, padding and activation.
    """
    if bias is not None and geometry.activate:
        bias = bias + _tiny(bias.dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)  # once, instead of in every kernel that reads it
    if _needs_graph(x, weight, bias):
        return _Convolve.apply(x, weight, bias, geometry)
    return _convolve(x, weight, bias, geometry)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    s, p, _, activate = geometry
    x = x.contiguous(memory_format=torch.channels_last)
    if activate and not geometry.transposed and _has_onednn(x):  # the activation while the result is still in the cache
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, [p, p], [s, s], [1, 1], 1, "leaky_relu", [SLOPE], "")
    y = torch.convolution(x, weight, bias, [s, s], [p, p], [1, 1], geometry.transposed, [0, 0], 1)
    return F.leaky_relu(y, SLOPE, inplace=True) if activate else y


def _has_onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()


def _gradients(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    s, p, transposed, _ = geometry
    g, x = (t.contiguous(memory_format=torch.channels_last) for t in (g, x))
    return torch.ops.aten.convolution_backward(g, x, weight, None, [s, s], [p, p], [1, 1], transposed, [0, 0], 1, mask)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        y = _convolve(x, weight, bias, geometry)
        ctx.geometry, ctx.has_bias = geometry, bias is not None
        ctx.save_for_backward(x, weight, y if geometry.activate else None)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        x, weight, y = ctx.saved_tensors
        linear = ctx.geometry._replace(activate=False)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if _input_gradients_only:
            needs_weight = needs_bias = False
        grad_x: Tensor | None = None
        grad_weight: Tensor | None = None
        grad_bias: Tensor | None = None
        if y is not None and needs_bias and ctx.has_bias:
            g, grad_bias = _act_bias_gradients(g, y)
        elif y is not None:
            g = _act_gradient(g, y)
        elif needs_bias and ctx.has_bias:
            grad_bias = g.sum((0, 2, 3))
        if not torch.is_grad_enabled() and needs_x and needs_weight:
            grad_x, grad_weight, _ = _gradients(g, x, weight, linear, [True, True, False])
        else:
            grad_x = _InputGradient.apply(g, weight, x, linear) if needs_x else None
            grad_weight = _WeightGradient.apply(x, g, weight, linear) if needs_weight else None
        return grad_x, grad_weight, grad_bias, None


class _InputGradient(torch.autograd.Function):
    """The adjoint in x: g [N, O, H', W'] and weight to the shape of `like` [N, I, H, W]; linear in both."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(g, weight)
        return _gradients(g, like, weight, geometry, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gg,) = grads
        g, weight = ctx.saved_tensors
        needs_g, needs_weight, _, _ = ctx.needs_input_grad
        grad_g = convolve(gg, weight, None, ctx.geometry) if needs_g else None
        grad_weight = _WeightGradient.apply(gg, g, weight, ctx.geometry) if needs_weight else None
        return grad_g, grad_weight, None, None


class _WeightGradient(torch.autograd.Function):
    """The adjoint in the weight: x [N, I, H, W] and g [N, O, H', W'] to the shape of `like`; linear in both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(x, g)
        return _gradients(g, x, like, geometry, [False, True, False])[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gg,) = grads
        x, g = ctx.saved_tensors
        needs_x, needs_g, _, _ = ctx.needs_input_grad
        grad_x = _InputGradient.apply(g, gg, x, ctx.geometry) if needs_x else None
        grad_g = convolve(x, gg, None, ctx.geometry) if needs_g else None
        return grad_x, grad_g, None, None


def _act_gradient(g: Tensor, y: Tensor) -> Tensor:
    """Of the leaky ReLU with result `y`; linear in g, and its derivative in y is zero."""
    return torch.ops.aten.leaky_relu_backward(g, y.detach(), SLOPE, False)


def _act_bias_gradients(g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    # Torch's own sum over pixels beats the compiled one, except that it has none from half to single precision.
    half = g.dtype in (torch.bfloat16, torch.float16)
    return _fusable_act_bias_gradients(g, y) if half else _plain_act_bias_gradients(g, y)


def _plain_act_bias_gradients(g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    g = _act_gradient(g, y)
    return g, g.sum((0, 2, 3), dtype=torch.promote_types(g.dtype, torch.float32))


_fusable_act_bias_gradients = _fusable(_plain_act_bias_gradients)


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2 of any tensor; its derivative at 0 is 1, where torch's own has 0.2."""
    return F.leaky_relu(x + _tiny(x.dtype), SLOPE)


def _tiny(dtype: torch.dtype) -> float:
    # The smallest normal number lifts an exact zero, and nothing else that matters, to the positive side.
    return torch.finfo(dtype).tiny if dtype != torch.float16 else 2.0**-24


def blur(x: Tensor) -> Tensor:
    """[1, 2, 1] x [1, 2, 1] / 16 on each channel of [N, C, H, W], zero padded, so borders darken (StyleGAN, appendix C)."""
    return _Blur.apply(x) if _needs_graph(x) else _blur(x)


def _blur(x: Tensor) -> Tensor:
    channels = x.shape[1]
    taps = x.new_ones(3)
    taps[1] = 2
    kernel = torch.outer(taps, taps / 16)
    return F.conv2d(x, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


class _Blur(torch.autograd.Function):
    """A symmetric filter with zero padding is its own adjoint: backward, and backward of backward, are the blur again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _blur(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return blur(grads[0])


def noise_bias_act(x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor) -> Tensor:
    """lrelu(x + noise * noise_weight + bias), the first half of a synthesis layer's epilogue.

    Args:
        x: [N, C, H, W].
        noise: [N or 1, 1, H, W], or None.
        noise_weight: [C], or None.
        bias: [C].
    """
    bias = bias + _tiny(x.dtype)
    if noise is None or noise_weight is None:
        noise = noise_weight = None
    if _needs_graph(x, noise, noise_weight, bias):
        return _NoiseBiasAct.apply(x, noise, noise_weight, bias)
    return _noise_bias_act(x, noise, noise_weight, bias)


@_fusable
def _noise_bias_act(x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor) -> Tensor:
    if noise is not None and noise_weight is not None:
        x = torch.addcmul(x, noise.to(x.dtype), noise_weight.to(x.dtype).view(-1, 1, 1)).add_(bias.to(x.dtype).view(-1, 1, 1))
    else:
        x = x + bias.to(x.dtype).view(-1, 1, 1)
    return F.leaky_relu(x, SLOPE, inplace=True)


class _NoiseBiasAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor) -> Tensor:
        y = _noise_bias_act(x, noise, noise_weight, bias)
        ctx.save_for_backward(y, noise, noise_weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, noise, noise_weight = ctx.saved_tensors
        g, grad_bias = _act_bias_gradients(grads[0], y)
        grad_noise = grad_noise_weight = None
        if ctx.needs_input_grad[1]:
            grad_noise = (g * noise_weight.to(g.dtype).view(-1, 1, 1)).sum(1, keepdim=True).sum_to_size(noise.shape)
        if ctx.needs_input_grad[2]:
            # A product of matrices reads g once; multiplying first would write it again.
            rows = noise.to(g.dtype).expand(g.shape[0], -1, -1, -1).reshape(1, -1)
            grad_noise_weight = (rows @ g.movedim(1, -1).reshape(-1, g.shape[1])).view(-1)
        return g, grad_noise, grad_noise_weight, grad_bias


def instance_norm_style(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Instance normalisation, then times `scale` plus `shift` (AdaIN, Huang & Belongie 2017, equation 8).

    Args:
        x: [N, C, H, W].
        scale: [N, C].
        shift: [N, C].
    """
    if _needs_graph(x, scale, shift):
        return _InstanceNormStyle.apply(x, scale, shift)
    return _instance_norm_style(x, scale, shift)[0]


@_fusable
def _instance_norm_style(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Result, mean and reciprocal deviation [N, C, 1, 1], in single precision or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = wide.mean((2, 3), keepdim=True)
    centred = wide - mean  # first, so that a constant channel gives exactly 0
    rstd = torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + EPS)
    y = torch.addcmul(shift[:, :, None, None].to(wide.dtype), centred, rstd * scale[:, :, None, None])
    return y.to(x.dtype), mean, rstd


class _InstanceNormStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y, mean, rstd = _instance_norm_style(x, scale, shift)
        ctx.save_for_backward(x, scale, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: mean and rstd must know that they depend on x
            wide = x.to(rstd.dtype)
            mean = wide.mean((2, 3), keepdim=True)
            rstd = torch.rsqrt((wide - mean).square().mean((2, 3), keepdim=True) + EPS)
        return _instance_norm_style_backward(grads[0], x, scale, mean, rstd)


@_fusable
def _instance_norm_style_backward(g: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = g.to(rstd.dtype)
    centred = x.to(rstd.dtype) - mean
    mean_g = wide.mean((2, 3), keepdim=True)
    slope = (wide * centred).mean((2, 3), keepdim=True) * rstd  # mean of g times the normalised x
    gain = rstd * scale[:, :, None, None]
    grad = torch.addcmul(-mean_g * gain, wide, gain)
    grad = grad.addcmul_(centred, -slope * rstd * gain)
    pixels = x.shape[2] * x.shape[3]
    grad_scale, grad_shift = slope[:, :, 0, 0] * pixels, mean_g[:, :, 0, 0] * pixels
    return grad.to(x.dtype), grad_scale.to(scale.dtype), grad_shift.to(scale.dtype)


def _needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
