"""The operations with hand-written derivatives: their values and their derivatives of the first three orders."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.networks import ops
from stylegan.networks.ops import Geometry

GEOMETRIES = {  # name -> geometry, side of the kernel
    "3x3": (Geometry(padding=1), 3),
    "1x1": (Geometry(), 1),
    "3x3, activated": (Geometry(padding=1, activate=True), 3),
    "down": (Geometry(stride=2, padding=1), 4),
    "down, activated": (Geometry(stride=2, padding=1, activate=True), 4),
    "up": (Geometry(stride=2, padding=1, transposed=True), 4),
}
every_geometry = pytest.mark.parametrize("name", GEOMETRIES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def doubles(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def arguments(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images, weight and bias for a geometry: 3 channels to 2."""
    geometry, kernel = GEOMETRIES[name]
    return doubles(2, 3, 6, 6), doubles(*((3, 2) if geometry.transposed else (2, 3)), kernel, kernel), doubles(2)


def plain_convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    convolution = F.conv_transpose2d if geometry.transposed else F.conv2d
    y = convolution(x, weight, bias, stride=geometry.stride, padding=geometry.padding)
    return F.leaky_relu(y, 0.2) if geometry.activate else y


def plain_epilogue(x: Tensor, noise: Tensor | None, noise_weight: Tensor | None, bias: Tensor) -> Tensor:
    if noise is not None and noise_weight is not None:
        x = x + noise * noise_weight[:, None, None]
    return F.leaky_relu(x + bias[:, None, None], 0.2)


def plain_instance_norm_style(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-8) * scale[:, :, None, None] + shift[:, :, None, None]


def assert_same_derivatives(ours: Callable, plain: Callable, inputs: list[Tensor], orders: int = 3) -> None:
    """Values and gradients agree; then the gradients' own gradients along a random direction, and so on."""
    results = tuple(torch.sin(function(*inputs)) for function in (ours, plain))  # so that gradients depend on what comes after
    for order in range(orders + 1):
        if order:
            direction = torch.randn_like(results[0])
            results = tuple(derivative((result * direction).sum(), inputs) for result in results)
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9, msg=lambda text, order=order: f"derivative {order}: {text}")


def derivative(scalar: Tensor, inputs: list[Tensor]) -> Tensor:
    """By all inputs, squared so that the next derivative is not that of something linear, as one vector."""
    gradients = torch.autograd.grad(scalar, inputs, create_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).square()


@every_geometry
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_torchs(name: str, memory_format: torch.memory_format) -> None:
    """The same numbers, with and without a graph, and derivatives of three orders, in either memory format."""
    geometry = GEOMETRIES[name][0]
    x, weight, bias = arguments(name)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    assert_same_derivatives(
        lambda *inputs: ops.convolve(*inputs, geometry), lambda *inputs: plain_convolve(*inputs, geometry), [x, weight, bias]
    )
    with torch.no_grad():
        torch.testing.assert_close(ops.convolve(x, weight, bias, geometry), plain_convolve(x, weight, bias, geometry))
        torch.testing.assert_close(ops.convolve(x, weight, None, geometry), plain_convolve(x, weight, None, geometry))


@every_geometry
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1], [2]], ids=["image", "weight", "both", "bias"])
def test_convolutions_that_need_some_gradients_only(name: str, wanted: list[int]) -> None:
    """Frozen weights, or images without a gradient, take other ways through the derivatives."""
    geometry, inputs = GEOMETRIES[name][0], arguments(name)
    for index, value in enumerate(inputs):
        value.requires_grad_(index in wanted)
    results = [function(*inputs, geometry).square().sum() for function in (ops.convolve, plain_convolve)]
    ours, plain = (torch.autograd.grad(result, [inputs[index] for index in wanted]) for result in results)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("maps", [1, 2])
def test_noise_bias_and_activation(maps: int) -> None:
    """Noise for each image or one map for all of them: values and derivatives."""
    noise, inputs = torch.randn(maps, 1, 4, 4, dtype=torch.float64), [doubles(2, 3, 4, 4), doubles(3), doubles(3)]
    assert_same_derivatives(lambda x, *rest: ops.noise_bias_act(x, noise, *rest), lambda x, *rest: plain_epilogue(x, noise, *rest), inputs)


def test_bias_and_activation_without_noise() -> None:
    """Neither a missing map nor a missing weight counts as noise."""
    inputs = [doubles(2, 3, 4, 4), doubles(3)]
    for noise, weight in ((None, doubles(3)), (doubles(2, 1, 4, 4), None)):
        ours, plain = (partial(function, noise=noise, noise_weight=weight) for function in (ops.noise_bias_act, plain_epilogue))
        assert_same_derivatives(lambda x, bias, f=ours: f(x, bias=bias), lambda x, bias, f=plain: f(x, bias=bias), inputs)


@pytest.mark.parametrize("maps", [1, 2])
def test_noise_has_a_gradient_too(maps: int) -> None:
    """Of three orders, as the other inputs."""
    inputs = [doubles(2, 3, 4, 4), doubles(maps, 1, 4, 4), doubles(3), doubles(3)]
    assert_same_derivatives(ops.noise_bias_act, plain_epilogue, inputs)


def test_noise_bias_and_activation_leave_their_input_alone() -> None:
    """The activation works in place, but not on the caller's tensor."""
    x, bias = torch.randn(2, 3, 4, 4), torch.randn(3)
    before = x.clone()
    ops.noise_bias_act(x, None, None, bias)
    ops.noise_bias_act(x, torch.randn(2, 1, 4, 4), torch.randn(3), bias)
    assert torch.equal(x, before)


def test_instance_norm_with_style() -> None:
    """Values and derivatives of three orders."""
    assert_same_derivatives(ops.instance_norm_style, plain_instance_norm_style, [doubles(2, 3, 4, 4), doubles(2, 3), doubles(2, 3)])


def test_blur_is_binomial_and_darkens_borders() -> None:
    """A point spreads to [1,2,1] x [1,2,1] / 16; ones keep 3/4 at an edge and 9/16 in a corner."""
    point = torch.zeros(1, 2, 5, 5)
    point[0, 1, 2, 2] = 16
    expected = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    torch.testing.assert_close(ops.blur(point)[0, 1, 1:4, 1:4], expected)
    assert not ops.blur(point)[0, 0].any()
    ones = ops.blur(torch.ones(1, 1, 4, 4))[0, 0]
    assert (ones[0, 0].item(), ones[0, 1].item(), ones[1, 1].item()) == (9 / 16, 3 / 4, 1.0)


@pytest.mark.parametrize("function", [ops.blur, ops.lrelu])
def test_first_and_second_derivatives(function: Callable[[Tensor], Tensor]) -> None:
    """Numeric and analytic derivatives of both orders agree."""
    assert torch.autograd.gradcheck(function, (doubles(2, 3, 4, 4),), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (doubles(2, 3, 4, 4),), fast_mode=True)


ACTIVATIONS = {
    "lrelu": lambda x, bias: ops.lrelu(x),
    "convolution": lambda x, bias: ops.convolve(x, torch.eye(2, dtype=x.dtype).view(2, 2, 1, 1), bias, Geometry(activate=True)),
    "epilogue": lambda x, bias: ops.noise_bias_act(x, None, None, bias),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_leaky_relu_has_derivative_one_at_zero(name: str, dtype: torch.dtype) -> None:
    """Slope 0.2 below 0, and 1 at exactly 0 as well as above, wherever the activation is."""
    x = torch.tensor([-2.0, 0.0, 3.0, -0.001], dtype=dtype).view(1, 1, 2, 2).repeat(1, 2, 1, 1).requires_grad_()
    y = ACTIVATIONS[name](x, torch.zeros(2, dtype=dtype))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    for channel in range(2):
        assert y[0, channel].flatten().tolist() == pytest.approx([-0.4, 0.0, 3.0, -0.0002], rel=0.01, abs=1e-6)
        assert gradient[0, channel].flatten().tolist() == pytest.approx([0.2, 1.0, 1.0, 0.2], rel=0.01)


def test_lrelu_has_no_derivative_of_its_slope() -> None:
    """The second derivative is that of what flows through."""
    x, g = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True), torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.lrelu(x), x, g, create_graph=True)
    assert torch.autograd.grad(gradient.sum(), g)[0].tolist() == pytest.approx([0.2, 1.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_taken_in_single_precision(dtype: torch.dtype) -> None:
    """Low precision features keep their type, but mean and deviation are not rounded to it; nor are the sums of gradients."""
    wide = torch.randn(2, 3, 32, 32) * 3 + 20
    x = wide.to(dtype).requires_grad_()
    scale, shift = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    y = ops.instance_norm_style(x, scale, shift)
    assert y.dtype == dtype
    reference = plain_instance_norm_style(x.float(), scale, shift)
    torch.testing.assert_close(y.float(), reference, atol=0.02, rtol=0.01)
    direction = torch.randn_like(y).detach() + 1
    ours = torch.autograd.grad((y * direction).sum(), (x, scale, shift))
    plain = torch.autograd.grad((reference * direction.float()).sum(), (x, scale, shift))
    for gradient, expected in zip(ours, plain, strict=True):
        assert gradient.dtype == expected.dtype
        torch.testing.assert_close(gradient.float(), expected.float(), atol=0.01 * expected.abs().max().item(), rtol=0.01)
