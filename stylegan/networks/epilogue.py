"""All of a synthesis layer of StyleGAN that follows its convolution, in one operation.

On a GPU the kernels of `kernels` make it two passes over memory, forward and backward; elsewhere it is made of the
operations of `ops` and `normalisation`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stylegan.networks.normalisation import adain
from stylegan.networks.ops import blur, kernels_for, noise_bias_act


def epilogue(
    x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor, style: Tensor, *, blurs: bool
) -> Tensor:
    """Compute all of a synthesis layer that follows its convolution.

    That is noise_bias_act(x, noise, noise_weight, bias), of the blurred x if `blurs`, and then AdaIN with a learned
    style (StyleGAN, equation 1).

    Args:
        x: [N, C, H, W].
        noise: see `noise_bias_act`.
        noise_weight: see `noise_bias_act`.
        bias: [C].
        style: [N, 2C], the C scales less 1 before the C shifts.
        blurs: whether to blur x first.
    """
    if noise is None or noise_weight is None:
        noise = noise_weight = None
    if kernels_for(x) is None or (noise is not None and noise.requires_grad):
        return _plain_epilogue(x, noise, noise_weight, bias, style, blurs)
    return _Epilogue.apply(x, noise, noise_weight, bias, style, blurs)


def _plain_epilogue(
    x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor, style: Tensor, blurs: bool
) -> Tensor:
    return adain(noise_bias_act(blur(x) if blurs else x, noise, noise_weight, bias), style)


class _Epilogue(torch.autograd.Function):
    """`epilogue` on a device for which there are kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        noise: Tensor | None,
        noise_weight: Tensor | None,
        bias: Tensor,
        style: Tensor,
        blurs: bool,
    ) -> Tensor:
        y, saved = kernels_for(x).epilogue(x, noise, noise_weight, bias, style, blurs=blurs)  # type: ignore[union-attr]
        ctx.blurs = blurs
        ctx.save_for_backward(x, noise, noise_weight, bias, style, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, noise, noise_weight, bias, style, *saved) = grads, ctx.saved_tensors
        inputs = (x, noise, noise_weight, bias, style)
        if torch.is_grad_enabled():
            # The gradient will be differentiated again, so autograd must see how it comes about.
            wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(_plain_epilogue(*inputs, ctx.blurs), wanted, g, create_graph=True))
            return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:5]), None)
        kernels: Any = kernels_for(g)
        grad_x, *others = kernels.epilogue_backward(
            g, kernels.Epilogue(*saved), noise, noise_weight, bias, style, blurs=ctx.blurs
        )
        return grad_x, None, *others, None
