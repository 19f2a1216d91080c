"""Convolutions with hand-written derivatives, and the kernels of convolutions that double or halve the side.

Derivatives of every order use the same three convolution kernels: forward, gradient of the input, gradient of the
weight. R1 needs second derivatives, and torch's own are slow: torch convolves with a kernel as large as the image where
one weight gradient is enough. Bias and activation are applied in place, in the memory that the convolution wrote.

What a layer convolves with is made from its stored weight: scaled, cast, and for resampling layers four shifts of it
summed. Within `prepared_weights()` that is done once on a GPU, however often a network is used.

As in `ops`, tensors are [N, C, H, W] in any memory format (channels_last is the fast one) and of any floating type.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from stylegan.networks.ops import (
    SLOPE,
    act_bias_gradients,
    act_gradient,
    bias_gradient,
    input_gradients_only,
    kernels_for,
    load_kernels,
    needs_graph,
    skips_weights,
    tiny,
)

# (identity of a stored weight, dtype, whether autograd records) -> stored weight, its version, what was made from it
_prepared: dict[tuple[int, torch.dtype, bool], tuple[Tensor, int, Tensor]] | None = None


@contextlib.contextmanager
def prepared_weights() -> Iterator[None]:
    """Let each layer prepare its weight once inside this context, instead of at each pass through it.

    It is meant for one computation of a loss and its gradients: what layers prepared there shares one graph. It must be
    entered anew for each, inside of what a CUDA graph captures. A weight that an optimizer or anything else changed in
    place is prepared again. It changes nothing on a CPU, where results stay the same to the last bit (gradients would be
    added in another order), and nothing for layers with spectral normalisation, whose weight changes at each pass. The
    setting holds for the whole process.
    """
    global _prepared
    before, _prepared = _prepared, {}
    try:
        yield
    finally:
        _prepared = before


def prepare(layer: nn.Module, compute: Callable[[torch.dtype], Tensor], x: Tensor) -> Tensor:
    """Return what a layer makes from its `weight`, as a convolution of x needs it.

    Args:
        layer: has the parameter `weight`.
        compute: takes a type and returns [O, I, k, k] or [I, O, k, k] of this type.
        x: the input of the convolution, whose type the result has.
    """
    if _prepared is None or is_parametrized(layer) or load_kernels(x.device) is None:
        return compute(x.dtype)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    key = id(weight), x.dtype, needs_graph(weight)
    stored = _prepared.get(key)
    if stored is None or stored[1] != weight._version:
        used = compute(x.dtype).contiguous(memory_format=torch.channels_last)
        stored = _prepared[key] = weight, weight._version, used
    return stored[2]


def scale_weight(weight: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return weight * scale, rounded once to `dtype`: on a device for which there are kernels in one pass over memory."""
    if weight.dtype != torch.float32 or dtype.itemsize >= weight.itemsize or kernels_for(weight) is None:
        return (weight * scale).to(dtype)
    return _ScaleWeight.apply(weight, scale, dtype) if needs_graph(weight) else _scale(weight, scale, dtype)


def _scale(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return x * scale in `dtype`, computed in the wider one of both types."""
    if x.dtype == torch.float32:
        return torch.mul(x, scale, out=torch.empty_like(x, dtype=dtype))
    return x * x.new_full((1,), scale, dtype=dtype)  # a number that is no tensor would leave the product as narrow as x


class _ScaleWeight(torch.autograd.Function):
    """`scale_weight` with a backward pass that makes one pass too."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        ctx.scale, ctx.dtype = scale, weight.dtype
        return _scale(weight, scale, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        return _scale(g, ctx.scale, ctx.dtype), None, None


def input_gradients(outputs: Tensor, inputs: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return the gradient of the sum of `outputs` with respect to `inputs`; it can be differentiated again.

    This is torch.autograd.grad, except that the convolutions here skip the gradients of their weights, which nobody
    needs.

    Args:
        outputs: any shape.
        inputs: any shape; `outputs` was computed from it.
        scale: multiplies the sum before differentiation and divides the gradient afterwards, so that small gradients
            survive in half precision.
    """
    total = outputs.sum() if scale is None else outputs.sum() * scale
    with input_gradients_only():
        (gradient,) = torch.autograd.grad(total, inputs, create_graph=True)
    return gradient if scale is None else gradient / scale


class Geometry(NamedTuple):
    """Stride and padding of a convolution, whether it is transposed, and whether a leaky ReLU follows, with its slope.

    With `joint` the gradient of the bias comes from the kernel of the weight's, in the type of the features, instead of
    from a pass of its own; on a GPU it makes no difference.
    """

    stride: int = 1
    padding: int = 0
    transposed: bool = False
    activate: bool = False
    slope: float = SLOPE  # 0: the ReLU
    joint: bool = False


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve, add the bias and apply the leaky ReLU if `geometry` asks for it.

    Args:
        x: [N, I, H, W].
        weight: [O, I, k, k]; for a transposed convolution [I, O, k, k].
        bias: [O], or None. Of the type of x, or with an activation also in single precision where there are kernels.
        geometry: stride, padding, direction and activation.

    Returns:
        [N, O, H', W'].
    """
    if bias is not None and geometry.activate and geometry.slope and kernels_for(x) is None:
        bias = bias + tiny(bias.dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)  # once here, not again in every kernel that reads it
    if needs_graph(x, weight, bias):
        return _Convolve.apply(x, weight, bias, geometry)
    return _convolve(x, weight, bias, geometry)


def _image_kernels(x: Tensor, weight: Tensor, geometry: Geometry) -> ModuleType | None:
    """Return the module `kernels` if it has kernels for a convolution: one of one pixel, from images or to images."""
    kernels = kernels_for(x)
    if kernels is None or weight.shape[2:] != (1, 1) or geometry[:3] != (1, 0, False):
        return None
    outputs, inputs = weight.shape[:2]
    narrow = inputs if geometry.activate else min(outputs, inputs)
    return kernels if narrow <= kernels.MOST_IMAGE_CHANNELS else None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    s, p, transposed, activate, slope, _ = geometry
    kernels = _image_kernels(x, weight, geometry)
    if kernels is not None:
        return _convolve_images(kernels, x, weight[:, :, 0, 0], bias, slope if activate else 1.0)
    x = x.contiguous(memory_format=torch.channels_last)
    kernels = kernels_for(x)
    if activate and kernels is not None:
        y = torch.convolution(x, weight, None, [s, s], [p, p], [1, 1], transposed, [0, 0], 1)
        y = y.contiguous(memory_format=torch.channels_last)
        activated: Tensor = kernels.act_blur(y, bias, blurs=False, out=y, slope=slope)
        return activated
    if activate and not transposed and _has_onednn(x):
        # oneDNN activates the result while it is still in the cache.
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [p, p], [s, s], [1, 1], 1, "leaky_relu", [slope], ""
        )
    y = torch.convolution(x, weight, bias, [s, s], [p, p], [1, 1], transposed, [0, 0], 1)
    return F.leaky_relu(y, slope, inplace=True) if activate else y


def _convolve_images(kernels: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
    """Do `_convolve` by the kernels for images, with a weight [O, I]."""
    if weight.shape[1] <= kernels.MOST_IMAGE_CHANNELS:
        made: Tensor = kernels.from_images(x, weight, bias, slope=slope)
        return made
    images: Tensor = kernels.to_images(x, weight.t(), bias)
    return images


def _gradients_images(
    kernels: Any,
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Sequence[bool],
    y: Tensor | None = None,
    slope: float = 1.0,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias by the kernels for images; None for those that `mask` leaves out.

    The gradient that passed a leaky ReLU with result y is never written to memory. Without activation y is None.
    """
    needs_x, needs_weight, needs_bias = mask
    grad_x = grad_weight = grad_bias = None
    flat = weight[:, :, 0, 0]
    if flat.shape[1] <= kernels.MOST_IMAGE_CHANNELS:
        if needs_x:
            grad_x = kernels.to_images(g, flat, y=y, slope=slope)
        if needs_weight or needs_bias:
            sums, grad_bias = kernels.image_sums(g, x, y=y, slope=slope, total=needs_bias)
            grad_weight = sums if needs_weight else None
    else:
        if needs_x:
            grad_x = kernels.from_images(g, flat.t(), None)
        if needs_weight:
            grad_weight = kernels.image_sums(x, g, total=False)[0].t()
        if needs_bias:
            grad_bias = bias_gradient(g)
    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype)[:, :, None, None]
    return grad_x, grad_weight, grad_bias


def _has_onednn(x: Tensor) -> bool:
    """Return whether oneDNN can convolve and activate this tensor in one operation; bf16 needs a CPU that supports it."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and _has_onednn_bf16())


@cache
def _has_onednn_bf16() -> bool:
    """Return whether oneDNN computes in bf16 on this CPU (AVX-512 or AVX-NE-CONVERT, or its equal on other machines)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias; those that `mask` leaves out are undefined."""
    s, p, transposed, *_ = geometry
    kernels = _image_kernels(x, weight, geometry)
    if kernels is not None:
        return _gradients_images(kernels, g, x, weight, mask)  # type: ignore[return-value]
    sizes = [g.shape[1]] if mask[2] else None
    g, x = (t.contiguous(memory_format=torch.channels_last) for t in (g, x))
    return torch.ops.aten.convolution_backward(g, x, weight, sizes, [s, s], [p, p], [1, 1], transposed, [0, 0], 1, mask)


class _Convolve(torch.autograd.Function):
    """`convolve` with a hand-written backward pass."""

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
        if skips_weights():
            needs_weight = needs_bias = False
        grad_x: Tensor | None = None
        grad_weight: Tensor | None = None
        grad_bias: Tensor | None = None

        # All in one call, if nothing is differentiated again.
        once = not torch.is_grad_enabled() and needs_weight
        if once and ctx.geometry.joint and kernels_for(g) is None:
            if y is not None:
                g = act_gradient(g, y, ctx.geometry.slope)
            mask = [needs_x, True, needs_bias and ctx.has_bias]
            found = _gradients(g, x, weight, linear, mask)
            return *(gradient if wanted else None for gradient, wanted in zip(found, mask, strict=True)), None

        # All by the kernels for images, which need no gradient of the activation.
        kernels = _image_kernels(x, weight, ctx.geometry)
        if kernels is not None and y is not None and not torch.is_grad_enabled():
            mask = [needs_x, needs_weight, needs_bias and ctx.has_bias]
            return *_gradients_images(kernels, g, x, weight, mask, y, ctx.geometry.slope), None

        # Gradients of activation and bias.
        if y is not None and needs_bias and ctx.has_bias:
            g, grad_bias = act_bias_gradients(g, y, ctx.geometry.slope)
        elif y is not None:
            g = act_gradient(g, y, ctx.geometry.slope)
        elif needs_bias and ctx.has_bias:
            grad_bias = bias_gradient(g)

        # Gradients of input and weight: one call if nothing is differentiated again, else two that can be.
        if once and needs_x:
            grad_x, grad_weight, _ = _gradients(g, x, weight, linear, [True, True, False])
        else:
            grad_x = _InputGradient.apply(g, weight, x, linear) if needs_x else None
            grad_weight = _WeightGradient.apply(x, g, weight, linear) if needs_weight else None
        return grad_x, grad_weight, grad_bias, None


class _InputGradient(torch.autograd.Function):
    """Gradient of a convolution with respect to its input.

    Takes the output gradient g [N, O, H', W'] and the weight, gives the shape of `like` [N, I, H, W]; linear in both.
    """

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
    """Gradient of a convolution with respect to its weight.

    Takes the input x [N, I, H, W] and the output gradient g [N, O, H', W'], gives the shape of `like`; linear in both.
    """

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


def four_tap(weight: Tensor, *, scale: float = 1.0, rotated: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """Convolve a 3x3 kernel with a 2x2 block of `scale`, which sums its four shifts by one pixel.

    Args:
        weight: [O, I, 3, 3], preferably in channels_last memory format.
        scale: value of the 2x2 block.
        rotated: rotate the result by 180 degrees.
        dtype: to which the result is rounded; None: that of the weight.

    Returns:
        [O, I, 4, 4]. The result and the gradient of the weight are in channels_last memory format.
    """
    dtype, kernels = dtype or weight.dtype, kernels_for(weight)
    if kernels is not None and dtype in kernels.DTYPES:
        return _four_tap_by_kernel(kernels, weight, scale, rotated, dtype, adjoint=False)
    taps = _FourTap.apply(weight, scale, rotated) if needs_graph(weight) else _four_tap(weight, scale, rotated)
    return taps.to(dtype)


def _four_tap_by_kernel(
    kernels: Any, x: Tensor, scale: float, rotated: bool, dtype: torch.dtype, *, adjoint: bool
) -> Tensor:
    """Compute `four_tap`, or its adjoint, in one pass."""
    if needs_graph(x):
        return _FourTapByKernel.apply(kernels, x, scale, rotated, dtype, adjoint)
    taps: Tensor = kernels.four_tap(x, scale, rotated=rotated, adjoint=adjoint, dtype=dtype)
    return taps


class _FourTapByKernel(torch.autograd.Function):
    """`four_tap` or its adjoint, each of which is the other's backward pass."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, x: Tensor, scale: float, rotated: bool, dtype: torch.dtype, adjoint: bool
    ) -> Tensor:
        ctx.kernels, ctx.back, ctx.adjoint = kernels, (scale, rotated, x.dtype), adjoint
        return _four_tap_by_kernel(kernels, x, scale, rotated, dtype, adjoint=adjoint)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        back = _four_tap_by_kernel(ctx.kernels, grads[0], *ctx.back, adjoint=not ctx.adjoint)
        return None, back, None, None, None, None


def _four_tap(weight: Tensor, scale: float, rotated: bool) -> Tensor:
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2)  # [O, 9, I]; no copy if the weight is channels_last
    matrix = _shifts_on if weight.is_cuda else _shifts
    return (matrix(scale, rotated, weight.dtype, weight.device) @ taps).unflatten(1, (4, 4)).permute(0, 3, 1, 2)


def _shifts(scale: float, rotated: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix [16, 9] that maps the pixels of a 3x3 kernel to the pixels of the 4x4 kernel."""
    row = np.eye(4, 3) + np.eye(4, 3, k=-1)
    if rotated:
        row = row[:, ::-1]
    return torch.tensor((np.kron(row, row) * scale).tolist(), dtype=dtype, device=device)


@lru_cache(maxsize=1024)
def _shifts_on(scale: float, rotated: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the same, copied once to a GPU: a copy waits for it, and cannot be part of a captured step."""
    with torch.inference_mode(False):  # the tensor serves training too
        return _shifts(scale, rotated, dtype, device)


class _FourTap(torch.autograd.Function):
    """`four_tap` with a hand-written backward pass.

    It is linear, so the backward pass needs no saved input. There, adding shifts is faster than a product with so
    narrow a matrix.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: float, rotated: bool) -> Tensor:
        ctx.scale, ctx.rotated = scale, rotated
        return _four_tap(weight, scale, rotated)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        g = g[:, :, 1:] + g[:, :, :-1]
        g = (g[..., 1:] + g[..., :-1]) * ctx.scale
        return g.flip(2, 3) if ctx.rotated else g, None, None
