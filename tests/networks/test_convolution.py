"""Convolutions with hand-written derivatives: their values and their derivatives of the first three orders."""

import pytest
import torch
import torch.nn.functional as F
from networks.derivatives import assert_same_derivatives, doubles
from torch import Tensor

from stylegan.networks.convolution import Geometry, convolve, four_tap

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


def arguments(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, weight and bias for a geometry: 3 channels to 2."""
    geometry, kernel = GEOMETRIES[name]
    return doubles(2, 3, 6, 6), doubles(*((3, 2) if geometry.transposed else (2, 3)), kernel, kernel), doubles(2)


def plain_convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Compute the same with torch's own functions."""
    convolution = F.conv_transpose2d if geometry.transposed else F.conv2d
    y = convolution(x, weight, bias, stride=geometry.stride, padding=geometry.padding)
    return F.leaky_relu(y, 0.2) if geometry.activate else y


@every_geometry
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_torchs(name: str, memory_format: torch.memory_format) -> None:
    """Check values, with and without a graph, and derivatives of three orders, in both memory formats."""
    geometry = GEOMETRIES[name][0]
    x, weight, bias = arguments(name)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    assert_same_derivatives(
        lambda *inputs: convolve(*inputs, geometry),
        lambda *inputs: plain_convolve(*inputs, geometry),
        [x, weight, bias],
    )
    with torch.no_grad():
        torch.testing.assert_close(convolve(x, weight, bias, geometry), plain_convolve(x, weight, bias, geometry))
        torch.testing.assert_close(convolve(x, weight, None, geometry), plain_convolve(x, weight, None, geometry))


@every_geometry
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1], [2]], ids=["image", "weight", "both", "bias"])
def test_convolutions_that_need_some_gradients_only(name: str, wanted: list[int]) -> None:
    """Check the other paths through the derivatives: frozen weights, and images without a gradient."""
    geometry, inputs = GEOMETRIES[name][0], arguments(name)
    for index, value in enumerate(inputs):
        value.requires_grad_(index in wanted)
    results = [function(*inputs, geometry).square().sum() for function in (convolve, plain_convolve)]
    ours, plain = (torch.autograd.grad(result, [inputs[index] for index in wanted]) for result in results)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("rotated", [False, True])
def test_four_taps_are_the_four_shifts(rotated: bool) -> None:
    """Check scale, rotation and derivatives of three orders."""

    def plain(weight: Tensor) -> Tensor:
        block = torch.full((2, 2), 0.5, dtype=weight.dtype)
        kernel = weight.rot90(2, (2, 3)) if rotated else weight
        return F.conv_transpose2d(kernel.flatten(0, 1)[:, None], block[None, None]).unflatten(0, weight.shape[:2])[
            :, :, 0
        ]

    assert_same_derivatives(lambda weight: four_tap(weight, scale=0.5, rotated=rotated), plain, [doubles(2, 3, 3, 3)])
