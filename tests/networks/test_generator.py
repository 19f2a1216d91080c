"""Comparison of the generator with published parameter counts and a literal implementation of its formulas."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.generator import Generator, mix, random_noise

SMALL = {"latent_size": 12, "mapping_fmaps": 10, "mapping_layers": 3, "fmap_max": 6, "fmap_base": 128}
TABLE_1 = {  # config letter -> switches (Karras et al. 2019, table 1)
    "B": {
        "styles": False,
        "const_input": False,
        "noise": False,
        "pixel_norm": True,
        "instance_norm": False,
        "mapping_layers": 0,
    },
    "C": {"const_input": False, "noise": False},
    "D": {"noise": False},
    "E": {},
    "F without blur": {"blur": False},
}


def _generator(resolution: int = 16, num_labels: int = 0, **switches: object) -> Generator:
    torch.manual_seed(0)
    return Generator(ModelConfig(**(SMALL | switches)), resolution=resolution, channels=3, num_labels=num_labels)


def _shake(generator: Generator) -> Generator:
    """Give random values to the parameters that start constant (biases, noise weights), so that mix-ups show."""
    for parameter in generator.parameters():
        if parameter.detach().unique().numel() == 1:
            parameter.data += torch.randn(parameter.shape, dtype=parameter.dtype) * 0.5
    return generator


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("resolution", "count"),
    [(1024, 26_219_627), (512, 26_179_768), (256, 26_086_229), (128, 25_843_858), (64, 25_137_935), (32, 22_841_356)],
)
def test_parameter_count(resolution: int, count: int) -> None:
    """Check that networks of all sizes have exactly as many parameters as the official ones."""
    with torch.device("meta"):
        generator = Generator(ModelConfig(), resolution=resolution, channels=3)
    assert _count(generator) == count
    assert _count(generator.mapping) == 2_101_248
    assert generator.num_layers == 2 * math.log2(resolution) - 2


def test_parameter_count_of_the_traditional_generator() -> None:
    """Check config B at 1024x1024 against the published number."""
    with torch.device("meta"):
        assert _count(Generator(ModelConfig(**TABLE_1["B"]), resolution=1024, channels=3)) == 23_079_115


def _reference_layer(x: Tensor, p: dict[str, Tensor], w: Tensor, noise: Tensor | None, model: ModelConfig) -> Tensor:
    """Apply noise, bias, leaky ReLU, pixel norm, instance norm and style literally."""
    channels = x.shape[1]
    if noise is not None:
        x = x + noise * p["noise_weight"].reshape(1, channels, 1, 1)
    x = x + p["bias"].reshape(1, channels, 1, 1)
    x = torch.where(x >= 0, x, 0.2 * x)
    if model.pixel_norm:
        x = x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8)
    if model.instance_norm:
        x = x - torch.mean(x, dim=(2, 3), keepdim=True)
        x = x / torch.sqrt(torch.mean(x**2, dim=(2, 3), keepdim=True) + 1e-8)
    if model.styles:
        style = w @ (p["style.weight"].T / math.sqrt(w.shape[1])) + p["style.bias"]
        style = style.reshape(-1, 2, channels, 1, 1)
        x = x * (style[:, 0] + 1) + style[:, 1]
    return x


def _reference_synthesis(state: dict[str, Tensor], ws: Tensor, noises: list[Tensor], model: ModelConfig) -> Tensor:
    """Compute images from the weights alone, with nearest-neighbour doubling and plain convolutions."""
    x = ws[:, 0]
    for i in range(ws.shape[1]):
        p = {key.removeprefix(f"layers.{i}."): value for key, value in state.items() if key.startswith(f"layers.{i}.")}
        if i == 0 and model.const_input:
            x = p["source.const"].repeat(len(ws), 1, 1, 1)
        elif i == 0:
            weight = p["source.dense.weight"]
            x = (x @ weight.T * (math.sqrt(2) / 4 / math.sqrt(weight.shape[1]))).reshape(len(ws), -1, 4, 4)
        else:
            weight = p["source.weight"] * math.sqrt(2 / (9 * x.shape[1]))
            up = i % 2 == 0
            x = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else x, weight, padding=1)
            if up and model.blur:
                kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=x.dtype) / 16
                x = F.conv2d(x, kernel.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])
        x = _reference_layer(x, p, ws[:, i], noises[i] if model.noise else None, model)
    last = max(int(key.split(".")[1]) for key in state if key.startswith("to_rgb"))
    weight, bias = state[f"to_rgb.{last}.weight"], state[f"to_rgb.{last}.bias"]
    return F.conv2d(x, weight / math.sqrt(x.shape[1]), bias)


@pytest.mark.parametrize("config", TABLE_1)
def test_synthesis_matches_the_formulas(config: str) -> None:
    """Check inputs, resampling, the order within a layer and all gains in every config, by a literal implementation."""
    generator = _shake(_generator(**TABLE_1[config]).double())
    ws = torch.randn(4, 6, 12, dtype=torch.float64)
    noises = [torch.randn(4, 1, 4 << i // 2, 4 << i // 2, dtype=torch.float64) for i in range(6)]
    images = generator.synthesis(ws, noise=lambda index, n, resolution: noises[index])
    expected = _reference_synthesis(generator.synthesis.state_dict(), ws, noises, generator.model)
    assert images.shape == (4, 3, 16, 16)
    torch.testing.assert_close(images, expected, atol=1e-9, rtol=1e-9)


def test_synthesis_is_precise_enough_in_single_precision() -> None:
    """Check that single and double precision differ by rounding only, also where a layer is constant at first."""
    generator = _generator()
    ws = torch.randn(4, 6, 12)
    torch.testing.assert_close(
        generator.synthesis(ws), copy.deepcopy(generator).double().synthesis(ws.double()).float(), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("layers", "num_labels", "label_scale"), [(3, 0, None), (3, 2, None), (1, 0, None), (0, 0, None), (2, 2, 0.2)]
)
def test_mapping_matches_the_formulas(layers: int, num_labels: int, label_scale: float | None) -> None:
    """Check the mapping: z and label vector side by side, one pixel norm over both, then dense layers with leaky ReLU.

    The last layer has a leaky ReLU too. With `label_scale` both have lengths of their own before.
    """
    settings = {"mapping_layers": layers, "num_labels": num_labels, "label_scale": label_scale}
    mapping = _shake(_generator(**settings)).mapping
    z, labels = torch.randn(5, 12), torch.tensor([0, 1, 1, 0, 1])
    label = mapping.state_dict()["label_concat"][labels] if num_labels else z[:, :0]
    if label_scale is not None:
        label = 7 * label  # its length does not matter
        assert torch.allclose(mapping(z, labels), mapping(3 * z, labels), atol=1e-5)
        lengths = [(part.square().mean(1, keepdim=True) + 1e-8).sqrt() for part in (z, label)]
        z, label = z / lengths[0], label_scale * label / lengths[1]
    x = torch.cat([z, label], 1)
    x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(layers):
        weight, bias = mapping.layers[i].weight, mapping.layers[i].bias
        x = F.leaky_relu(x @ weight.T * 0.01 * math.sqrt(2 / weight.shape[1]) + bias * 0.01, 0.2)
    torch.testing.assert_close(mapping(z, labels), x)
    assert mapping(z, labels).shape == (5, 12)


def test_initial_scales() -> None:
    """Check that mapping weights act with std sqrt(2 / inputs).

    Styles and toRGB have gain 1, the dense input has gain sqrt(2) / 4.
    """
    generator = _generator(4, latent_size=256, mapping_fmaps=256, fmap_max=256, fmap_base=8192, const_input=False)
    for layer in generator.mapping.layers:
        assert (layer.weight * layer.scale).std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    synthesis = generator.synthesis
    effective = {
        1 / 16: [synthesis.layers[0].style, synthesis.layers[1].style, synthesis.to_rgb[0]],
        math.sqrt(2) / 4 / 16: [synthesis.layers[0].source.dense],
        math.sqrt(2) / 48: [synthesis.layers[1].source],
    }
    for std, parts in effective.items():
        for part in parts:
            assert (part.weight * part.scale).std().item() == pytest.approx(std, rel=0.06)
    assert (_generator(4).synthesis.layers[0].source.const == 1).all()


def test_noise_has_no_effect_at_first() -> None:
    """Check that noise has no effect while its weights are 0, as they are at the start, and an effect afterwards."""
    generator, z = _generator(), torch.randn(3, 12)
    noise = random_noise(torch.Generator().manual_seed(1), "cpu")
    assert torch.equal(generator(z, noise=noise), generator(z, noise=noise))
    _shake(generator)
    assert not torch.allclose(generator(z, noise=noise), generator(z, noise=noise), atol=1e-3)
    assert torch.equal(generator(z), generator(z))


def test_noise_is_asked_for_once_per_layer_and_image() -> None:
    """Check that the noise function gets layer, batch size and resolution, and that two images get different noise."""
    calls = []

    def noise(index: int, n: int, resolution: int) -> Tensor:
        calls.append((index, n, resolution))
        return draw(index, n, resolution)

    draw = random_noise(torch.Generator().manual_seed(3), "cpu")
    generator = _shake(_generator())
    images = generator(torch.randn(1, 12).repeat(2, 1), noise=noise)
    assert calls == [(0, 2, 4), (1, 2, 4), (2, 2, 8), (3, 2, 8), (4, 2, 16), (5, 2, 16)]
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    again = random_noise(torch.Generator().manual_seed(3), "cpu")
    assert torch.equal(again(0, 2, 4), random_noise(torch.Generator().manual_seed(3), "cpu")(0, 2, 4))


def test_stored_noise_is_shared_by_the_batch() -> None:
    """Check that without a noise function equal latents give equal images."""
    images = _shake(_generator())(torch.randn(1, 12).repeat(2, 1))
    torch.testing.assert_close(images[0], images[1])


def test_fade_is_continuous_at_both_ends() -> None:
    """Check that alpha 0 is exactly the smaller generator's image, upscaled by nearest neighbour.

    alpha near 1 is no fade-in, and in between the fade-in is linear.
    """
    generator = _shake(_generator(8))
    ws = torch.randn(4, 6, 12)
    before = generator.synthesis(ws[:, :4])
    generator.grow()
    upscaled = before.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(generator.synthesis(ws, alpha=0.0), upscaled)
    whole = generator.synthesis(ws)
    torch.testing.assert_close(generator.synthesis(ws, alpha=1 - 1e-6), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(generator.synthesis(ws, alpha=0.25), 0.75 * upscaled + 0.25 * whole)
    assert torch.equal(_generator(4).synthesis(ws[:, :2], alpha=0.5), _generator(4).synthesis(ws[:, :2]))


def test_grow_keeps_every_old_parameter() -> None:
    """Check that growing adds two layers and a toRGB; old parameters are the same objects with the same bits."""
    generator = _shake(_generator(8))
    parameters, state = dict(generator.named_parameters()), copy.deepcopy(generator.state_dict())
    generator.grow()
    assert (generator.resolution, generator.num_layers) == (16, 6)
    grown, new = dict(generator.named_parameters()), generator.state_dict()
    assert all(grown[name] is parameter for name, parameter in parameters.items())
    assert all(torch.equal(new[name], value) for name, value in state.items())
    assert {name.split(".", 1)[1].rsplit(".", 1)[0] for name in set(grown) - set(parameters)} >= {
        "layers.4",
        "layers.5",
        "to_rgb.2",
    }
    assert generator(torch.randn(2, 12)).shape == (2, 3, 16, 16)


def test_grown_and_large_networks_start_alike() -> None:
    """Check that weights depend on torch's random state only and are drawn from coarse to fine."""
    small = _generator(8)
    small.grow()
    large = _generator(16)
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), large.state_dict().values(), strict=True))


def test_grow_keeps_the_precision() -> None:
    """Check that new layers have the type of the old ones."""
    generator = _generator(4).double()
    generator.grow()
    assert {value.dtype for value in generator.state_dict().values()} == {torch.float64}


def test_w_avg_moves_towards_the_batch_mean() -> None:
    """Check w_avg = beta * w_avg + (1 - beta) * mean, starting from 0 and outside autograd."""
    generator = _generator()
    first, second = torch.randn(12, requires_grad=True), torch.randn(12)
    assert not generator.w_avg.any()
    generator.update_w_avg(first, 0.995)
    generator.update_w_avg(second, 0.995)
    torch.testing.assert_close(generator.w_avg, (0.995 * 0.005 * first + 0.005 * second).detach())
    assert not generator.w_avg.requires_grad
    generator.update_w_avg(second, 1.0)
    torch.testing.assert_close(generator.w_avg, (0.995 * 0.005 * first + 0.005 * second).detach())


@pytest.mark.parametrize("cutoff", [1, 3, 5, 6])
def test_mixing_cuts_between_layers(cutoff: int) -> None:
    """Check that layers below the cutoff take the first w, the rest the second, and that gradients reach both."""
    w1, w2 = torch.randn(2, 12, requires_grad=True), torch.randn(2, 12, requires_grad=True)
    ws = mix(w1, w2, cutoff, 6)
    assert ws.shape == (2, 6, 12)
    assert all(torch.equal(ws[:, i], w1 if i < cutoff else w2) for i in range(6))
    g1, g2 = torch.autograd.grad(ws.sum(), (w1, w2))
    assert (g1 == cutoff).all()
    assert (g2 == 6 - cutoff).all()


@pytest.mark.parametrize(("psi", "cutoff"), [(None, 8), (1.0, 8), (1, 2), (0.5, None), (0.5, 0), (0.5, -1)])
def test_truncation_is_off_unless_asked(psi: float | None, cutoff: int | None) -> None:
    """Check that psi None or 1, or a cutoff that is not positive, leaves the image unchanged."""
    generator, z = _shake(_generator()), torch.randn(2, 12)
    generator.w_avg += torch.randn(12)
    assert torch.equal(generator(z, truncation_psi=psi, truncation_cutoff=cutoff), generator(z))


@pytest.mark.parametrize("cutoff", [1, 3, 8])
def test_truncation_pulls_the_first_layers_to_the_mean(cutoff: int) -> None:
    """Check for w_avg + psi * (w - w_avg) below the cutoff and w above."""
    generator, z = _shake(_generator()), torch.randn(2, 12)
    generator.w_avg += torch.randn(12)
    w = generator.mapping(z)
    short = generator.w_avg + 0.7 * (w - generator.w_avg)
    expected = generator.synthesis(torch.stack([short if i < cutoff else w for i in range(6)], 1))
    images = generator(z, truncation_psi=0.7, truncation_cutoff=cutoff)
    torch.testing.assert_close(images, expected)
    assert not torch.allclose(images, generator(z), atol=1e-3)


def test_labels_change_the_image() -> None:
    """Check that labels change the image of the same z, and that missing labels raise one line."""
    generator, z = _generator(num_labels=3), torch.randn(1, 12).repeat(3, 1)
    images = generator(z, torch.tensor([0, 1, 1]))
    assert images.shape == (3, 3, 16, 16)
    torch.testing.assert_close(images[1], images[2])
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    with pytest.raises(StepError, match=r"^labels=None: [^\n]*from 0 to 2$"):
        generator(z)


@pytest.mark.parametrize("config", TABLE_1)
def test_every_parameter_in_use_learns(config: str) -> None:
    """Check that during fade-in every parameter gets a gradient, except the toRGB layers of lower resolutions."""
    generator = _shake(_generator(**TABLE_1[config]))
    generator(torch.randn(4, 12), alpha=0.5, noise=random_noise(None, "cpu")).square().sum().backward()
    idle = [
        name for name, parameter in generator.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert [name for name in idle if not name.startswith("synthesis.to_rgb.0")] == []


def test_layers_read_their_own_style() -> None:
    """Check that every layer's w matters with styles, and only the first layer's without."""
    for styles, count in ((True, 6), (False, 1)):
        generator = _generator(styles=styles, const_input=styles)
        ws = torch.randn(2, 6, 12, requires_grad=True)
        (gradient,) = torch.autograd.grad(generator.synthesis(ws).square().sum(), ws)
        assert [bool(gradient[:, i].any()) for i in range(6)] == list(itertools.islice([True] * count + [False] * 6, 6))
