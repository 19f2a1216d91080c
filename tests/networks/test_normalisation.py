"""The six normalisations of `resnet`: equal to torch's own, over all ranks, and in evaluation by what `settle` found."""

import threading
from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from benchmarks.compare import assert_near
from benchmarks.plain_resnet import Norm as PlainNorm
from networks.derivatives import assert_same_derivatives, doubles
from torch import Tensor, nn

from stylegan.config.sections import Norm
from stylegan.networks.normalisation import (
    BATCH,
    BATCH_EPS,
    PIXELS,
    Normalisation,
    Normaliser,
    normalise,
    of_batch,
    settle,
)

NORMS = get_args(Norm)
OVER_BATCH = [norm for norm in NORMS if norm in ("batch", "conditional_batch", "self_modulated")]
N, C, LATENT, CLASSES = 6, 5, 4, 3
EPS = 2e-5
every_norm = pytest.mark.parametrize("norm", NORMS)


def layer(norm: str) -> Normalisation:
    """Make a layer in double precision, none of whose parameters is constant."""
    made = Normalisation(norm, C, latent_size=LATENT + CLASSES, num_labels=CLASSES).double()
    for parameter in made.parameters():
        parameter.data += torch.randn_like(parameter) / 2
    return made


def latents(n: int = N) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, labels, and w with both."""
    z, labels = torch.randn(n, LATENT, dtype=torch.float64), torch.arange(n) % CLASSES
    return z, labels, torch.cat([z, F.one_hot(labels, CLASSES).double()], 1)


def of_torch(x: Tensor, scale: Tensor, shift: Tensor, how: Normaliser) -> Tensor:
    """Normalise by torch's own functions, then scale and shift."""
    if how.over == BATCH:
        y = F.batch_norm(x, None, None, training=True, eps=how.eps)
    else:
        y = F.instance_norm(x, eps=how.eps)
    y = y * scale[:, :, None, None] + shift[:, :, None, None]
    return F.relu(y) if how.relu else y


def by_formula(x: Tensor, scale: Tensor, shift: Tensor, how: Normaliser) -> Tensor:
    centred = x - x.mean(how.over, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(how.over, keepdim=True) + how.eps)
    y = y * scale[:, :, None, None] + shift[:, :, None, None]
    return F.relu(y) if how.relu else y


@pytest.mark.parametrize("rows", [1, N], ids=["one scale", "scale of each image"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("over", [BATCH, PIXELS], ids=["batch", "image"])
def test_values_and_derivatives_of_three_orders(over: tuple[int, ...], relu: bool, rows: int) -> None:
    """Torch's own third derivative takes the statistics for constants, so the formula stands for that one."""
    how = Normaliser(over, 1e-3, relu)
    for plain, orders in ((of_torch, 2), (by_formula, 3)):
        assert_same_derivatives(
            lambda *inputs: normalise(*inputs, how),
            lambda *inputs, plain=plain: plain(*inputs, how),
            [doubles(N, C, 4, 3), doubles(rows, C), doubles(rows, C)],
            orders,
        )


@pytest.mark.parametrize("over", [BATCH, PIXELS], ids=["batch", "image"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_single_precision_in_either_memory_format(order: torch.memory_format, over: tuple[int, ...]) -> None:
    """Check features whose mean is a hundred times their deviation, as they may become before a normalisation.

    Torch's own normalisation of a batch subtracts the mean last, which costs two digits of those.
    """
    x = (torch.randn(N, C, 16, 16) + 100).to(memory_format=order).requires_grad_()
    scale, shift = torch.randn(1, C, requires_grad=True), torch.randn(1, C, requires_grad=True)
    inputs, direction = (x, scale, shift), torch.randn_like(x)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    y, expected = normalise(*inputs, Normaliser(over, EPS, True)), of_torch(*wide, Normaliser(over, EPS, True))
    ours = torch.autograd.grad((y * direction).sum(), inputs)
    plain = torch.autograd.grad((expected * direction).sum(), wide)
    named = [dict(zip(("y", "x", "scale", "shift"), found, strict=True)) for found in ((y, *ours), (expected, *plain))]
    assert_near(*named, allowed=2e-4 if over == BATCH else 2e-5)
    assert y.is_contiguous(memory_format=order)
    assert ours[0].is_contiguous(memory_format=order)


@pytest.mark.parametrize("over", [BATCH, PIXELS], ids=["batch", "image"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_taken_in_single_precision(dtype: torch.dtype, over: tuple[int, ...]) -> None:
    x = (torch.randn(N, C, 32, 32) * 3 + 20).to(dtype).requires_grad_()
    scale, shift = torch.randn(1, C, requires_grad=True), torch.randn(1, C, requires_grad=True)
    wide = x.detach().float().requires_grad_()
    y, expected = normalise(x, scale, shift, Normaliser(over, EPS)), of_torch(wide, scale, shift, Normaliser(over, EPS))
    direction = torch.randn_like(expected) + 1
    ours = torch.autograd.grad((y * direction.to(dtype)).sum(dtype=torch.float32), (x, scale, shift))
    plain = torch.autograd.grad((expected * direction.to(dtype).float()).sum(), (wide, scale, shift))
    assert y.dtype == ours[0].dtype == dtype
    assert {gradient.dtype for gradient in ours[1:]} == {torch.float32}
    named = [dict(zip(("y", "x", "scale", "shift"), found, strict=True)) for found in ((y, *ours), (expected, *plain))]
    assert_near(*named, allowed=0.01)


@every_norm
def test_each_layer_is_the_plain_one(norm: str) -> None:
    """Check values, and the gradients of the features, the latent and all parameters."""
    torch.manual_seed(0)
    ours = layer(norm)
    plain = PlainNorm(norm, C, latent_size=LATENT, num_labels=CLASSES).double()
    plain.load_state_dict(ours.state_dict())
    z, labels, _ = latents()
    z.requires_grad_()
    x, direction = doubles(N, C, 4, 4), torch.randn(N, C, 4, 4, dtype=torch.float64)

    def numbers(network: nn.Module, y: Tensor) -> dict[str, Tensor | None]:
        named = dict(network.named_parameters()) | {"x": x, "z": z}
        found = torch.autograd.grad((y * direction).sum(), list(named.values()), allow_unused=True)
        return {"y": y} | dict(zip(named, found, strict=True))

    y = ours(x, torch.cat([z, F.one_hot(labels, CLASSES).double()], 1))
    assert_near(numbers(ours, y), numbers(plain, F.relu(plain(x, z, labels))), allowed=1e-10)


@every_norm
def test_what_an_image_depends_on(norm: str) -> None:
    """Check on the images beside it, its class and its latent, as the table of the module has it."""
    ours, x, (_, _, w) = layer(norm), torch.randn(N, C, 4, 4, dtype=torch.float64), latents()
    before = ours(x, w)[0]
    beside, other_class, other_latent = x.clone(), w.clone(), w.clone()
    beside[1:] += torch.randn_like(x[1:])
    other_class[0, LATENT:] = other_class[0, LATENT:].roll(1)
    other_latent[0, :LATENT] += 1
    assert torch.equal(ours(beside, w)[0], before) == (norm not in OVER_BATCH)
    assert torch.equal(ours(x, other_class)[0], before) == (norm in ("batch", "instance"))
    assert torch.equal(ours(x, other_latent)[0], before) == (norm not in ("self_modulated", "adaptive_instance"))


@every_norm
def test_a_new_layer_only_normalises(norm: str) -> None:
    """Check for scale 1 and shift 0 at the start; those from the latent are near."""
    ours = Normalisation(norm, C, latent_size=LATENT + CLASSES, num_labels=CLASSES)
    scale, shift = ours.scale_and_shift(latents()[2].float()).chunk(2, dim=1)
    near = 0.2 if norm in ("self_modulated", "adaptive_instance") else 0.0
    assert (scale - 1).abs().max() <= near
    assert shift.abs().max() <= near


def in_ranks(work: Callable[[int, Callable[[Tensor], Tensor]], None], ranks: int) -> None:
    """Let threads be ranks: each calls `work` with its number and the mean over all of them, in place."""
    shared, barrier, errors = [torch.empty(0)] * ranks, threading.Barrier(ranks), []

    def mean_of(rank: int) -> Callable[[Tensor], Tensor]:
        def mean(values: Tensor) -> Tensor:
            shared[rank] = values.clone()
            barrier.wait(30)
            values.copy_(torch.stack(shared).mean(0))
            barrier.wait(30)
            return values

        return mean

    def run(rank: int) -> None:
        try:
            work(rank, mean_of(rank))
        except Exception as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.mark.parametrize("norm", OVER_BATCH)
def test_ranks_share_the_statistics_of_the_whole_batch(norm: str) -> None:
    """Check values and the gradient of the features on three ranks, and the sum of the parameters' gradients."""
    whole, (_, _, w), x = layer(norm), latents(), doubles(N, C, 4, 4)
    direction = torch.randn(N, C, 4, 4, dtype=torch.float64)
    names = [name for name, _ in whole.named_parameters()]
    y = whole(x, w)
    wanted = torch.autograd.grad((y * direction).sum(), [x, *whole.parameters()])
    found: dict[int, tuple[Tensor, ...]] = {}

    def work(rank: int, mean: Callable[[Tensor], Tensor]) -> None:
        own = Normalisation(norm, C, latent_size=LATENT + CLASSES, num_labels=CLASSES).double()
        own.load_state_dict(whole.state_dict())
        own.ranks, part = mean, slice(2 * rank, 2 * rank + 2)
        own_x = x[part].detach().requires_grad_()
        own_y = own(own_x, w[part])
        found[rank] = own_y, *torch.autograd.grad((own_y * direction[part]).sum(), [own_x, *own.parameters()])

    in_ranks(work, 3)
    parts = [found[rank] for rank in range(3)]
    together = {
        name: sum(gradients) for name, gradients in zip(names, zip(*(p[2:] for p in parts), strict=True), strict=True)
    }
    assert_near(
        {"y": torch.cat([part[0] for part in parts]), "x": torch.cat([part[1] for part in parts]), **together},
        {"y": y, "x": wanted[0], **dict(zip(names, wanted[1:], strict=True))},
        allowed=1e-10,
    )


class Two(nn.Module):
    """Two normalisations, one after the other."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.first, self.second = layer(norm), layer(norm)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.second(self.first(x, w) - x, w)


@pytest.mark.parametrize("norm", OVER_BATCH)
@pytest.mark.parametrize("training", [False, True])
def test_settled_layers_take_the_mean_statistics_of_some_batches(norm: str, training: bool) -> None:
    network, (_, _, w) = Two(norm).train(training), latents()
    batches = [torch.randn(N, C, 4, 4, dtype=torch.float64) * (1 + i) + i for i in range(3)]
    weights = [parameter.clone() for parameter in network.parameters()]
    inner: list[Tensor] = []
    network.first.register_forward_hook(lambda module, args, y: inner.append(y - args[0]))
    settle(network, of_batch(network), lambda: [network(x, w) for x in batches] and None)
    for settled, seen in ((network.first, batches), (network.second, inner)):
        means = torch.stack([x.mean(BATCH, keepdim=True) for x in seen]).mean(0)
        variances = torch.stack([x.var(BATCH, correction=0, keepdim=True) for x in seen]).mean(0)
        torch.testing.assert_close(settled.mean, means)
        torch.testing.assert_close(settled.variance, variances)
    assert network.training == training
    assert network.first.seen is None
    assert all(torch.equal(old, new) for old, new in zip(weights, network.parameters(), strict=True))


@pytest.mark.parametrize("norm", OVER_BATCH)
def test_in_evaluation_an_image_does_not_depend_on_those_beside_it(norm: str) -> None:
    """Check against torch's batch normalisation by given statistics too."""
    ours, (_, _, w), x = layer(norm), latents(), torch.randn(N, C, 4, 4, dtype=torch.float64)
    ours.mean.normal_()
    ours.variance.uniform_(0.5, 2)
    ours.eval()
    scale, shift = ours.scale_and_shift(w)[..., None, None].chunk(2, dim=1)
    plain = F.batch_norm(x, ours.mean.flatten(), ours.variance.flatten(), eps=BATCH_EPS)
    torch.testing.assert_close(ours(x, w), F.relu(plain * scale + shift))
    torch.testing.assert_close(ours(x[:1], w[:1]), ours(x, w)[:1])


def test_one_image_of_one_pixel_has_no_variance() -> None:
    """Check that its gradient is zero, not NaN."""
    x = torch.randn(1, C, 1, 1, requires_grad=True)
    y = normalise(x, torch.ones(1, C), torch.ones(1, C), Normaliser(BATCH, EPS))
    torch.testing.assert_close(y, torch.ones_like(y), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], torch.zeros_like(x), atol=1e-4, rtol=0)
