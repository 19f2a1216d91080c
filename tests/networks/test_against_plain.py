"""Comparison with the plain networks of the benchmarks: equal weights give equal images, scores and derivatives.

The plain networks run in double precision, so every difference is the product's own rounding. Each precision states how
much rounding is allowed. This proves that fused kernels and hand-written derivatives compute the formulas.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from benchmarks.compare import assert_near
from benchmarks.plain import PlainDiscriminator, PlainGenerator, r1_penalty
from torch import Tensor, nn

from stylegan.config.sections import ModelConfig
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator, mix
from stylegan.training import losses

Numbers = dict[str, Tensor | None]
N = 8  # two groups for the mini-batch standard deviation
SMALL = {"latent_size": 12, "mapping_fmaps": 10, "mapping_layers": 3, "fmap_max": 6}
FMAP_BASE = {8: 64, 16: 64, 32: 64, 128: 256}  # 4 channels or more at every resolution
DATA = {"rgb": (3, 0), "grey, 3 classes": (1, 3)}  # channels, labels
CONFIGS = {  # configs of table 1 in Karras et al. 2019, and every other switch
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
    "F without blur": {"blur": False},
    "F with pixel norm": {"pixel_norm": True},
    "F without instance norm": {"instance_norm": False},
    "no statistics": {"mbstd_group": 1},
    "pairs": {"mbstd_group": 2},
}


@dataclass(frozen=True)
class Precision:
    """Types, and how far results may be from the formulas, relative to the norm of each tensor."""

    weights: torch.dtype
    features: torch.dtype | None  # None takes the type of the weights
    allowed: dict[str, float]  # values (images, scores, R1), first derivatives, second derivatives
    # Tensors whose norm is a smaller share of the largest norm are compared as if they had this share.
    least: float = 1e-3


def same(allowed: float) -> dict[str, float]:
    """Allow the same deviation for values and derivatives."""
    return {"values": allowed, "first": allowed, "second": allowed}


EXACT = Precision(torch.float64, None, same(1e-10))
# In single precision the input of a leaky ReLU may round to the other side of 0; plain networks deviate as much.
PRECISIONS = {
    "fp64": EXACT,
    "fp64 features": Precision(torch.float64, torch.float64, same(1e-10)),
    "fp32": Precision(torch.float32, None, {"values": 1e-5, "first": 1e-4, "second": 1e-4}),
}
# Rounding by up to 2^-9 in each of some ten layers moves many inputs of leaky ReLUs to the other side of 0.
LOW = {"bf16": Precision(torch.float32, torch.bfloat16, {"values": 0.1, "first": 0.25, "second": 0.3}, least=0.1)}
DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append("cuda")
    LOW["fp16"] = Precision(torch.float32, torch.float16, LOW["bf16"].allowed, least=0.1)

every_precision = pytest.mark.parametrize("precision", PRECISIONS)
every_data = pytest.mark.parametrize("data", DATA)
every_alpha = pytest.mark.parametrize("alpha", [1.0, 0.3])
every_resolution = pytest.mark.parametrize("resolution", [8, 32, 128])
every_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """Turn off TF32, so that a GPU computes in single precision too."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def networks(
    ours: type[nn.Module], plain: type[nn.Module], data: str, *, resolution: int, **switches: object
) -> tuple[nn.Module, ...]:
    """Return both networks in double precision with the same weights.

    Single precision can represent the weights exactly, and no parameter is constant.
    """
    torch.manual_seed(0)
    model = ModelConfig(**({**SMALL, "fmap_base": FMAP_BASE[resolution]} | switches))
    channels, num_labels = DATA[data]
    pair = [make(model, resolution=resolution, channels=channels, num_labels=num_labels) for make in (ours, plain)]
    for parameter in pair[0].parameters():
        if parameter.detach().unique().numel() == 1:
            parameter.data += torch.randn_like(parameter) * 0.5
        elif ours is Discriminator and parameter.ndim == 4:
            parameter.data *= 2  # else the score would hardly depend on the image, with so few channels
    pair[1].load_state_dict(pair[0].state_dict())
    return tuple(network.double() for network in pair)


def set_precision(network: nn.Module, precision: Precision, device: str) -> None:
    """Move a network to the device and give weights and features the types of the precision."""
    network.to(device, precision.weights)
    for module in network.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = precision.features


class Inputs:
    """A source of random numbers, always the same, of the type and on the device of a network's weights.

    Single precision can represent them exactly.
    """

    def __init__(self, network: nn.Module) -> None:
        self.random, self.like = torch.Generator().manual_seed(1), next(network.parameters())

    def normal(self, *shape: int) -> Tensor:
        """Draw normal random numbers."""
        return torch.randn(shape, generator=self.random).to(self.like).detach().requires_grad_()

    def images(self, channels: int, resolution: int) -> Tensor:
        """Draw noise of every scale [N, channels, resolution, resolution], which no resolution averages away."""
        sides = [4 << i for i in range(resolution.bit_length() - 2)]
        octaves = [nn.functional.interpolate(self.normal(N, channels, side, side), resolution) for side in sides]
        return (sum(octaves) / 2).detach().requires_grad_()

    def labels(self, data: str) -> Tensor | None:
        """Return a label for each image, or None for unlabelled data."""
        return torch.arange(N, device=self.like.device) % 3 if DATA[data][1] else None


def gradients(loss: Tensor, network: nn.Module, **inputs: Tensor) -> Numbers:
    """Return the gradient of every parameter and input, by name."""
    named = dict(network.named_parameters()) | inputs
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def generator_numbers(G: nn.Module, data: str, *, alpha: float) -> dict[str, Numbers]:
    """Compute images with mixed styles, and the gradients of their sum with random weights."""
    inputs = Inputs(G)
    z1, z2 = inputs.normal(N, G.model.latent_size), inputs.normal(N, G.model.latent_size)
    noise = [inputs.normal(N, 1, 4 << i // 2, 4 << i // 2) for i in range(G.num_layers if G.model.noise else 0)]
    w1, w2 = (G.mapping(z, inputs.labels(data)) for z in (z1, z2))
    ws = mix(w1, w2, G.num_layers // 2, G.num_layers)
    if isinstance(G, PlainGenerator):
        images = G.synthesis(ws, noise, alpha=alpha)
    else:
        images = G.synthesis(ws, alpha=alpha, noise=lambda layer, n, resolution: noise[layer])
    loss = (images * inputs.images(*images.shape[1:3])).sum()
    first = gradients(loss, G, z1=z1, z2=z2, **{f"noise{i}": value for i, value in enumerate(noise)})
    of_noise = {name: first.pop(name) for name in list(first) if name.startswith("noise")}
    return {"values": {"images": images}, "first": first, "noise": of_noise}


def discriminator_numbers(D: nn.Module, data: str, *, alpha: float) -> dict[str, Numbers]:
    """Compute scores and R1, and the gradients of their weighted sums; the gradients of R1 are second derivatives."""
    inputs = Inputs(D)
    images, weights, labels = (
        inputs.images(DATA[data][0], 4 << len(D.blocks)),
        inputs.normal(N).detach(),
        inputs.labels(data),
    )
    scores = D(images, labels, alpha=alpha)
    first = gradients((scores * weights).sum(), D, images=images)
    if isinstance(D, PlainDiscriminator):
        _, penalty = r1_penalty(D, images, labels, alpha=alpha)
    else:
        penalty = losses.r1_penalty(D(images, labels, alpha=alpha), images)
    second = gradients((penalty * weights).sum(), D)
    return {"values": {"scores": scores, "r1": penalty}, "first": first, "second": second}


def compare(pair: tuple[nn.Module, ...], data: str, precision: Precision, *, alpha: float, device: str = "cpu") -> None:
    """Compare ours in the given precision with plain in double precision, tensor by tensor."""
    numbers_of = generator_numbers if isinstance(pair[1], PlainGenerator) else discriminator_numbers
    for network, types in zip(pair, (precision, EXACT), strict=True):
        set_precision(network, types, device)
    ours, plain = (numbers_of(network, data, alpha=alpha) for network in pair)
    for order in precision.allowed.keys() & plain.keys():
        numbers = plain[order]
        largest = max(tensor.norm().item() for tensor in numbers.values() if tensor is not None)
        assert_near(ours[order], numbers, allowed=precision.allowed[order], least=precision.least * largest)


@every_device
@every_precision
@every_data
@every_alpha
@every_resolution
def test_generator(precision: str, data: str, alpha: float, resolution: int, device: str) -> None:
    """Compare images, and the gradient of every parameter and latent."""
    compare(
        networks(Generator, PlainGenerator, data, resolution=resolution),
        data,
        PRECISIONS[precision],
        alpha=alpha,
        device=device,
    )


@every_device
@every_precision
@every_data
@every_alpha
@every_resolution
def test_discriminator(precision: str, data: str, alpha: float, resolution: int, device: str) -> None:
    """Compare scores, R1, the gradient of every parameter and image, and the gradient of R1 by every parameter."""
    pair = networks(Discriminator, PlainDiscriminator, data, resolution=resolution)
    compare(pair, data, PRECISIONS[precision], alpha=alpha, device=device)


def test_noise_has_a_gradient() -> None:
    """Compare the gradient of the noise: training does not need it, but fitting noise to an image does."""
    pair = networks(Generator, PlainGenerator, "rgb", resolution=16)
    ours, plain = (generator_numbers(network, "rgb", alpha=1.0)["noise"] for network in pair)
    assert len(plain) == 6
    assert_near(ours, plain, allowed=1e-10)


@every_alpha
@pytest.mark.parametrize("config", CONFIGS)
def test_every_switch(config: str, alpha: float) -> None:
    """Compare the other configs of the paper too, in double precision.

    Single precision is not enough: the deviation of two images may be tiny while its derivatives are not.
    """
    for kinds in ((Generator, PlainGenerator), (Discriminator, PlainDiscriminator)):
        compare(
            networks(*kinds, "rgb", resolution=16, **CONFIGS[config]),
            "rgb",
            replace(EXACT, allowed=same(1e-7)),
            alpha=alpha,
        )


@every_device
@every_alpha
@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("kinds", [(Generator, PlainGenerator), (Discriminator, PlainDiscriminator)], ids=["G", "D"])
def test_low_precision(kinds: tuple[type[nn.Module], ...], precision: str, alpha: float, device: str) -> None:
    """Compare low precision with more channels, so that a single unit on the wrong side of zero does not matter."""
    pair = networks(*kinds, "rgb", resolution=32, fmap_max=256, fmap_base=512, latent_size=32, mapping_fmaps=32)
    compare(pair, "rgb", LOW[precision], alpha=alpha, device=device)
