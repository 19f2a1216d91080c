"""Losses and penalties against numbers computed by hand, and the gradients of penalties in D's weights."""

import copy
import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from stylegan.config.sections import ModelConfig, TrainingConfig
from stylegan.networks.discriminator import Discriminator
from stylegan.training import losses
from stylegan.training.hardware import set_precision
from stylegan.training.schedule import PENALTIES


def _discriminator(resolution: int = 8, num_labels: int = 0) -> Discriminator:
    torch.manual_seed(0)
    model = ModelConfig(fmap_max=6, fmap_base=64)
    return Discriminator(model, resolution=resolution, channels=3, num_labels=num_labels).double()


def test_generator_loss_by_hand() -> None:
    """The loss is -log sigmoid(s), even where the sigmoid underflows."""
    loss = losses.generator_nonsaturating(torch.tensor([0.0, 2.0, -200.0]))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-2)), 200.0])


def test_discriminator_loss_by_hand() -> None:
    """The loss is low for high real and low fake scores, one number per image."""
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
    num_unused = 1 if alpha == 1.0 else 0  # the old fromRGB takes part only during a fade
    assert len(active) == len(weights) - num_unused
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
    """Without statistics across the batch, an image's penalty does not depend on the other images."""
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


SCORES = torch.tensor([0.0, 2.0, -3.0])


@pytest.mark.parametrize(
    ("kind", "of_score"),
    [
        ("nonsaturating", lambda s: math.log(1 + math.exp(-s))),
        ("saturating", lambda s: -math.log(1 + math.exp(s))),
        ("wgan", lambda s: -s),
        ("hinge", lambda s: -s),
    ],
)
def test_every_generator_loss_by_hand(kind: str, of_score: Callable[[float], float]) -> None:
    """One number per image; all of them fall when the scores of fakes rise."""
    assert losses.GENERATOR[kind](SCORES).tolist() == pytest.approx([of_score(s) for s in SCORES.tolist()])
    assert (losses.GENERATOR[kind](SCORES + 1) < losses.GENERATOR[kind](SCORES)).all()


@pytest.mark.parametrize(
    ("kind", "of_scores"),
    [
        ("nonsaturating", lambda r, f: math.log(1 + math.exp(f)) + math.log(1 + math.exp(-r))),
        ("saturating", lambda r, f: math.log(1 + math.exp(f)) + math.log(1 + math.exp(-r))),
        ("wgan", lambda r, f: f - r),
        ("hinge", lambda r, f: max(0, 1 + f) + max(0, 1 - r)),
    ],
)
def test_every_discriminator_loss_by_hand(kind: str, of_scores: Callable[[float, float], float]) -> None:
    """One number per pair; the hinge is flat beyond the margins, as at the last pair."""
    reals = torch.tensor([0.5, -1.0, 2.0])
    expected = [of_scores(r, f) for r, f in zip(reals.tolist(), SCORES.tolist(), strict=True)]
    assert losses.DISCRIMINATOR[kind](reals, SCORES).tolist() == pytest.approx(expected)


def test_the_games_are_those_of_the_config() -> None:
    kinds = set(get_args(TrainingConfig.model_fields["loss"].annotation))
    assert losses.GENERATOR.keys() == losses.DISCRIMINATOR.keys() == kinds


def _linear(weight: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return (images * weight).sum((1, 2, 3))


@pytest.mark.parametrize(("target", "levels"), [(1.0, 0), (750.0, 0), (1.0, 2)])
def test_norm_penalty_of_a_linear_critic(target: float, levels: int) -> None:
    """D(x) = <w, x> has the slope w everywhere, so the penalty (2^-levels |w| / t - 1)^2 and its gradient are known."""
    weight = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = losses.norm_penalty(_linear(weight, images), images, target=target, levels_below=levels)
    scale = 2.0**-levels / target
    norm = weight.detach().norm()
    torch.testing.assert_close(penalty, ((scale * norm - 1) ** 2).expand(3))
    (gradient,) = torch.autograd.grad(penalty.mean(), weight)
    torch.testing.assert_close(gradient, 2 * (scale * norm - 1) * scale * weight.detach() / norm)


def test_norm_penalty_is_taken_at_the_final_resolution() -> None:
    """Enlarged images that D averages down again have gradients 2^-levels as long."""
    network, native = _discriminator(), torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    full = F.interpolate(native.detach(), scale_factor=4).requires_grad_()
    at_native = losses.norm_penalty(network(native), native, target=0.1, levels_below=2)
    at_full = losses.norm_penalty(network(F.avg_pool2d(full, 4)), full, target=0.1)
    torch.testing.assert_close(at_native, at_full)


def test_norm_penalty_without_a_slope() -> None:
    """At a gradient of exactly zero the penalty is (0 - t)^2 / t^2 = 1 and moves nothing; sqrt would give NaN."""
    weight = torch.zeros(1, 4, 4, requires_grad=True)
    images = torch.randn(3, 1, 4, 4, requires_grad=True)
    penalty = losses.norm_penalty(_linear(weight, images), images, target=2.0)
    assert penalty.tolist() == [1, 1, 1]
    (gradient,) = torch.autograd.grad(penalty.sum(), weight)
    assert gradient.count_nonzero() == 0
    half = torch.zeros(3, 1, 4, 4)  # only the second image has a slope
    half[1] = 1
    tilted = half.clone().requires_grad_()
    losses.norm_penalty(_linear(tilted, images), images).sum().backward()
    assert tilted.grad is not None
    assert tilted.grad.isfinite().all()
    assert tilted.grad.flatten(1).any(1).tolist() == [False, True, False]


def test_penalties_have_their_weights_and_their_metrics_have_none() -> None:
    """The weights are gamma / 2 for R1 and R2 and gp_weight for WGAN-GP, for a final resolution two levels up."""
    images = [torch.randn(2, 1, 4, 4, requires_grad=True) for _ in range(3)]
    slopes = [torch.full((1, 4, 4), value) for value in (1.0, 2.0, 3.0)]  # squared norms 16, 64, 144
    scored = {name: (x, _linear(slope, x)) for name, x, slope in zip(("r1", "r2", "gp"), images, slopes, strict=True)}
    training = TrainingConfig(r1_gamma=10, r2_gamma=6, gp_weight=7, gp_target=2)
    total, means = losses.penalties(training, 2, scored)
    assert {name: mean.item() for name, mean in means.items()} == pytest.approx(
        {"loss/r1": 16, "loss/r2": 64, "loss/gp": 0.25}
    )
    assert total.item() == pytest.approx(10 / 16 / 2 * 16 + 6 / 16 / 2 * 64 + 7 * 0.25)
    assert set(means) == set(PENALTIES)


@pytest.mark.parametrize(
    ("penalty", "levels_below", "log2_scale"),
    [("r1", 7, 8), ("r1", 7, 16), ("r1", 7, 22), ("r1", 0, 16), ("gp", 0, 10)],
)
def test_penalties_in_half_precision_move_the_weights_as_in_double(
    penalty: str, levels_below: int, log2_scale: int
) -> None:
    """Also at the 8x8 stage of a run to 1024x1024 with a batch of 128, whose weight is 10 / 4^7 / 128."""
    torch.manual_seed(0)
    training = TrainingConfig(
        r1_gamma=10.0 if penalty == "r1" else 0.0, gp_weight=10.0 if penalty == "gp" else 0.0, gp_target=1.0
    )
    model = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=16, fmap_base=256, fmap_max=16)
    D, images = Discriminator(model, resolution=8, channels=3), torch.rand(128 if levels_below else 16, 3, 8, 8) * 2 - 1

    def weight_gradients(precision: str, scale: torch.Tensor | None) -> torch.Tensor:
        network, x = copy.deepcopy(D), images.clone()
        if scale is None:
            network, x = network.double(), x.double()
        else:
            set_precision(network, precision)
        scores = network(x.requires_grad_())
        total, _ = losses.penalties(training, levels_below, {penalty: (x, scores)}, scale=scale)
        (total if scale is None else total * scale).backward()
        found = [p.grad.double().flatten() for p in network.parameters() if p.grad is not None]
        return torch.cat(found) / (1 if scale is None else scale.double())

    exact, half = weight_gradients("fp32", None), weight_gradients("fp16", torch.tensor(2.0**log2_scale))
    assert float((half - exact).norm() / exact.norm()) < 0.02


def test_inner_scale_is_a_power_of_two_that_splits_the_scale_evenly() -> None:
    assert losses.inner_scale(None, 1.0, 4) is None
    inner = losses.inner_scale(torch.tensor(2.0**16), 5 / 4**7, 128)
    assert inner is not None
    assert float(inner) == 0.5  # sqrt(65536 * 2 * 5 / 16384 / 128) = 0.56
