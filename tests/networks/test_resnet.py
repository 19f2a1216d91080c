"""The pair of Miyato et al. 2018: its sizes, and equality with the plain pair of the benchmarks.

The plain networks run in double precision, as in `test_against_plain`.
"""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from benchmarks.compare import assert_near
from benchmarks.plain_resnet import PlainResNetDiscriminator, PlainResNetGenerator
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from stylegan.config.sections import ModelConfig, Norm
from stylegan.errors import StepError
from stylegan.networks.discriminator import make_discriminator
from stylegan.networks.generator import Generator
from stylegan.networks.layers import Conv, Dense
from stylegan.networks.normalisation import Normalisation, of_batch, settle
from stylegan.networks.resnet import SHAPES, ResNetDiscriminator, add_enlarged
from stylegan.networks.weights import load_generator, save_discriminator, save_generator
from stylegan.training import losses

Numbers = dict[str, Tensor | None]
N, LATENT, CLASSES = 4, 6, 3
DATA = {"rgb": (3, 0), "rgb, 3 classes": (3, CLASSES), "grey": (1, 0)}  # channels, labels
NORMS = get_args(Norm)
WIDTHS = {32: 0.05, 64: 0.02, 128: 0.02}
# Types of the weights and of the features, and what values and derivatives may deviate by, relative to their norm.
PRECISIONS = {
    "fp64": (torch.float64, None, 1e-10, 1e-10),
    "fp32": (torch.float32, None, 1e-5, 1e-5),
    "bf16": (torch.float32, torch.bfloat16, 0.05, 0.25),
}
every_data = pytest.mark.parametrize("data", DATA)
every_norm = pytest.mark.parametrize("norm", NORMS)
every_resolution = pytest.mark.parametrize("resolution", SHAPES)


def settings(resolution: int, data: str, **switches: object) -> ModelConfig:
    small = {"architecture": "resnet", "latent_size": LATENT, "width": WIDTHS[resolution], "spectral_norm": True}
    return ModelConfig(**small, conditional=DATA[data][1] > 0, **switches)


def networks(resolution: int = 32, data: str = "rgb", **switches: object) -> tuple[Generator, ResNetDiscriminator]:
    """Return the pair in double precision; single precision represents its weights, none of which is constant."""
    torch.manual_seed(0)
    model, (channels, num_labels) = settings(resolution, data, **switches), DATA[data]
    G = Generator(model, resolution=resolution, channels=channels, num_labels=num_labels)
    D = make_discriminator(model, resolution=resolution, channels=channels, num_labels=num_labels, rotation=True)
    assert isinstance(D, ResNetDiscriminator)
    for parameter in [*G.parameters(), *D.parameters()]:
        if parameter.detach().unique().numel() <= 2:
            parameter.data += torch.randn_like(parameter) * 0.3
    return G.double(), D.double()


def plain(network: Generator | ResNetDiscriminator) -> nn.Module:
    """Return the plain network with the same weights, in double precision."""
    sizes = {"resolution": network.resolution, "channels": network.channels, "num_labels": network.num_labels}
    if isinstance(network, Generator):
        made: nn.Module = PlainResNetGenerator(network.model, **sizes)
        made.load_state_dict(network.synthesis.state_dict())
    else:
        made = PlainResNetDiscriminator(network.model, **sizes, rotation=True)
        made.load_state_dict(network.state_dict())
    return made.double()


def labels_of(data: str) -> Tensor | None:
    return torch.arange(N) % CLASSES if DATA[data][1] else None


def inputs(data: str, resolution: int) -> tuple[Tensor, Tensor]:
    """Return latents and images that single precision represents."""
    random = torch.Generator().manual_seed(1)
    z = torch.randn(N, LATENT, generator=random)
    coarse, fine = (torch.randn(N, DATA[data][0], side, side, generator=random) for side in (4, resolution))
    return z, F.interpolate(coarse, resolution) / 2 + fine / 2


def gradients(loss: Tensor, network: nn.Module, **others: Tensor) -> Numbers:
    """Return the gradient of every parameter and of other tensors, by name."""
    named = dict(network.named_parameters()) | others
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def generator_numbers(G: nn.Module, z: Tensor, labels: Tensor | None, direction: Tensor) -> tuple[Numbers, Numbers]:
    """Compute images in training mode, and the gradients of their weighted sum, by the names of `synthesis`."""
    z = z.to(next(G.parameters())).requires_grad_()
    images = G(z, labels)
    return {"images": images}, gradients((images * direction.to(images)).sum(), getattr(G, "synthesis", G), z=z)


def discriminator_numbers(
    D: nn.Module, images: Tensor, labels: Tensor | None, direction: Tensor
) -> tuple[Numbers, Numbers]:
    """Compute scores, rotation logits, R1 and WGAN-GP's penalty, and the gradients of their weighted sums."""
    images = images.to(next(D.parameters())).requires_grad_()
    direction = direction.to(images)
    scores, logits = D(images, labels), D.rotation_logits(images)
    found = gradients((scores * direction[:, 0]).sum() + (logits * direction).sum(), D, images=images)
    scored = D(images, labels)
    r1, gp = losses.r1_penalty(scored, images), losses.norm_penalty(scored, images, target=1.0)
    second = gradients(((r1 + gp) * direction[:, 0]).sum(), D)
    values = {"scores": scores, "logits": logits, "r1": r1, "gp": gp}
    return values, found | {f"second of {name}": value for name, value in second.items()}


def compare(network: Generator | ResNetDiscriminator, data: str, precision: str) -> None:
    """Compare the network in the given precision with plain in double precision, tensor by tensor."""
    weights, features, values, derivatives = PRECISIONS[precision]
    yardstick, (z, images), labels = plain(network), inputs(data, network.resolution), labels_of(data)
    network.to(weights)
    for module in network.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = features
    if isinstance(network, Generator):
        ours, expected = (generator_numbers(each, z, labels, images) for each in (network, yardstick))
    else:
        direction = torch.randn(N, 4, generator=torch.Generator().manual_seed(2))
        ours, expected = (discriminator_numbers(each, images, labels, direction) for each in (network, yardstick))
    # A bias in front of a batch normalisation has no gradient but what rounding leaves.
    least = 0.05 if features is None else 0.1
    for allowed, mine, theirs in zip((values, derivatives), ours, expected, strict=True):
        largest = max(tensor.norm().item() for tensor in theirs.values() if tensor is not None)
        assert_near(mine, theirs, allowed=allowed, least=least * largest)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@every_data
@every_resolution
def test_generator(resolution: int, data: str, precision: str) -> None:
    """Compare images of a batch, and the gradient of every parameter and latent."""
    compare(networks(resolution, data)[0], data, precision)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@every_data
@every_resolution
def test_discriminator(resolution: int, data: str, precision: str) -> None:
    """Compare all outputs and penalties, the gradient of every parameter and image, and those of the penalties."""
    compare(networks(resolution, data)[1], data, precision)


@every_norm
def test_every_normalisation(norm: Norm) -> None:
    data = "rgb, 3 classes"
    compare(networks(data=data, norm=norm)[0], data, "fp64")


@pytest.mark.parametrize("norm", ["self_modulated", "adaptive_instance"])
def test_modulation_without_classes(norm: Norm) -> None:
    compare(networks(norm=norm)[0], "rgb", "fp64")


@pytest.mark.parametrize("index", [0, 1], ids=["G", "D"])
def test_low_precision(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with more channels, so that a single unit on the wrong side of zero does not matter."""
    monkeypatch.setitem(WIDTHS, 32, 0.25)
    compare(networks()[index], "rgb", "bf16")


def test_without_spectral_normalisation() -> None:
    _, D = networks()
    model = D.model.model_copy(update={"spectral_norm": False})
    compare(ResNetDiscriminator(model, resolution=32, channels=3, rotation=True).double(), "rgb", "fp64")


@pytest.mark.parametrize(
    ("resolution", "channels", "num_labels", "generator", "discriminator"),
    [
        (32, 3, 0, 4_276_739, 1_053_825),
        (32, 3, 10, 4_304_387, 1_055_105),
        (32, 1, 0, 4_272_129, 1_051_265),
        (64, 3, 0, 12_220_675, 10_141_441),
        (64, 3, 10, 12_272_515, 10_151_681),
        (64, 1, 0, 12_219_521, 10_140_161),
        (128, 3, 0, 32_150_787, 29_017_857),
        (128, 3, 10, 32_239_491, 29_028_097),
        (128, 1, 0, 32_149_633, 29_016_577),
    ],
)
def test_number_of_parameters(
    resolution: int, channels: int, num_labels: int, generator: int, discriminator: int
) -> None:
    """Check the published sizes, with a latent of 128 numbers."""
    model = ModelConfig(architecture="resnet", latent_size=128, conditional=num_labels > 0)
    sizes = {"resolution": resolution, "channels": channels, "num_labels": num_labels}
    with torch.device("meta"):
        pair = Generator(model, **sizes), make_discriminator(model, **sizes)
    assert [sum(p.numel() for p in network.parameters()) for network in pair] == [generator, discriminator]


@every_data
@every_resolution
def test_shapes(resolution: int, data: str) -> None:
    G, D = networks(resolution, data)
    D.eval()  # in training each pass estimates the singular values anew
    (z, images), labels, (channels, num_labels) = inputs(data, resolution), labels_of(data), DATA[data]
    made = G(z.double(), labels)
    assert made.shape == (N, channels, resolution, resolution)
    assert made.abs().max() <= 1
    assert (G.num_layers, G.w_avg.numel()) == (1, LATENT + num_labels)
    assert D(images.double(), labels).shape == (N,)
    shape, maps = SHAPES[resolution], D.layer_maps(images.double())
    sides = [resolution >> min(number, shape.halvings) for number in range(1, len(maps) + 1)]
    widths = [round(number * WIDTHS[resolution]) for number in shape.discriminator]
    assert [tuple(m.shape[1:]) for m in maps] == [
        (width, side, side) for width, side in zip(widths, sides, strict=True)
    ]
    torch.testing.assert_close(D.features(images.double()), F.relu(maps[-1]).sum((2, 3)))
    assert D.rotation_logits(images.double()).shape == (N, 4)


def test_first_weights_are_glorots() -> None:
    """Check the deviation, and biases of 0: gain sqrt(2) in the blocks, 1 beside them and for colours."""
    torch.manual_seed(0)
    model = ModelConfig(architecture="resnet", latent_size=128)
    G, D = Generator(model, resolution=32, channels=3), make_discriminator(model, resolution=32, channels=3)
    for name, layer in [*G.named_modules(), *D.named_modules()]:
        if isinstance(layer, Conv | Dense) and layer.weight.numel() > 1000:
            outs, ins = layer.weight.shape[0] * layer.weight[0, 0].numel(), layer.weight[0].numel()
            gain = 2**0.5 if name.endswith(("conv0", "conv1")) else 1.0
            assert layer.weight.std().item() == pytest.approx(gain * (2 / (outs + ins)) ** 0.5, rel=0.05), name
        if isinstance(layer, Conv | Dense) and layer.bias is not None:
            assert not layer.bias.any()


def test_the_rotation_head_leaves_all_other_weights_alone() -> None:
    model, made = settings(32, "rgb"), []
    for rotation in (False, True):
        torch.manual_seed(3)
        made.append(ResNetDiscriminator(model, resolution=32, channels=3, rotation=rotation))
    without, with_head = (network.state_dict() for network in made)
    assert all(
        torch.equal(value, with_head[name]) for name, value in without.items() if "_u" not in name and "_v" not in name
    )
    with pytest.raises(StepError, match="no rotation head"):
        made[0].rotation_logits(torch.randn(4, 3, 32, 32))


def test_largest_singular_values_become_one() -> None:
    """Check all layers of D, heads included, after many steps of the power method."""
    _, D = networks(data="rgb, 3 classes")
    layers = [layer for layer in D.modules() if isinstance(layer, Conv | Dense)]
    assert len(layers) == 2 * 4 + 2 + 3
    for layer in layers:
        for _ in range(200):
            layer.train().weight  # noqa: B018
        layer.eval()
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


@every_norm
def test_a_settled_generator_makes_each_image_alone(norm: Norm) -> None:
    """Check that an image of the averaged G depends on its own latent only, however large the batch is."""
    G, _ = networks(data="rgb, 3 classes", norm=norm)
    z, labels = inputs("rgb", 32)[0].double(), labels_of("rgb, 3 classes")
    settle(
        G, of_batch(G), lambda: [G(torch.randn(16, LATENT).double(), torch.arange(16) % 3) for _ in range(4)] and None
    )
    G.eval()
    torch.testing.assert_close(G(z[:1], labels[:1]), G(z, labels)[:1])
    in_training = G.train()(z, labels)
    of_images = norm in ("instance", "conditional_instance", "adaptive_instance")
    assert torch.allclose(G.eval()(z, labels), in_training) == (of_images)


def test_settling_on_the_batch_itself_changes_nothing() -> None:
    """Check that evaluation by a batch's own statistics gives the images of training."""
    G, _ = networks()
    z = inputs("rgb", 32)[0].double()
    expected = G(z)
    settle(G, of_batch(G), lambda: (G(z), None)[1])
    torch.testing.assert_close(G.eval()(z), expected)


@every_norm
def test_a_generator_comes_back_from_its_file(norm: Norm) -> None:
    """Check that standing statistics come back, too, and that images are the same to the bit."""
    G, _ = networks(data="rgb, 3 classes", norm=norm)
    G.float()
    for layer in of_batch(G):
        layer.mean.normal_()
        layer.variance.uniform_(0.5, 2)
    loaded, names = load_generator(save_generator(G, ["a", "b", "c"]))
    assert names == ("a", "b", "c")
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in G.state_dict().items())
    z, labels = inputs("rgb", 32)[0], labels_of("rgb, 3 classes")
    assert torch.equal(loaded(z, labels), G.eval()(z, labels))
    norms = {layer.norm for layer in loaded.modules() if isinstance(layer, Normalisation)}
    assert norm in norms


def test_a_discriminator_comes_back_from_its_file() -> None:
    _, D = networks(data="rgb, 3 classes")
    D.float().eval()
    rebuilt = make_discriminator(D.model, resolution=32, channels=3, num_labels=CLASSES, rotation=True).eval()
    rebuilt.load_state_dict(safetensors_torch.load(save_discriminator(D, ["a", "b", "c"])))
    images, labels = inputs("rgb", 32)[1], labels_of("rgb, 3 classes")
    assert torch.equal(rebuilt(images, labels), D(images, labels))
    assert torch.equal(rebuilt.rotation_logits(images), D.rotation_logits(images))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_add_enlarged(order: torch.memory_format) -> None:
    """Check values and derivatives, and that the result has the memory format of the inputs."""
    y, coarse = (
        torch.randn(2, 3, side, side, dtype=torch.float64).to(memory_format=order).requires_grad_() for side in (8, 4)
    )
    expected = y + F.interpolate(coarse, scale_factor=2, mode="nearest")
    ours, direction = add_enlarged(y.clone(), coarse), torch.randn_like(expected)
    torch.testing.assert_close(ours, expected)
    assert ours.is_contiguous(memory_format=order)
    for mine, other in zip(
        *(torch.autograd.grad(out, (y, coarse), direction) for out in (ours, expected)), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("resolution", [16, 256])
def test_other_resolutions_are_refused(resolution: int) -> None:
    model = settings(32, "rgb")
    for make in (Generator, make_discriminator):
        with pytest.raises(StepError, match=rf"resolution {resolution}: .* \[32, 64, 128\] only"):
            make(model, resolution=resolution, channels=3)


def test_conditional_networks_need_labels_and_none_truncates() -> None:
    G, D = networks(data="rgb, 3 classes")
    z, images = inputs("rgb", 32)
    with pytest.raises(StepError, match="this generator is conditional"):
        G(z.double())
    with pytest.raises(StepError, match="this discriminator is conditional"):
        D(images.double())
    with pytest.raises(StepError, match=r"psi=0.5: .* no w to truncate"):
        networks()[0](z.double(), truncation_psi=0.5)
