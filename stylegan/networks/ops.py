"""Operations with hand-written derivatives: blur, activation, and what combines them.

Torch can derive all of them, but at a cost: its backward pass of a depthwise filter is several times slower, and each
element-wise operation keeps its own copy of its input. Here one tensor per layer is kept for the backward pass. The
convolutions are in `convolution`, the normalisations in `normalisation`.

Every operation takes and returns [N, C, H, W] in any memory format (channels_last is the fast one) and any floating
type. Statistics and their gradients are computed in single precision or better. All operations can be differentiated
any number of times. Without gradients they are plain torch operations, which exporters can read.

The element-wise parts are pure functions marked `fusable`. Within `fused()` torch.compile turns each into one kernel,
which makes one pass over memory where torch needs up to ten. On a GPU the kernels of `kernels` take their place, which
also combine several operations into one.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, wraps
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.errors import one_line

logger = logging.getLogger("stylegan")

SLOPE = 0.2  # slope of the leaky ReLU below zero
EPS = 1e-8  # added under the root by every normalisation of StyleGAN

P = ParamSpec("P")
R = TypeVar("R")
_fused = False
_kernels_enabled = True
_input_gradients_only = False


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


@contextlib.contextmanager
def kernels_enabled(enabled: bool) -> Iterator[None]:
    """Use the kernels of `kernels` inside this context wherever they can run, or nowhere. They are on by default.

    The setting holds for the whole process, like that of `fused`.
    """
    global _kernels_enabled
    before, _kernels_enabled = _kernels_enabled, enabled
    try:
        yield
    finally:
        _kernels_enabled = before


def kernels_for(x: Tensor) -> ModuleType | None:
    """Return the module `kernels` if its kernels are to work on this tensor, otherwise None."""
    kernels = load_kernels(x.device)
    return kernels if kernels is not None and x.dtype in kernels.DTYPES else None


def load_kernels(device: torch.device) -> ModuleType | None:
    """Return the module `kernels` if its kernels are to work on this device, otherwise None.

    The first call for a GPU tries one of them. Where it fails, a warning says why, and torch's operations do the work.
    """
    if not _kernels_enabled or (device.type != "cuda" and not _is_interpreted()):
        return None
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    return _try_kernels(device)


@cache
def _is_interpreted() -> bool:
    """Return whether Triton interprets kernels, on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _try_kernels(device: torch.device) -> ModuleType | None:
    """Return the module `kernels`; None if its kernels do not work on this device, with a warning.

    Triton comes with torch's CUDA builds. It compiles its launchers with the C compiler of the machine, at the first use.
    """
    try:
        from stylegan.networks import kernels

        if device.type != "cuda" or torch.cuda.is_available():  # a GPU of another machine cannot be tried from here
            kernels.try_out(device)
    except Exception as error:  # a missing compiler, an old GPU and a full disk raise errors of many types
        logger.warning(
            "%s: element-wise operations are slower here, because Triton's kernels do not work (%s: %s)%s",
            device, type(error).__name__, one_line(error, 160),
            "; install the package triton" if isinstance(error, ImportError) else "",
        )  # fmt: skip
        return None
    return kernels


@contextlib.contextmanager
def input_gradients_only() -> Iterator[None]:
    """Leave out the gradients of weights and biases inside this context. It holds for the whole process."""
    global _input_gradients_only
    _input_gradients_only = True
    try:
        yield
    finally:
        _input_gradients_only = False


def skips_weights() -> bool:
    """Return whether gradients of weights and biases are left out at present."""
    return _input_gradients_only


def fusable(function: Callable[P, R]) -> Callable[P, R]:
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


def act_gradient(g: Tensor, y: Tensor, slope: float = SLOPE) -> Tensor:
    """Return the gradient of the leaky ReLU with result `y`; it is linear in g, and its derivative in y is zero.

    With the slope 0 this is the ReLU, whose result does not tell 0 from negative inputs: its derivative there is 0.
    """
    kernels = kernels_for(g)
    if kernels is None:
        return torch.ops.aten.leaky_relu_backward(g, y.detach(), slope, False)
    if needs_graph(g):
        return _Mask.apply(g, y.detach(), slope)
    masked: Tensor = kernels.blur_mask(g, y, None, blurs=False, sums=False, slope=slope)[0]
    return masked


class _Mask(torch.autograd.Function):
    """`act_gradient` on a device for which there are kernels: one pass forward and one back."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        ctx.save_for_backward(y)
        return act_gradient(g, y, slope)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        return act_gradient(grads[0], y, ctx.slope), None, None


def act_bias_gradients(g: Tensor, y: Tensor, slope: float = SLOPE) -> tuple[Tensor, Tensor]:
    """Return the gradients of x [N, C, H, W] and of the bias [C] for y = leaky ReLU(x + bias) and output gradient g."""
    kernels = kernels_for(g)
    if kernels is not None and not torch.is_grad_enabled():
        masked: tuple[Tensor, Tensor] = kernels.blur_mask(g, y, None, blurs=False, sums=True, slope=slope)
        return masked
    # Torch's own sum over pixels is faster than the compiled one, but it has no kernel from half to single precision.
    half = g.dtype in (torch.bfloat16, torch.float16)
    return _fusable_act_bias_gradients(g, y, slope) if half else _plain_act_bias_gradients(g, y, slope)


def _plain_act_bias_gradients(g: Tensor, y: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    g = act_gradient(g, y, slope)
    return g, _plain_bias_gradient(g)


_fusable_act_bias_gradients = fusable(_plain_act_bias_gradients)


def bias_gradient(g: Tensor) -> Tensor:
    """Return the gradient of a bias [C] that was added to every pixel: the sum of g [N, C, H, W]."""
    kernels = kernels_for(g)
    if kernels is not None and not torch.is_grad_enabled():
        sums: Tensor = kernels.channel_sums(g)
        return sums
    return _plain_bias_gradient(g)


def _plain_bias_gradient(g: Tensor) -> Tensor:
    # In half precision a sum over all pixels would overflow and lose digits.
    return g.sum((0, 2, 3), dtype=torch.promote_types(g.dtype, torch.float32))


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
    kernels = kernels_for(x)
    if kernels is not None:
        blurred: Tensor = kernels.blur(x)
        return blurred
    channels = x.shape[1]
    taps = x.new_ones(3)
    taps[1].add_(1)  # where the image is; to set it to 2 would copy that number from the host
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


def act_blur(x: Tensor, bias: Tensor) -> Tensor:
    """Compute blur(lrelu(x + bias)), x [N, C, H, W] and bias [C], on a device for which there are kernels."""
    return _ActBlur.apply(x, bias)


class _ActBlur(torch.autograd.Function):
    """`act_blur`; it keeps its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return kernels_for(x).act_blur(x, bias, blurs=True)  # type: ignore[union-attr]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        (g,), (x, bias) = grads, ctx.saved_tensors
        needs_bias = ctx.needs_input_grad[1] and not _input_gradients_only
        if not torch.is_grad_enabled():
            return kernels_for(g).blur_mask(g, x, bias, blurs=True, sums=needs_bias)  # type: ignore[union-attr]
        g = _BlurMask.apply(g, x, bias)
        return g, bias_gradient(g) if needs_bias else None


class _BlurMask(torch.autograd.Function):
    """Compute blur(g) times the slope of the leaky ReLU at x + bias; linear in g, and constant in x and bias."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return kernels_for(g).blur_mask(g, x, bias, blurs=True, sums=False)[0]  # type: ignore[union-attr]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _MaskBlur.apply(grads[0], *ctx.saved_tensors), None, None


class _MaskBlur(torch.autograd.Function):
    """Compute blur(g times the slope of the leaky ReLU at x + bias), the adjoint of `_BlurMask`."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        return kernels_for(g).mask_blur(g, x, bias)  # type: ignore[union-attr]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _BlurMask.apply(grads[0], *ctx.saved_tensors), None, None


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


@fusable
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


def needs_graph(*tensors: Tensor | None) -> bool:
    """Return whether autograd must record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
