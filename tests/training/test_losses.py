"""Losses by hand, and R1 as a function that D's weights can learn from."""

import math

import pytest
import torch
import torch.nn.functional as F

from stylegan.config import ModelConfig
from stylegan.networks.discriminator import Discriminator
from stylegan.training import losses


def _discriminator(resolution: int = 8, num_labels: int = 0) -> Discriminator:
    torch.manual_seed(0)
    model = ModelConfig(fmap_max=6, fmap_base=64)
    return Discriminator(model, resolution=resolution, channels=3, num_labels=num_labels).double()


def test_generator_loss_by_hand() -> None:
    """-log sigmoid(s), also where the sigmoid underflows."""
    loss = losses.generator_nonsaturating(torch.tensor([0.0, 2.0, -200.0]))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-2)), 200.0])


def test_discriminator_loss_by_hand() -> None:
    """Low for high real and low fake scores, one number per image."""
    loss = losses.discriminator_nonsaturating(torch.tensor([0.0, 1.0, -100.0]), torch.tensor([0.0, -3.0, 100.0]))
    expected = [2 * math.log(2), math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1)), 200.0]
    assert loss.tolist() == pytest.approx(expected)


def test_r1_of_a_quadratic() -> None:
    """For D(x) = sum of a x^2 the penalty is the sum of (2 a x)^2, image by image."""
    reals = torch.randn(3, 2, 4, 4, requires_grad=True)
    scores = (5 * reals.square()).sum((1, 2, 3))
    penalty = losses.r1_penalty(scores, reals)
    torch.testing.assert_close(penalty, (10 * reals).square().sum((1, 2, 3)))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_r1_gradient_of_every_weight_is_right(alpha: float) -> None:
    """The penalty's slope along a random direction of all of D's weights agrees with finite differences."""
    network, images = _discriminator(num_labels=2), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0])
    weights = [parameter for name, parameter in network.named_parameters() if name.endswith("weight")]

    def penalty() -> torch.Tensor:
        reals = images.clone().requires_grad_()
        return losses.r1_penalty(network(reals, labels, alpha=alpha), reals).mean()

    gradients = torch.autograd.grad(penalty(), weights, allow_unused=True)
    active = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
    assert len(active) == len(weights) - (alpha == 1.0)  # the old fromRGB takes part only while fading
    for weight, gradient in active:
        direction, step = torch.randn_like(weight), 1e-6
        with torch.no_grad():
            weight.add_(direction, alpha=step)
        above = penalty().item()
        with torch.no_grad():
            weight.sub_(direction, alpha=2 * step)
        below = penalty().item()
        with torch.no_grad():
            weight.add_(direction, alpha=step)
        assert (gradient * direction).sum().item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-8)


def test_r1_belongs_to_the_image() -> None:
    """With no statistics across the batch, an image's penalty does not depend on the others."""
    torch.manual_seed(0)
    network = Discriminator(ModelConfig(fmap_max=6, fmap_base=64, mbstd_group=1), resolution=8, channels=3)
    reals = torch.randn(4, 3, 8, 8, requires_grad=True)
    together = losses.r1_penalty(network(reals), reals)
    alone = torch.cat([losses.r1_penalty(network(reals[i : i + 1]), reals)[i : i + 1] for i in range(4)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_native_gamma_makes_up_for_the_resolution(levels: int) -> None:
    """gamma times the penalty at full resolution equals native_gamma times the penalty at the native one."""
    network, native = _discriminator(), torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    full = F.interpolate(native.detach(), scale_factor=2**levels).requires_grad_()
    at_native = losses.r1_penalty(network(native), native)
    at_full = losses.r1_penalty(network(F.avg_pool2d(full, 2**levels)), full)
    torch.testing.assert_close(10 * at_full, losses.native_gamma(10, levels) * at_native)
    assert losses.native_gamma(10, 7) == 10 / 16384
