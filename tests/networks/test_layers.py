"""Comparison of the building blocks with their formulas, which are written out here a second time."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from stylegan.config.sections import ModelConfig
from stylegan.networks import convolution, layers, normalisation, ops
from stylegan.networks.convolution import convolve
from stylegan.networks.layers import Conv, Dense, DownConv, UpConv
from stylegan.networks.normalisation import adain


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _shifts(weight: Tensor) -> Tensor:
    """Add up the four shifts of a kernel by one pixel."""
    out = torch.zeros(*weight.shape[:2], 4, 4, dtype=weight.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            out[:, :, dy : dy + 3, dx : dx + 3] += weight
    return out


def _upscale(x: Tensor) -> Tensor:
    """Double the side by nearest neighbour."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_channels_follow_the_paper() -> None:
    """Check that blocks from 4x4 to 1024x1024 have 512, 512, 512, 512, 256, ..., 16 channels."""
    assert [layers.num_fmaps(ModelConfig(), k - 1) for k in range(2, 11)] == [512, 512, 512, 512, 256, 128, 64, 32, 16]


def up(x: Tensor, weight: Tensor, *, fused: bool) -> Tensor:
    """Double the side and convolve, as `UpConv` does."""
    return convolve(x, layers.up_kernel(weight, fused=fused), None, layers.UP)


def down(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve and halve the side, as `DownConv` does."""
    return convolve(x, layers.down_kernel(weight), bias, layers.DOWN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_up_conv_is_upscale_then_convolution(dtype: torch.dtype) -> None:
    """Check that an unfused layer equals nearest-neighbour doubling and a plain convolution.

    A fused layer equals it with the kernel rotated by 180 degrees.
    """
    x, w = torch.randn(2, 5, 6, 6, dtype=dtype), torch.randn(3, 5, 3, 3, dtype=dtype) / 7
    plain = F.conv2d(_upscale(x), w, padding=1)
    torch.testing.assert_close(up(x, w, fused=False), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(up(x, w.rot90(2, (2, 3)), fused=True), plain, atol=1e-5, rtol=0)
    assert not torch.allclose(up(x, w, fused=True), plain, atol=1e-2)


def test_fused_up_conv_is_a_transposed_convolution() -> None:
    """Check that the fused form adds the four shifts without dividing."""
    x, w = torch.randn(2, 5, 4, 4), torch.randn(3, 5, 3, 3) / 7
    expected = F.conv_transpose2d(x, _shifts(w).transpose(0, 1), stride=2, padding=1)
    torch.testing.assert_close(up(x, w, fused=True), expected, atol=1e-5, rtol=0)


def test_down_conv_is_convolution_then_mean() -> None:
    """Check that fused and unfused give the same numbers, borders included, and that the bias is added afterwards."""
    x, w, b = torch.randn(2, 5, 8, 8), torch.randn(3, 5, 3, 3) / 7, torch.randn(3)
    unfused = F.avg_pool2d(F.conv2d(x, w, padding=1), 2) + b.view(-1, 1, 1)
    fused = F.conv2d(x, _shifts(w) * 0.25, stride=2, padding=1) + b.view(-1, 1, 1)
    torch.testing.assert_close(down(x, w, b), unfused, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused, unfused, atol=1e-5, rtol=0)


def test_up_convs_are_fused_from_128() -> None:
    """Check that the resolution of the output decides."""
    assert [UpConv(1, 1, resolution=r).fused for r in (8, 64, 128, 256)] == [False, False, True, True]


@pytest.mark.parametrize("make", [Conv, DownConv])
def test_conv_scales_its_weight_at_run_time(make: type[Conv]) -> None:
    """Check that stored weights have std 1 and used ones gain / sqrt(9 * inputs), also where the kernel becomes 4x4."""
    conv = make(64, 64)
    assert conv.weight.std().item() == pytest.approx(1, rel=0.02)
    assert conv.scale == pytest.approx(math.sqrt(2) / math.sqrt(9 * 64))
    x = torch.randn(1, 64, 8, 8)
    expected = F.conv2d(x, conv.weight * conv.scale, padding=1)
    expected = F.avg_pool2d(expected, 2) if make is DownConv else expected
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=0)


def test_dense_with_learning_rate_multiplier() -> None:
    """Check that stored weights have std 1 / lrmul, used ones gain / sqrt(inputs), and that lrmul scales the bias."""
    dense = Dense(256, 256, lrmul=0.01)
    assert dense.weight.std().item() == pytest.approx(100, rel=0.02)
    with torch.no_grad():
        dense.bias.fill_(3.0)
    effective = dense(torch.eye(256)) - dense(torch.zeros(1, 256))
    assert effective.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    torch.testing.assert_close(dense(torch.zeros(1, 256)), torch.full((1, 256), 0.03))


@pytest.mark.parametrize("function", [normalisation.instance_norm, layers.pixel_norm])
def test_first_and_second_derivatives(function) -> None:
    """Check that numeric and analytic derivatives of both orders agree in double precision."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)


def test_resampling_convolutions_have_second_derivatives() -> None:
    """Check that both can be differentiated twice by image and weight."""
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: up(x, w, fused=False), (x, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, w: down(x, w), (x, w), fast_mode=True)


def test_pixel_norm() -> None:
    """Check the root mean square over channels, with 1e-8 under the root."""
    x = torch.randn(3, 8)
    torch.testing.assert_close(layers.pixel_norm(x), x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt())
    tiny = torch.full((1, 4), 1e-4)
    torch.testing.assert_close(layers.pixel_norm(tiny), torch.full((1, 4), 1 / math.sqrt(2)))


def test_instance_norm() -> None:
    """Check for the biased variance of each image and channel, with 1e-8 under the root.

    A constant channel becomes exactly 0.
    """
    x = torch.randn(2, 3, 5, 5) * 4 + 2
    centred = x - x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(
        normalisation.instance_norm(x), centred * torch.rsqrt(centred.square().mean((2, 3), keepdim=True) + 1e-8)
    )
    small = torch.tensor([1e-4, -1e-4] * 8).view(1, 1, 4, 4)
    torch.testing.assert_close(normalisation.instance_norm(small), small / math.sqrt(2e-8))
    assert not normalisation.instance_norm(torch.full((2, 3, 4, 4), 1.37)).any()


def test_instance_norm_takes_statistics_in_single_precision() -> None:
    """Check that features in half precision keep their type while their statistics are not rounded to it."""
    x = (torch.randn(1, 2, 32, 32) * 300 + 2000).half()
    out = normalisation.instance_norm(x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), normalisation.instance_norm(x.float()), atol=2e-3, rtol=1e-3)


def test_modulate_adds_one_to_the_scale() -> None:
    """Check that the first half of the style is the scale minus one and the second half the shift."""
    x = torch.randn(2, 3, 4, 4)
    style = torch.randn(2, 6)
    torch.testing.assert_close(layers.modulate(x, style), x * (style[:, :3, None, None] + 1) + style[:, 3:, None, None])
    torch.testing.assert_close(layers.modulate(x, torch.zeros(2, 6)), x)


def _stddev(x: Tensor, groups: list[list[int]]) -> Tensor:
    """Compute one standard deviation for each group, by loops."""
    out = torch.empty(len(x))
    for group in groups:
        members = x[group]
        std = (members - members.mean(0)).square().mean(0).add(1e-8).sqrt().mean()
        out[group] = std
    return out


@pytest.mark.parametrize(
    ("n", "group", "groups"),
    [
        (8, 4, [[0, 2, 4, 6], [1, 3, 5, 7]]),
        (4, 4, [[0, 1, 2, 3]]),
        (6, 4, [[0, 2, 4], [1, 3, 5]]),  # the largest divisor of 6 not above 4 is 3
        (2, 4, [[0, 1]]),
        (5, 4, [[0], [1], [2], [3], [4]]),
    ],
)
def test_minibatch_stddev_groups(n: int, group: int, groups: list[list[int]]) -> None:
    """Check that image n is grouped with n +- N/G and that the new channel contains the number of its group."""
    x = torch.randn(n, 3, 2, 2) * torch.arange(1, n + 1).view(-1, 1, 1, 1)
    out = layers.minibatch_stddev(x, group)
    assert out.shape == (n, 4, 2, 2)
    torch.testing.assert_close(out[:, :3], x)
    torch.testing.assert_close(out[:, 3], _stddev(x, groups).view(n, 1, 1).expand(n, 2, 2))


def test_adain_is_instance_norm_then_modulation() -> None:
    """Check that `adain` equals normalisation followed by modulation."""
    x, style = torch.randn(2, 3, 5, 5), torch.randn(2, 6)
    torch.testing.assert_close(adain(x, style), layers.modulate(normalisation.instance_norm(x), style))


def test_adaptive_instance_norm_takes_over_the_statistics_of_the_style() -> None:
    """Check that each channel gets the mean and deviation of the style image, whatever its size.

    Source: Huang & Belongie 2017, equation 8.
    """
    content, style = torch.randn(2, 3, 8, 8) * 3 + 1, torch.randn(2, 3, 5, 7) * 0.5 - 2
    out = normalisation.adaptive_instance_norm(content, style)
    torch.testing.assert_close(out.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(out.std((2, 3), correction=0), style.std((2, 3), correction=0))
    torch.testing.assert_close(normalisation.adaptive_instance_norm(content, content), content, atol=1e-5, rtol=1e-5)


def test_adaptive_instance_norm_has_gradients_in_both() -> None:
    content, style = (torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(normalisation.adaptive_instance_norm, (content, style))


def test_kernels_are_stored_as_convolutions_read_them() -> None:
    """Check for channels_last with the channels in the order in which the convolution reads them.

    Otherwise every step would copy the weights, which takes as long as a small convolution.
    """
    assert DownConv(3, 5).weight.is_contiguous(memory_format=torch.channels_last)
    assert UpConv(3, 5, resolution=8).weight.transpose(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let weights be prepared once on a CPU too, as they are where there are kernels."""
    monkeypatch.setattr(convolution, "load_kernels", lambda device: object())


class Layers(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Conv(3, 3, activate=True), UpConv(3, 3, resolution=8), DownConv(3, 3)])

    def forward(self, x: Tensor) -> Tensor:
        """Apply all of them."""
        for layer in self.layers:
            x = layer(x)
        return x


def count_preparations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of a layer's class whenever its weight is prepared."""
    prepared: list[str] = []
    for kind in (Conv, UpConv, DownConv):

        def kernel(
            self: Conv,
            dtype: torch.dtype,
            kind: type[Conv] = kind,
            compute: Callable[[Conv, torch.dtype], Tensor] = kind.kernel,
        ) -> Tensor:
            prepared.append(kind.__name__)
            return compute(self, dtype)

        monkeypatch.setattr(kind, "kernel", kernel)
    return prepared


@pytest.mark.parametrize("spectral", [False, True])
def test_weights_that_are_prepared_once_have_the_same_gradients(spectral: bool, prepares: None) -> None:
    """Check a loss of two passes and a gradient penalty; spectral normalisation goes on with its power method."""
    torch.manual_seed(0)
    network = Layers()
    if spectral:
        for layer in network.layers:
            spectral_norm(layer)
    x, y = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    state = copy.deepcopy(network.state_dict())

    def gradients() -> list[Tensor]:
        network.load_state_dict(state)
        scores = network(x).square().sum((1, 2, 3))
        loss = convolution.input_gradients(scores, x).square().sum() + network(y).sin().sum() + scores.sum()
        return list(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True))

    plain = gradients()
    with convolution.prepared_weights():
        torch.testing.assert_close(gradients(), plain, rtol=1e-4, atol=1e-5)


def test_a_weight_is_prepared_once_in_a_context(prepares: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the number of preparations, and that nothing outlives the context."""
    prepared, network, x = count_preparations(monkeypatch), Layers(), torch.randn(1, 3, 4, 4)
    for _ in range(2):
        with convolution.prepared_weights():
            network(x), network(x)
        assert prepared == ["Conv", "UpConv", "DownConv"]
        prepared.clear()
    network(x), network(x)
    assert len(prepared) == 6


def test_no_stale_weight_is_used(prepares: None) -> None:
    """Check after a step of an optimizer, without and with gradients, frozen and not, and in another type."""
    network, x = Layers(), torch.randn(1, 3, 4, 4)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    with convolution.prepared_weights():
        with torch.no_grad():
            before = network(x)
        assert not before.requires_grad
        network(x).sum().backward()  # not with the weights of the pass without gradients
        assert all(layer.weight.grad is not None for layer in network.layers)
        optimizer.step()
        after = network(x)
        assert not torch.allclose(after, before)
        network.requires_grad_(False)
        assert not network(x).requires_grad
        network.requires_grad_(True)
        assert network(x).requires_grad
        assert network(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(network(x), after)


def test_weights_are_prepared_at_each_pass_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a CPU adds gradients in the order that it always did."""
    prepared, network, x = count_preparations(monkeypatch), Layers(), torch.randn(1, 3, 4, 4)
    with convolution.prepared_weights(), ops.kernels_enabled(False):
        network(x), network(x)
    assert len(prepared) == 6
