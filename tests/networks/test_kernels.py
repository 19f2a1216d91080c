"""Triton kernels: each equals the plain operation in double precision, with its derivatives of the first two orders.

The tests need Triton, and a GPU or TRITON_INTERPRET=1: `make test-kernels` installs Triton and lets it interpret the kernels
on a CPU.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.config.sections import ModelConfig
from stylegan.networks import epilogue, ops
from stylegan.networks.convolution import Geometry, convolve, four_tap, input_gradients, prepared_weights, scale_weight
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator
from stylegan.networks.normalisation import BATCH, PIXELS, Normaliser, normalise

pytest.importorskip("triton", reason="Triton is missing: `make test-kernels` installs it beside torch's CPU build")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("there is no GPU; `make test-kernels` interprets the kernels", allow_module_level=True)

from stylegan.networks import kernels  # noqa: E402 (needs Triton)

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ERRORS = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # relative, of a whole tensor
# [N, C, H, W]: odd sizes, one channel, one image, several groups of channels.
SHAPES = [(2, 3, 2, 4), (1, 1, 5, 7), (1, 5, 5, 3)]
Inputs = list[Tensor]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the same numbers in every test, and compute in single precision on a GPU too."""
    assert ops.load_kernels(DEVICE) is kernels  # if they fail, torch's operations would pass the tests
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut small images into several blocks of columns and channels and several strips of rows."""
    for name, value in {"TILE": 8, "MOST_CHANNELS": 4, "MOST_ROWS": 2, "LEAST_ROWS": 2}.items():
        monkeypatch.setattr(kernels, name, value)
    kernels._grid.cache_clear()
    yield
    kernels._grid.cache_clear()


small_tiles = pytest.mark.usefixtures("_small_tiles")


def derivatives(function: Callable[..., Tensor], inputs: Inputs, directions: Inputs) -> Inputs:
    """Return the values of a function, its gradients, and the gradients of its gradient by the first input."""
    y = function(*inputs)
    g, v = directions[0].to(y.dtype).requires_grad_(), directions[1].to(y.dtype)
    first = torch.autograd.grad(y, inputs, g, retain_graph=True)
    (along,) = torch.autograd.grad(y, inputs[:1], g, create_graph=True)
    second = torch.autograd.grad((along * v).sum(), [g, *inputs], allow_unused=True)
    return [y, *first, along, *(t for t in second if t is not None and t.any())]


def assert_near(ours: Inputs, plain: Inputs, error: float) -> None:
    """Check that tensors are equal but for rounding."""
    assert len(ours) == len(plain)
    for number, (a, b) in enumerate(zip(ours, plain, strict=True)):
        distance = torch.linalg.vector_norm(a.double() - b) / torch.linalg.vector_norm(b).clamp(min=1e-6)
        assert distance < error, f"tensor {number} of {len(ours)}: relative error {distance:.2g}"


def compare(
    function: Callable[..., Tensor],
    shape: tuple[int, ...],
    others: list[tuple[int, ...]],
    dtype: torch.dtype,
    plain=None,
) -> None:
    """Check a function of features [N, C, H, W] in `dtype` and of parameters in single precision."""
    x = torch.randn(shape, device=DEVICE).to(dtype)
    parameters = [torch.randn(other, device=DEVICE) for other in others]
    with torch.no_grad(), ops.kernels_enabled(False):
        size = (plain or function)(x.double(), *(p.double() for p in parameters)).shape
    directions = [torch.randn(size, device=DEVICE).to(dtype), torch.randn(shape, device=DEVICE).to(dtype)]

    def run(f: Callable[..., Tensor], to: Callable[[Tensor], Tensor]) -> Inputs:
        inputs = [to(t).detach().clone().requires_grad_() for t in (x, *parameters)]
        return derivatives(f, inputs, [to(t).detach().clone() for t in directions])

    ours = run(function, lambda t: t)
    with ops.kernels_enabled(False):
        expected = run(plain or function, Tensor.double)
    assert ours[0].dtype == dtype
    assert_near(ours, expected, ERRORS[dtype])


def shapes_and_types(function: Callable) -> Callable:
    """Test every shape in single precision, and every type with one shape."""
    cases = [(shape, torch.float32) for shape in SHAPES] + [(SHAPES[2], dtype) for dtype in ERRORS][1:]
    return small_tiles(pytest.mark.parametrize(("shape", "dtype"), cases, ids=str)(function))


@shapes_and_types
def test_blur(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check the blur alone."""
    compare(ops.blur, shape, [], dtype)


@shapes_and_types
def test_bias_activation_and_blur(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check D's first convolution of a block: what follows the products."""
    compare(ops.act_blur, shape, [shape[1:2]], dtype, plain=lambda x, b: ops.blur(ops.lrelu(x + b.view(-1, 1, 1))))


@pytest.mark.parametrize("slope", [ops.SLOPE, 0.0])
@shapes_and_types
def test_bias_and_activation_of_a_convolution(shape: tuple[int, ...], dtype: torch.dtype, slope: float) -> None:
    """Check that they are applied to the result of a convolution, with the sum of the bias's gradient."""
    weight = torch.randn(3, shape[1], 1, 1, device=DEVICE)
    compare(
        lambda x, b: convolve(x, weight.to(x.dtype), b, Geometry(activate=True, slope=slope)),
        shape,
        [(3,)],
        dtype,
        plain=lambda x, b: F.leaky_relu(torch.conv2d(x, weight.to(dtype).to(x.dtype)) + b.view(-1, 1, 1), slope),
    )


@pytest.fixture
def _small_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let several programs sum the pixels of small images, each several tiles."""
    monkeypatch.setattr(kernels, "LEAST_PROGRAMS", 2)


@small_tiles
@pytest.mark.usefixtures("_small_sums")
@pytest.mark.parametrize("dtype", list(ERRORS), ids=str)
@pytest.mark.parametrize(("images", "features"), [(3, 9), (1, 4), (4, 5), (3, 1)])
@pytest.mark.parametrize("layer", ["from images", "to images"])
def test_convolution_between_images_and_features(layer: str, images: int, features: int, dtype: torch.dtype) -> None:
    """Check D's first layer, with its activation, and G's last one: all derivatives, also those of the weight."""
    from_images = layer == "from images"
    inputs, outputs = (images, features) if from_images else (features, images)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        bias = bias if from_images else bias.to(x.dtype)
        return convolve(x, weight[:, :, None, None].to(x.dtype), bias, Geometry(activate=from_images))

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = (rounded(weight, dtype), bias if from_images else rounded(bias, dtype))
        y = torch.einsum("oi,nihw->nohw", weight, x) + bias.view(-1, 1, 1)
        return F.leaky_relu(y, ops.SLOPE) if from_images else y

    compare(function, (2, inputs, 5, 3), [(outputs, inputs), (outputs,)], dtype, plain=plain)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round the values of x to another type, with the derivative of the identity."""
    return x + (x.to(dtype).to(x.dtype) - x).detach()


@pytest.mark.usefixtures("_small_sums")
def test_sums_of_images_and_features_are_repeatable_and_may_be_empty() -> None:
    """Check bits of two runs, parts of a tensor, and a batch without images."""
    x, few = torch.randn(2, 70, 9, 5, device=DEVICE), torch.randn(2, 4, 9, 5, device=DEVICE)[:, 1:]
    sums, total = kernels.image_sums(x, few, y=x, total=True)
    again, again_total = kernels.image_sums(x, few, y=x, total=True)
    assert torch.equal(sums, again)
    assert total is not None
    assert again_total is not None
    assert torch.equal(total, again_total)
    masked_x = masked(x, x, ops.SLOPE).double()
    torch.testing.assert_close(
        sums.double(), torch.einsum("nchw,nfhw->cf", masked_x, few.double()), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(total.double(), masked_x.sum((0, 2, 3)), atol=1e-4, rtol=1e-4)
    assert kernels.image_sums(x[:0], few[:0], total=True)[0].tolist() == [[0.0] * 3] * 70
    weight = torch.randn(70, 3, device=DEVICE)
    assert kernels.from_images(few[:0], weight, None).shape == (0, 70, 9, 5)
    assert kernels.to_images(x[:0], weight).shape == (0, 3, 9, 5)


NORMALISERS = {
    "batch": Normaliser(BATCH, 1e-3),
    "batch, ReLU": Normaliser(BATCH, 1e-3, True),
    "batch of equal ranks": Normaliser(BATCH, 1e-3, True, lambda mean: mean),
    "image": Normaliser(PIXELS, 1e-3),
    "image, ReLU": Normaliser(PIXELS, 1e-3, True),
}


@small_tiles
@pytest.mark.parametrize("rows", [1, 2], ids=["one scale", "scale of each image"])
@pytest.mark.parametrize("name", NORMALISERS)
def test_normalisation(name: str, rows: int) -> None:
    """Check statistics of images and of batches, with numbers for all images alike and for each."""
    compare(lambda *inputs: normalise(*inputs, NORMALISERS[name]), (2, 5, 3, 3), [(rows, 5)] * 2, torch.float32)


@small_tiles
@pytest.mark.parametrize("dtype", list(ERRORS)[1:], ids=str)
def test_normalisation_in_half_precision(dtype: torch.dtype) -> None:
    compare(lambda *inputs: normalise(*inputs, Normaliser(BATCH, 1e-3)), (2, 3, 3, 5), [(1, 3)] * 2, dtype)


@small_tiles
def test_a_batch_far_from_zero_keeps_its_digits() -> None:
    """Check the deviation of values whose mean is a thousand times as large, and a channel that is constant."""
    x, ones = torch.randn(2, 3, 5, 5, device=DEVICE) + 1000, torch.ones(1, 3, device=DEVICE)
    x[:, 1] = 3.3
    y = normalise(x, ones, ones, Normaliser(BATCH, 1e-8))
    expected = F.batch_norm(x.double(), None, None, training=True, eps=1e-8) + 1
    torch.testing.assert_close(y.double(), expected, atol=1e-3, rtol=1e-3)


@small_tiles
@pytest.mark.parametrize(
    ("maps", "blurs"), [(None, False), (1, False), (2, True)], ids=["no noise", "one map", "own maps, after blur"]
)
def test_epilogue(maps: int | None, blurs: bool) -> None:
    """Check what follows the convolution of a synthesis layer, with every kind of noise."""
    shape = (2, 5, 3, 2)
    noise = None if maps is None else torch.randn(maps, 1, *shape[2:], device=DEVICE)

    def function(x: Tensor, bias: Tensor, style: Tensor, noise_weight: Tensor | None = None) -> Tensor:
        drawn = None if noise is None else noise.to(bias.dtype)
        return epilogue.epilogue(x, drawn, noise_weight, bias, style, blurs=blurs)

    compare(function, shape, [(5,), (2, 10), *([] if maps is None else [(5,)])], torch.float32)


@shapes_and_types
def test_epilogue_of_every_shape_and_type(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check it with blur and noise."""
    noise = torch.randn(1, 1, *shape[2:], device=DEVICE)

    def function(x: Tensor, bias: Tensor, style: Tensor, noise_weight: Tensor) -> Tensor:
        return epilogue.epilogue(x, noise.to(bias.dtype), noise_weight, bias, style, blurs=True)

    channels = shape[1]
    compare(function, shape, [(channels,), (shape[0], 2 * channels), (channels,)], dtype)


@small_tiles
def test_a_constant_channel_is_exactly_zero_before_the_style() -> None:
    """Check that no rounding of the statistics is blown up where all values are equal."""
    x, zeros = torch.full((1, 2, 6, 7), 3.3, device=DEVICE), torch.zeros(2, device=DEVICE)
    style = torch.tensor([[0.0, 0.0, 5.0, -1.0]], device=DEVICE)
    y = epilogue.epilogue(x, None, None, zeros + 0.1, style, blurs=False)
    assert torch.equal(y, style[:, 2:, None, None].expand_as(y))


@small_tiles
def test_mean_far_from_zero_keeps_its_digits() -> None:
    """Check the deviation of values whose mean is a thousand times as large."""
    x, zeros = torch.randn(1, 3, 9, 9, device=DEVICE) + 1000, torch.zeros(3, device=DEVICE)
    y = epilogue.epilogue(x, None, None, zeros, torch.zeros(1, 6, device=DEVICE), blurs=False)
    expected = (x.double() - x.double().mean((2, 3), keepdim=True)) / x.double().std((2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_memory_format_is_read(dtype: torch.dtype) -> None:
    """Check features in other layouts, parts of a tensor, and none at all."""
    whole = torch.randn(2, 4, 3, 4, device=DEVICE).to(dtype)
    for x in (
        whole,
        whole[:, 1:4],
        whole.transpose(2, 3),
        whole[:1].expand(3, -1, -1, -1),
        whole[:, :, ::2],
        whole[:0],
    ):
        with ops.kernels_enabled(False):
            expected = ops.blur(x.double())
        torch.testing.assert_close(ops.blur(x).double(), expected, atol=ERRORS[dtype], rtol=ERRORS[dtype])
    assert kernels.channel_sums(whole[:0]).tolist() == [0.0] * 4


MODELS = {
    "config F": {},
    "no styles": {
        "styles": False,
        "const_input": False,
        "pixel_norm": True,
        "instance_norm": False,
        "style_mixing_prob": 0,
    },
    "nothing normalised": {"instance_norm": False, "noise": False},
    "no blur, conditional": {"blur": False, "mbstd_group": 1},
    "spectral normalisation": {"spectral_norm": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_networks(name: str) -> None:
    """Check images, scores and all gradients of both players with R1 against the plain operations."""
    model = ModelConfig(latent_size=4, mapping_layers=1, mapping_fmaps=4, fmap_base=16, fmap_max=4, **MODELS[name])
    labels = torch.tensor([0, 1], device=DEVICE) if "conditional" in name else None
    num_labels = 0 if labels is None else 2
    G = Generator(model, resolution=8, channels=3, num_labels=num_labels).to(DEVICE)
    D = Discriminator(model, resolution=8, channels=3, num_labels=num_labels).to(DEVICE).eval()
    for parameter in [*G.parameters(), *D.parameters()]:
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    z = torch.randn(2, 4, device=DEVICE)
    maps = [torch.randn(2, 1, 4 << i // 2, 4 << i // 2, device=DEVICE) for i in range(4)]

    def run(dtype: torch.dtype) -> Inputs:
        for network in (G, D):
            network.to(dtype)
        images = G(z.to(dtype), labels, alpha=0.5, noise=lambda layer, n, resolution: maps[layer].to(dtype))
        of_g = torch.autograd.grad(D(images, labels, alpha=0.5).sum(), list(G.parameters()), allow_unused=True)
        points = images.detach().requires_grad_()
        with prepared_weights():
            scores = D(points, labels, alpha=0.5) + D(points.detach().flip(0), labels, alpha=0.5)
            r1 = input_gradients(scores, points).square().sum()
            of_d = torch.autograd.grad(r1 + scores.sin().sum(), list(D.parameters()), allow_unused=True)
        return [images, scores, r1, *(g for g in (*of_g, *of_d) if g is not None)]

    with ops.kernels_enabled(False):
        expected = run(torch.float64)
    assert_near(run(torch.float32), expected, 1e-3)


def test_gradients_of_g_can_be_differentiated_again() -> None:
    """Check the second derivatives of a synthesis network, which no training needs."""
    model = ModelConfig(latent_size=4, mapping_layers=1, mapping_fmaps=4, fmap_base=16, fmap_max=4)
    G = Generator(model, resolution=8, channels=1).to(DEVICE)
    z = torch.randn(1, 4, device=DEVICE)

    def run(dtype: torch.dtype) -> Inputs:
        latents = z.to(dtype).requires_grad_()
        (gradient,) = torch.autograd.grad(G.to(dtype)(latents).square().sum(), latents, create_graph=True)
        return [gradient, *torch.autograd.grad(gradient.square().sum(), list(G.synthesis.layers[2].parameters()))]

    with ops.kernels_enabled(False):
        expected = run(torch.float64)
    assert_near(run(torch.float32), expected, 1e-3)


def test_networks_take_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no layer of config F goes another way: every pass starts its kernels."""
    started: list[str] = []

    def watched(name: str, function: Callable) -> Callable:
        def start(*args: object, **kwargs: object) -> object:
            started.append(name)
            return function(*args, **kwargs)

        return start

    names = ("blur", "act_blur", "blur_mask", "mask_blur", "epilogue", "epilogue_backward", "channel_sums")
    for name in (*names, "from_images", "to_images", "image_sums"):
        monkeypatch.setattr(kernels, name, watched(name, getattr(kernels, name)))
    model = ModelConfig(latent_size=4, mapping_layers=1, mapping_fmaps=4, fmap_base=32, fmap_max=8)
    G, D = (kind(model, resolution=8, channels=1).to(DEVICE) for kind in (Generator, Discriminator))
    score = D(G(torch.randn(2, 4, device=DEVICE))).sum()
    assert sorted(started) == ["act_blur"] * 3 + ["epilogue"] * 4 + ["from_images", "to_images"]
    started.clear()
    score.backward()
    of_images = ["from_images"] + ["image_sums"] * 2 + ["to_images"]
    assert sorted(started) == ["blur_mask"] * 3 + ["channel_sums"] + ["epilogue_backward"] * 4 + of_images


@small_tiles
@pytest.mark.parametrize("slope", [ops.SLOPE, 0.0])
@pytest.mark.parametrize("dtype", list(ERRORS), ids=str)
def test_slope_of_an_activation(slope: float, dtype: torch.dtype) -> None:
    """Check the gradient of the activation alone, as for weights that stay: it is linear, and of every order."""
    y = torch.randn(2, 3, 5, 3, device=DEVICE).to(dtype)
    y[0, 0, 0] = 0
    compare(
        lambda g: ops.act_gradient(g, y.to(g.dtype), slope), y.shape, [], dtype, plain=lambda g: masked(g, y, slope)
    )


def masked(g: Tensor, y: Tensor, slope: float) -> Tensor:
    return torch.where(y > 0 if slope == 0 else y >= 0, g, g * slope)


@pytest.mark.parametrize("dtype", list(ERRORS), ids=str)
def test_scaled_weight_is_rounded_once(dtype: torch.dtype) -> None:
    """Check bits, memory format and both derivatives of what a layer convolves with."""
    weight = torch.randn(4, 5, 3, 3, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
    g = torch.randn(4, 5, 3, 3, device=DEVICE).to(dtype).requires_grad_()
    used = scale_weight(weight, 0.3, dtype)
    assert torch.equal(used, (weight * 0.3).to(dtype))
    assert used.is_contiguous(memory_format=torch.channels_last)
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(used, weight, g, retain_graph=True, create_graph=create_graph)
        assert torch.equal(gradient, g.float() * 0.3)
    (second,) = torch.autograd.grad(gradient.square().sum(), g)
    torch.testing.assert_close(second, (2 * 0.09 * g.float()).to(dtype))
    assert torch.equal(scale_weight(weight.detach(), 0.3, dtype), used)


def test_wider_types_and_backward_passes_without_kernels_work() -> None:
    """Check what kernels do not know, and a setting that changes between the two passes."""
    weight = torch.randn(2, 3, 3, 3, device=DEVICE, requires_grad=True)
    assert torch.equal(scale_weight(weight, 0.3, torch.float64), (weight * 0.3).double())
    assert four_tap(weight, dtype=torch.float64).dtype == torch.float64
    used = (scale_weight(weight, 0.3, torch.bfloat16).sum() + four_tap(weight, dtype=torch.bfloat16).sum()).float()
    with ops.kernels_enabled(False):
        (gradient,) = torch.autograd.grad(used, weight)
    torch.testing.assert_close(gradient, torch.full_like(weight, 4.3), atol=0.02, rtol=0)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("dtype", list(ERRORS), ids=str)
def test_kernels_of_resampling_convolutions(rotated: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the four shifts and their adjoint, with several blocks of channels, and the weight in either order."""
    monkeypatch.setattr(kernels, "TILE", 8)
    weight = torch.randn(3, 5, 3, 3, device=DEVICE)
    for made in (weight, weight.to(memory_format=torch.channels_last), weight.transpose(0, 1)):
        start = made.detach().requires_grad_()
        taps = four_tap(start, scale=0.3, rotated=rotated, dtype=dtype)
        g = torch.randn_like(taps).requires_grad_()
        (gradient,) = torch.autograd.grad(taps, start, g, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sin().sum(), g)
        plain = made.detach().double().requires_grad_()
        with ops.kernels_enabled(False):
            expected = four_tap(plain, scale=0.3, rotated=rotated)
            plain_g = g.detach().double().requires_grad_()
            (plain_gradient,) = torch.autograd.grad(expected, plain, plain_g, create_graph=True)
            (plain_second,) = torch.autograd.grad(plain_gradient.sin().sum(), plain_g)
        assert (taps.dtype, gradient.dtype) == (dtype, torch.float32)
        assert_near([taps, gradient, second], [expected, plain_gradient, plain_second], ERRORS[dtype])


@pytest.mark.parametrize("dtype", list(ERRORS), ids=str)
def test_odd_channels_are_filled_up(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Check that the layer after the minibatch standard deviation convolves a multiple of eight channels, of every order."""
    model = ModelConfig(latent_size=4, mapping_layers=1, mapping_fmaps=4, fmap_base=32, fmap_max=16, mbstd_group=2)
    D = Discriminator(model, resolution=4, channels=3).to(DEVICE)
    convolved: list[int] = []
    plain = torch.convolution

    def watched(x: Tensor, *args: object) -> Tensor:
        convolved.append(x.shape[1])
        return plain(x, *args)

    monkeypatch.setattr(torch, "convolution", watched)
    images = torch.randn(4, 3, 4, 4, device=DEVICE)

    def run(dtype: torch.dtype, inner: torch.dtype) -> Inputs:
        points = images.to(dtype).requires_grad_()
        D.to(dtype).compute_dtype = inner
        scores = D(points)
        r1 = input_gradients(scores, points).square().sum()
        return [scores, r1, *torch.autograd.grad(r1 + scores.sin().sum(), list(D.parameters()))]

    with ops.kernels_enabled(False):
        expected = run(torch.float64, torch.float64)
    assert 17 in convolved
    convolved.clear()
    assert_near(run(torch.float32, dtype), expected, 10 * ERRORS[dtype])
    assert [channels for channels in convolved if channels > 3 and channels % 8] == []
    assert 24 in convolved


@pytest.mark.parametrize("capability", [75, 80, 90, 100])
def test_kernels_compile_for_gpus(capability: int, tmp_path: Path) -> None:
    """Check that every kernel compiles for a GPU, which needs none, and that no register goes to memory.

    Interpreted kernels are Python, which allows more than the compiler does.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "networks.compile_kernels", str(capability)],
        cwd=Path(__file__).parents[1],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) >= 15
    assert [line for line in lines if "STACK:0 " not in line or "LOCAL:0 " not in line] == []
