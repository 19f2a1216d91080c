"""Spectral normalisation of D: the largest singular value of every used weight is 1, whatever else is done with D."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from stylegan.config.sections import ModelConfig
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.layers import Conv, Dense
from stylegan.training import losses


def make(resolution: int = 16, *, spectral_norm: bool = True) -> Discriminator:
    """Make a small conditional discriminator with a rotation head, in double precision."""
    torch.manual_seed(0)
    model = ModelConfig(fmap_base=64, fmap_max=8, spectral_norm=spectral_norm)
    return Discriminator(model, resolution=resolution, channels=3, num_labels=2, rotation=True).double()


def images(resolution: int = 16, count: int = 8) -> torch.Tensor:
    return torch.randn(
        count, 3, resolution, resolution, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


LABELS = torch.arange(8) % 2


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return all convolutions and dense layers by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Conv | Dense)}


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all parameters and buffers."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before: dict[str, torch.Tensor], network: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers that differ from an earlier state."""
    return {
        name for name, value in network.state_dict().items() if name in before and not torch.equal(before[name], value)
    }


def test_every_layer_has_it_only_if_asked_and_without_the_equalised_factor() -> None:
    assert all(is_parametrized(layer, "weight") and layer.scale == 1 for layer in layers(make()).values())
    assert len(layers(make())) == 2 * 2 + 3 + 3 + 1  # blocks, RGB, head, rotation
    assert not any(is_parametrized(layer) for layer in layers(make(spectral_norm=False)).values())


def test_largest_singular_values_become_one() -> None:
    """Check the weights as matrices [outputs, inputs * kernel^2] after many forward passes in training.

    A full decomposition computes the singular values.
    """
    D = make()
    for _ in range(200):
        D(images(), LABELS, alpha=0.5)
        D.rotation_logits(images(), alpha=0.5)
    D.eval()
    unused = {"from_rgb.0"}  # the layer of 4x4 is not used at 16x16
    for name, layer in layers(D).items():
        sigma = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        assert sigma == pytest.approx(1, abs=1e-3 if name not in unused else 0.1), name


def test_a_slope_of_d_is_bounded() -> None:
    """Check that a layer does not enlarge differences: |f(x) - f(y)| <= |x - y| for a 1x1 convolution."""
    D = make().eval()
    x, y = images(count=2).split(1)
    layer = D.from_rgb[-1]
    assert (layer(x) - layer(y)).norm() <= (x - y).norm() * (1 + 1e-2)


def test_one_power_iteration_for_a_forward_pass_in_training_and_none_in_inference() -> None:
    D = make()
    before = state(D)
    D.eval()
    D(images(), LABELS)
    D.features(images())
    assert changed(before, D) == set()
    D.train()
    D(images(), LABELS)
    used = [name for name in layers(D) if name not in ("from_rgb.0", "from_rgb.1", "rotation")]
    assert changed(before, D) == {
        f"{name}.parametrizations.weight.0.{vector}" for name in used for vector in ("_u", "_v")
    }
    after = state(D)
    for name in used:
        prefix = f"{name}.parametrizations.weight"
        weight = before[f"{prefix}.original"].flatten(1)
        u = nn.functional.normalize(weight @ before[f"{prefix}.0._v"], dim=0)
        torch.testing.assert_close(after[f"{prefix}.0._u"], u, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(after[f"{prefix}.0._v"], nn.functional.normalize(weight.T @ u, dim=0))


def test_a_grown_d_is_normalised_too_and_keeps_what_it_had() -> None:
    D = make(8)
    before = state(D)
    D.grow()
    assert changed(before, D) == set()
    assert all(is_parametrized(layer, "weight") and layer.scale == 1 for layer in layers(D).values())
    assert D(images(), LABELS, alpha=0.3).isfinite().all()
    assert all(value.dtype == torch.float64 for value in D.state_dict().values())


def test_copies_and_loaded_weights_score_the_same_and_go_on_alike() -> None:
    """Check that copies include the vectors of the power method, which are buffers."""
    D = make()
    D(images(), LABELS)
    twin, loaded = copy.deepcopy(D), make()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.normal_()
    loaded.load_state_dict(D.state_dict())
    for other in (twin, loaded):
        scores = [network(images(), LABELS) for network in (copy.deepcopy(D), other)]
        assert torch.equal(*scores)
    D(images(), LABELS)
    for other in (twin, loaded):
        assert changed(state(other), D) == set()
        assert other.head.conv.parametrizations.weight.original is not D.head.conv.parametrizations.weight.original


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_r1_gradient_of_every_weight_is_right(alpha: float) -> None:
    """Check the double backward pass through W / sigma(W) against finite differences.

    The vectors of the power method are constant, as they are within a step.
    """
    D = make().eval()
    weights = {name: parameter for name, parameter in D.named_parameters() if name.endswith("original")}

    def penalty() -> torch.Tensor:
        reals = images().requires_grad_()
        return losses.r1_penalty(D(reals, LABELS, alpha=alpha), reals).mean()

    gradients = torch.autograd.grad(penalty(), list(weights.values()), allow_unused=True)
    unused = {name for name, gradient in zip(weights, gradients, strict=True) if gradient is None}
    assert {name.split(".parametrizations")[0] for name in unused} == {"from_rgb.0", "rotation"} | (
        {"from_rgb.1"} if alpha == 1 else set()
    )
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is None:
            continue
        # The slope along a random direction.
        direction, step, values = torch.randn_like(weight), 1e-7, []
        for sign in (1, -2):
            with torch.no_grad():
                weight.add_(direction, alpha=sign * step)
            values.append(penalty().item())
        with torch.no_grad():
            weight.add_(direction, alpha=step)
        slope = (values[0] - values[1]) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-8), name


def test_a_frozen_d_still_passes_gradients_to_images() -> None:
    D = make().requires_grad_(False)
    x = images().requires_grad_()
    D(x, LABELS).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in D.parameters())
