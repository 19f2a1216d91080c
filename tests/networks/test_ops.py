"""Blur, activation and normalisation with hand-written derivatives: values and derivatives of three orders."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks.derivatives import assert_same_derivatives, doubles
from torch import Tensor

from stylegan.networks import normalisation, ops
from stylegan.networks.convolution import Geometry, convolve


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plain_epilogue(x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor) -> Tensor:
    """Compute `noise_bias_act` with torch's own functions."""
    if noise is not None and noise_weight is not None:
        x = x + noise * noise_weight[:, None, None]
    return F.leaky_relu(x + bias[:, None, None], 0.2)


def plain_instance_norm_style(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute `instance_norm_style` with torch's own functions."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-8) * scale[:, :, None, None] + shift[:, :, None, None]


@pytest.mark.parametrize("maps", [1, 2])
def test_noise_bias_and_activation(maps: int) -> None:
    """Check values and derivatives, with noise for each image or one map for all of them."""
    noise, inputs = torch.randn(maps, 1, 4, 4, dtype=torch.float64), [doubles(2, 3, 4, 4), doubles(3), doubles(3)]
    assert_same_derivatives(
        lambda x, *rest: ops.noise_bias_act(x, noise, *rest), lambda x, *rest: plain_epilogue(x, noise, *rest), inputs
    )


def test_bias_and_activation_without_noise() -> None:
    """Check that no noise is added if the map or its weight is missing."""
    inputs = [doubles(2, 3, 4, 4), doubles(3)]
    for noise, weight in ((None, doubles(3)), (doubles(2, 1, 4, 4), None)):
        ours, plain = (
            partial(function, noise=noise, noise_weight=weight) for function in (ops.noise_bias_act, plain_epilogue)
        )
        assert_same_derivatives(
            lambda x, bias, f=ours: f(x, bias=bias), lambda x, bias, f=plain: f(x, bias=bias), inputs
        )


@pytest.mark.parametrize("maps", [1, 2])
def test_noise_has_a_gradient_too(maps: int) -> None:
    """Check the derivatives of three orders by the noise too."""
    inputs = [doubles(2, 3, 4, 4), doubles(maps, 1, 4, 4), doubles(3), doubles(3)]
    assert_same_derivatives(ops.noise_bias_act, plain_epilogue, inputs)


def test_noise_bias_and_activation_leave_their_input_alone() -> None:
    """Check that the activation, which works in place, does not change the caller's tensor."""
    x, bias = torch.randn(2, 3, 4, 4), torch.randn(3)
    before = x.clone()
    ops.noise_bias_act(x, None, None, bias)
    ops.noise_bias_act(x, torch.randn(2, 1, 4, 4), torch.randn(3), bias)
    assert torch.equal(x, before)


def test_instance_norm_with_style() -> None:
    """Check values and derivatives of three orders."""
    assert_same_derivatives(
        normalisation.normalise, plain_instance_norm_style, [doubles(2, 3, 4, 4), doubles(2, 3), doubles(2, 3)]
    )


def test_blur_is_binomial_and_darkens_borders() -> None:
    """Check that a point spreads to [1,2,1] x [1,2,1] / 16; ones become 3/4 at an edge and 9/16 in a corner."""
    point = torch.zeros(1, 2, 5, 5)
    point[0, 1, 2, 2] = 16
    expected = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    torch.testing.assert_close(ops.blur(point)[0, 1, 1:4, 1:4], expected)
    assert not ops.blur(point)[0, 0].any()
    ones = ops.blur(torch.ones(1, 1, 4, 4))[0, 0]
    assert (ones[0, 0].item(), ones[0, 1].item(), ones[1, 1].item()) == (9 / 16, 3 / 4, 1.0)


@pytest.mark.parametrize("function", [ops.blur, ops.lrelu])
def test_first_and_second_derivatives(function: Callable[[Tensor], Tensor]) -> None:
    """Check that numeric and analytic derivatives of both orders agree."""
    assert torch.autograd.gradcheck(function, (doubles(2, 3, 4, 4),), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (doubles(2, 3, 4, 4),), fast_mode=True)


ACTIVATIONS = {
    "lrelu": lambda x, bias: ops.lrelu(x),
    "convolution": lambda x, bias: convolve(
        x, torch.eye(2, dtype=x.dtype).view(2, 2, 1, 1), bias, Geometry(activate=True)
    ),
    "epilogue": lambda x, bias: ops.noise_bias_act(x, None, None, bias),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_leaky_relu_has_derivative_one_at_zero(name: str, dtype: torch.dtype) -> None:
    """Check for slope 0.2 below 0 and slope 1 from 0 on, wherever the activation is used."""
    x = torch.tensor([-2.0, 0.0, 3.0, -0.001], dtype=dtype).view(1, 1, 2, 2).repeat(1, 2, 1, 1).requires_grad_()
    y = ACTIVATIONS[name](x, torch.zeros(2, dtype=dtype))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    for channel in range(2):
        assert y[0, channel].flatten().tolist() == pytest.approx([-0.4, 0.0, 3.0, -0.0002], rel=0.01, abs=1e-6)
        assert gradient[0, channel].flatten().tolist() == pytest.approx([0.2, 1.0, 1.0, 0.2], rel=0.01)


def test_lrelu_has_no_derivative_of_its_slope() -> None:
    """Check that the second derivative depends on the output gradient only, not on the input."""
    x, g = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True), torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.lrelu(x), x, g, create_graph=True)
    assert torch.autograd.grad(gradient.sum(), g)[0].tolist() == pytest.approx([0.2, 1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_taken_in_single_precision(dtype: torch.dtype) -> None:
    """Check that features in low precision keep their type while their mean and deviation are not rounded to it.

    The sums of gradients are not rounded either.
    """
    wide = torch.randn(2, 3, 32, 32) * 3 + 20
    x = wide.to(dtype).requires_grad_()
    scale, shift = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    y = normalisation.normalise(x, scale, shift)
    assert y.dtype == dtype
    reference = plain_instance_norm_style(x.float(), scale, shift)
    torch.testing.assert_close(y.float(), reference, atol=0.02, rtol=0.01)
    direction = torch.randn_like(y).detach() + 1
    ours = torch.autograd.grad((y * direction).sum(), (x, scale, shift))
    plain = torch.autograd.grad((reference * direction.float()).sum(), (x, scale, shift))
    for gradient, expected in zip(ours, plain, strict=True):
        assert gradient.dtype == expected.dtype
        torch.testing.assert_close(
            gradient.float(), expected.float(), atol=0.01 * expected.abs().max().item(), rtol=0.01
        )
