"""Comparison of the discriminator with published parameter counts and a literal implementation of its formulas."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.discriminator import Discriminator

SMALL = {"fmap_max": 6, "fmap_base": 64}


def _discriminator(
    resolution: int = 16, num_labels: int = 0, rotation: bool = False, **switches: object
) -> Discriminator:
    """Make a small network whose biases are not 0."""
    torch.manual_seed(0)
    shape = {"resolution": resolution, "channels": 3, "num_labels": num_labels}
    network = Discriminator(ModelConfig(**(SMALL | switches)), **shape, rotation=rotation)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.randn(parameter.shape) * 0.3
    return network


@pytest.mark.parametrize(
    ("resolution", "count"),
    [(1024, 23_087_249), (512, 23_080_225), (256, 23_052_353), (128, 22_941_313), (64, 22_498_049), (32, 20_726_785)],
)
def test_parameter_count(resolution: int, count: int) -> None:
    """Check that networks of all sizes have exactly as many parameters as the official ones."""
    with torch.device("meta"):
        network = Discriminator(ModelConfig(), resolution=resolution, channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def _act(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, 0.2 * x)


def _conv(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Apply an equalised convolution without bias, gain sqrt(2)."""
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight * math.sqrt(2 / (weight[0].numel())), padding=weight.shape[-1] // 2)


def _bias(state: dict[str, Tensor], name: str) -> Tensor:
    return state[f"{name}.bias"].reshape(1, -1, 1, 1)


def _reference(
    state: dict[str, Tensor], images: Tensor, *, alpha: float, model: ModelConfig, last: str = "head.dense1"
) -> Tensor:
    """Compute logits from the weights alone: plain convolutions, blur, means, and one group of four by hand."""
    levels = int(math.log2(images.shape[-1])) - 2
    x = _act(_conv(images, state, f"from_rgb.{levels}") + _bias(state, f"from_rgb.{levels}"))
    for level in range(levels - 1, -1, -1):
        x = _act(_conv(x, state, f"blocks.{level}.conv0") + _bias(state, f"blocks.{level}.conv0"))
        if model.blur:
            kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=x.dtype) / 16
            x = F.conv2d(x, kernel.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])
        x = F.avg_pool2d(_conv(x, state, f"blocks.{level}.conv1_down"), 2)
        x = _act(x + _bias(state, f"blocks.{level}.conv1_down"))
        if level == levels - 1:
            old = _act(_conv(F.avg_pool2d(images, 2), state, f"from_rgb.{level}") + _bias(state, f"from_rgb.{level}"))
            x = alpha * x + (1 - alpha) * old
    if model.mbstd_group > 1:
        std = torch.sqrt((x - x.mean(0)).square().mean(0) + 1e-8).mean()
        x = torch.cat([x, std.expand(len(x), 1, 4, 4)], 1)
    x = _act(_conv(x, state, "head.conv") + _bias(state, "head.conv")).reshape(len(x), -1)
    x = _act(x @ state["head.dense0.weight"].T * math.sqrt(2 / x.shape[1]) + state["head.dense0.bias"])
    return x @ state[f"{last}.weight"].T / math.sqrt(x.shape[1]) + state[f"{last}.bias"]


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("switches", [{}, {"blur": False}, {"mbstd_group": 1}])
def test_scores_match_the_formulas(switches: dict[str, object], alpha: float) -> None:
    """Check the order of blur, convolution, downscaling, bias and activation, the gains and the fade-in.

    The expected scores come from a literal implementation.
    """
    network = _discriminator(**switches).double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    expected = _reference(network.state_dict(), images, alpha=alpha, model=network.model)[:, 0]
    scores = network(images, alpha=alpha)
    assert scores.shape == (4,)
    torch.testing.assert_close(scores, expected, atol=1e-9, rtol=1e-9)


def test_label_picks_its_logit() -> None:
    """Check that with labels the score is the logit of the image's class, and that missing labels raise one line."""
    network = _discriminator(num_labels=3).double()
    images, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([2, 0, 1, 1])
    logits = _reference(network.state_dict(), images, alpha=1.0, model=network.model)
    scores = network(images, labels)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(scores, logits[torch.arange(4), labels])
    assert not torch.allclose(scores, network(images, (labels + 1) % 3), atol=1e-3)
    with pytest.raises(StepError, match=r"^labels=None: [^\n]*from 0 to 2$"):
        network(images)


def test_unconditional_ignores_labels() -> None:
    """Check that an unconditional network accepts and ignores the labels of the data."""
    network, images = _discriminator(), torch.randn(2, 3, 16, 16)
    assert torch.equal(network(images, torch.tensor([0, 1])), network(images))


def test_fade_is_continuous_at_both_ends() -> None:
    """Check that alpha 0 is exactly the smaller network on box-downscaled images and alpha near 1 is no fade-in.

    At 4x4 there is no fade-in.
    """
    network, images = _discriminator(8), torch.randn(4, 3, 16, 16)
    before = network(F.avg_pool2d(images, 2))
    network.grow()
    assert torch.equal(network(images, alpha=0.0), before)
    torch.testing.assert_close(network(images, alpha=1 - 1e-6), network(images), atol=1e-4, rtol=0)
    assert not torch.allclose(network(images), before, atol=1e-3)
    small = F.avg_pool2d(images, 4)
    assert torch.equal(_discriminator(4)(small, alpha=0.5), _discriminator(4)(small))


def test_grow_keeps_every_old_parameter() -> None:
    """Check that old parameters are the same objects with the same bits, and that a block and a fromRGB are added."""
    network = _discriminator(8)
    parameters, state = dict(network.named_parameters()), copy.deepcopy(network.state_dict())
    network.grow()
    grown = dict(network.named_parameters())
    assert network.resolution == 16
    assert all(
        grown[name] is parameter and torch.equal(parameter, state[name]) for name, parameter in parameters.items()
    )
    assert {name.rsplit(".", 1)[0] for name in set(grown) - set(parameters)} == {
        "blocks.1.conv0",
        "blocks.1.conv1_down",
        "from_rgb.2",
    }


def test_grown_and_large_networks_start_alike() -> None:
    """Check that weights depend on torch's random state only and are drawn from coarse to fine."""
    torch.manual_seed(1)
    small = Discriminator(ModelConfig(**SMALL), resolution=8, channels=1)
    small.grow()
    torch.manual_seed(1)
    large = Discriminator(ModelConfig(**SMALL), resolution=16, channels=1)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), large.state_dict().values(), strict=True))


def test_last_dense_layer_has_gain_one() -> None:
    """Check that the last layer has gain 1 and every other layer gain sqrt(2)."""
    head = Discriminator(ModelConfig(fmap_max=64), resolution=4, channels=3).head
    assert head.dense1.scale == pytest.approx(1 / 8)
    assert head.dense0.scale == pytest.approx(math.sqrt(2 / (64 * 16)))
    assert head.conv.scale == pytest.approx(math.sqrt(2 / (9 * 65)))


def test_odd_batches_are_scored() -> None:
    """Check that a batch is split into smaller groups if the group size does not divide it."""
    assert _discriminator()(torch.randn(5, 3, 16, 16)).shape == (5,)
    assert _discriminator()(torch.randn(1, 3, 16, 16)).shape == (1,)
    assert _discriminator(mbstd_group=2)(torch.randn(4, 3, 16, 16)).shape == (4,)


def _rotated(images: Tensor) -> Tensor:
    """Return images [n, C, r, r] in all four rotations [4n, C, r, r]."""
    return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(4)])


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("num_labels", [0, 3])
def test_rotation_logits_match_the_formulas(num_labels: int, alpha: float) -> None:
    """Check for a dense layer of gain 1 on the input of the score layer.

    The mini-batch standard deviation is taken over the four rotations of one image.
    """
    network = _discriminator(num_labels=num_labels, rotation=True).double()
    images = _rotated(torch.randn(1, 3, 16, 16, dtype=torch.float64))
    expected = _reference(network.state_dict(), images, alpha=alpha, model=network.model, last="rotation")
    logits = network.rotation_logits(images, alpha=alpha)
    assert logits.shape == (4, 4)
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("group", [4, 2, 8])
def test_rotation_of_an_image_depends_on_nothing_else(group: int) -> None:
    """Check that the logits depend neither on other images nor on which rotation counts as upright.

    So the batch never gives the answer away.
    """
    network = _discriminator(rotation=True, mbstd_group=group).double()
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    together = network.rotation_logits(_rotated(images)).unflatten(0, (4, 8))
    for n, image in enumerate(images):
        alone = network.rotation_logits(_rotated(image[None]))
        torch.testing.assert_close(together[:, n], alone)
        torch.testing.assert_close(
            network.rotation_logits(_rotated(torch.rot90(image[None], 1, (2, 3)))), alone.roll(-1, 0)
        )


def test_score_is_linear_in_the_features() -> None:
    """Check that `features` returns the input of the last layer, for the same mini-batch groups as a score."""
    network, images = _discriminator(rotation=True), torch.randn(8, 3, 16, 16)
    features = network.features(images, alpha=0.4)
    assert features.shape == (8, SMALL["fmap_max"])
    assert torch.equal(network.head.dense1(features).squeeze(1), network(images, alpha=0.4))


def test_rotation_head_changes_no_other_weight() -> None:
    """Check that the head leaves all other weights as they are, and that rotation logits without it raise StepError."""
    with_head, without = (_discriminator(rotation=rotation) for rotation in (True, False))
    states = with_head.state_dict(), without.state_dict()
    assert states[0].keys() - states[1].keys() == {"rotation.weight", "rotation.bias"}
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items() if name.endswith("weight"))
    with pytest.raises(StepError, match=r"^this discriminator has no rotation head; [^\n]*training\.rotation[^\n]*$"):
        without.rotation_logits(torch.randn(4, 3, 16, 16))
