"""Comparison of hand-written derivatives with those that torch derives for a plain version."""

from collections.abc import Callable

import torch
from torch import Tensor


def doubles(*shape: int) -> Tensor:
    """Return normal random numbers in double precision that need a gradient."""
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def assert_same_derivatives(ours: Callable, plain: Callable, inputs: list[Tensor], orders: int = 3) -> None:
    """Check that two functions have equal values and equal derivatives up to the given order.

    Each higher derivative is the gradient of the one before along a random direction.
    """
    # The sine makes the gradients depend on the values.
    results = tuple(torch.sin(function(*inputs)) for function in (ours, plain))
    for order in range(orders + 1):
        if order:
            direction = torch.randn_like(results[0])
            results = tuple(derivative((result * direction).sum(), inputs) for result in results)
        torch.testing.assert_close(
            *results, rtol=1e-9, atol=1e-9, msg=lambda text, order=order: f"derivative {order}: {text}"
        )


def derivative(scalar: Tensor, inputs: list[Tensor]) -> Tensor:
    """Return the derivatives by all inputs as one vector, squared so that it is not linear and can be derived again."""
    gradients = torch.autograd.grad(scalar, inputs, create_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).square()
