"""Hand-written derivatives against those that torch finds for a plain version."""

from collections.abc import Callable

import torch
from torch import Tensor


def doubles(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def assert_same_derivatives(ours: Callable, plain: Callable, inputs: list[Tensor], orders: int = 3) -> None:
    """Values and gradients agree; then the gradients' own gradients along a random direction, and so on."""
    results = tuple(
        torch.sin(function(*inputs)) for function in (ours, plain)
    )  # so that gradients depend on what comes after
    for order in range(orders + 1):
        if order:
            direction = torch.randn_like(results[0])
            results = tuple(derivative((result * direction).sum(), inputs) for result in results)
        torch.testing.assert_close(
            *results, rtol=1e-9, atol=1e-9, msg=lambda text, order=order: f"derivative {order}: {text}"
        )


def derivative(scalar: Tensor, inputs: list[Tensor]) -> Tensor:
    """By all inputs, squared so that the next derivative is not that of something linear, as one vector."""
    gradients = torch.autograd.grad(scalar, inputs, create_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).square()
