"""Project an image into the latent space of a generator (Karras et al. 2020, "StyleGAN2", appendix D).

The styles and the noise maps of an image are found by optimisation: Adam lowers the perceptual distance between the
image that they make and the target. What is from the paper: the mean and the deviation of w over 10,000 latents, the
ramps of the learning rate (up over the first 5 % of the steps, down as a cosine over the last 25 %), noise that is added
to w and falls to zero over the first 75 %, and a penalty that keeps any picture out of the noise maps.

What differs from the paper:

- The start is not the mean w but the nearest of the mean, the means of the classes, and some random latents. Small
  generators have no smooth way from their mean to each of their images; and the class of the target need not be known.
- The loss has a pixel term. The embedded feature networks are small, and their distance alone leaves the last details
  undecided.
- The learning rate of w is in deviations of w, which small models have of any size. The penalty on noise maps counts as
  much at every size; the paper's weight is for 1024x1024 (see `noise_penalty`).
- All noise maps of StyleGAN v1 are optimised, two for each resolution.
- w+ gives each layer a w of its own (Abdal et al. 2019, "Image2StyleGAN"). It reaches nearly any image, also one that
  the model would never draw; `w_distance` says how far it had to go for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from stylegan.drawing.draw import given_noise
from stylegan.drawing.latents import Latents
from stylegan.errors import StepError
from stylegan.evaluation.generate import batch_size
from stylegan.images import to_float, to_uint8
from stylegan.networks.generator import Generator, layer_resolution

Space = Literal["w", "w+"]
SPACES: tuple[Space, ...] = get_args(Space)
Distance = Callable[[Tensor, Tensor], Tensor]  # of two batches [N, C, r, r] in [-1, 1]: distances [N]
# Called after each step with its number from 1, the number of steps, the distance, and the image [1, C, r, r] in [-1, 1]
# that the step has looked at. It may raise to end the projection.
OnStep = Callable[[int, int, float, Tensor], None]

PROJECTION_VERSION = 1  # raise it whenever a change gives other latents
NUM_LATENTS = 10_000  # for mean and deviation of w
MOST_STARTS = 256  # random latents among which the nearest is searched, at most and at least
LEAST_STARTS = 16
NOISE_RATE = 0.1  # the learning rate of noise maps, which have unit variance, as published
W_RATE = 0.15  # that of w in deviations of one of its components; published: 0.1, for w of a deviation of about 0.5
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps
W_NOISE, W_NOISE_END = 0.05, 0.75  # strength in deviations of w, and the share of the steps after which it is zero
NOISE_PENALTY, PUBLISHED_MAP = 1e5, 1024
PIXEL_WEIGHT = 1.0  # of the mean squared difference of pixels in [-1, 1]
SMALLEST_MAP = 8  # side of the smallest noise map of the pyramids in the penalty
# A large residual: a distance above this share of that between two images of the model, or fewer decibels.
FAR, BLURRED = 0.1, 20.0
UNUSUAL = 1.9  # deviations of w from its mean; a latent of the model itself has about one


@dataclass(frozen=True)
class Projection:
    """The latents of an image, and how well they fit.

    Attributes:
        ws: [1, num_layers, L]; all layers alike in the space w.
        noise: of each layer, [1, 1, r, r]; empty for a generator without noise.
        image: uint8 [C, r, r] on the CPU, what the latents make.
        label: the class of the latent that the search began with; None for a generator without classes.
        history: the distance at each step, from the start on.
        distance: the perceptual distance of `image` from the target.
        typical: the mean distance between two images of the model.
        psnr: peak signal-to-noise ratio in dB, infinite for equal images.
        w_distance: root mean square over the layers of the distance of w from its mean, in deviations: about 1 for a
            latent of the model itself. The larger, the less the model would draw this image.
    """

    ws: Tensor
    noise: tuple[Tensor, ...]
    image: Tensor
    label: int | None
    history: tuple[float, ...]
    distance: float
    typical: float
    psnr: float
    w_distance: float

    @property
    def latents(self) -> Latents:
        """What a w.npz holds of it."""
        return Latents(self.ws, self.noise)

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for each sign that the model does not draw such an image."""
        found = []
        if self.distance > FAR * self.typical or self.psnr < BLURRED:
            share = self.distance / self.typical
            found.append(
                f"large residual: the image that was found is {share:.0%} as far from the target as two images of this "
                f"model are from each other ({self.psnr:.1f} dB)"
            )
        if self.w_distance > UNUSUAL:
            found.append(
                f"unusual latent: w is {self.w_distance:.1f} deviations from its mean, where images of this model are "
                "about 1; edits of it may look odd"
            )
        return tuple(found)


def project(
    generator: Generator,
    target: Tensor,
    *,
    space: Space = "w+",
    distance: Distance,
    steps: int = 500,
    seed: int = 0,
    label: int | None = None,
    on_step: OnStep | None = None,
    device: torch.device | str = "cpu",
) -> Projection:
    """Find the latents with which a generator makes an image.

    The same arguments give the same latents on one kind of CPU; a GPU may round differently from run to run.

    Args:
        generator: in evaluation mode, without gradients; it is moved to the device.
        target: the image, uint8 [C, r, r] as the generator makes it.
        space: one w for all layers, or (`w+`) one for each.
        distance: the perceptual distance, differentiable in its first argument; see `perceptual_distance`.
        steps: of the optimisation.
        seed: of the latents among which the start is searched, of the noise maps' start, and of the noise on w.
        label: the class of the image, where the search begins; None tries all classes.
        on_step: hears of each step.
        device: where to compute.

    Raises:
        StepError: the target has another shape than the images of the generator, or the optimisation fails.
    """
    shape = (generator.channels, generator.resolution, generator.resolution)
    if tuple(target.shape) != shape:
        raise StepError(f"target: has shape {list(target.shape)}, the model makes images of {list(shape)}")
    generator = generator.to(device)
    stream = torch.Generator().manual_seed(seed)
    wanted = to_float(target.to(device))[None]
    search = _Search.begin(generator, wanted, distance, label=label, stream=stream)

    # The variables: one w or one for each layer, and the noise maps.
    w = search.w[None, None].repeat(1, generator.num_layers if space == "w+" else 1, 1).requires_grad_()
    noise = [part.clone().requires_grad_() for part in search.noise]
    variables = [w, *noise]
    rates = (W_RATE * search.deviation / math.sqrt(w.shape[-1]), NOISE_RATE)
    optimizer = torch.optim.Adam([{"params": [w]}, {"params": noise}])
    history = []
    for step in range(steps):
        # The image of this step.
        done = step / steps
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate_ramp(done)
        strength = W_NOISE * search.deviation * max(0.0, 1 - done / W_NOISE_END) ** 2
        disturbed = w + strength * torch.randn(w.shape, generator=stream).to(device)
        image = generator.synthesis(
            disturbed.expand(-1, generator.num_layers, -1), noise=given_noise(noise, generator.w_avg.device)
        )

        # One step down.
        far = distance(image, wanted)[0]
        loss = far + PIXEL_WEIGHT * functional.mse_loss(image, wanted) + NOISE_PENALTY * noise_penalty(noise)
        gradients = torch.autograd.grad(loss, variables, allow_unused=True)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        optimizer.step()
        _normalise(noise)
        history.append(far.item())
        if on_step:
            on_step(step + 1, steps, history[-1], image.detach())
    return _measured(search, w.detach(), tuple(part.detach() for part in noise), target, history)


def learning_rate_ramp(done: float) -> float:
    """Return the factor of the learning rate after a share of the steps: a linear rise, 1, and half a cosine down."""
    down = min(1.0, (1 - done) / RAMP_DOWN)
    return (0.5 - 0.5 * math.cos(math.pi * down)) * min(1.0, done / RAMP_UP)


def noise_penalty(noise: Sequence[Tensor]) -> Tensor:
    """Return the sum over noise maps [1, 1, r, r] of how much they resemble themselves, moved by one pixel.

    For each map, and its pyramid of means down to 8x8 with the variance of white noise kept, it is the squared mean
    product of neighbours, across and down. White noise has none in expectation; a picture has. By chance white noise has
    2 / r^2. Each map counts so that this is as much as at 1024x1024, where the paper's weight comes from: at 32x32 it
    would forbid the very noise that an image was drawn with.
    """
    total = torch.zeros((), device=noise[0].device) if noise else torch.zeros(())
    for part in noise:
        while True:
            weight = (part.shape[-1] / PUBLISHED_MAP) ** 2
            for dimension in (2, 3):
                total = total + weight * (part * part.roll(1, dimension)).mean().square()
            if part.shape[-1] <= SMALLEST_MAP:
                break
            part = functional.avg_pool2d(part, 2) * 2  # the mean of four has half their deviation
    return total


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of two uint8 images, infinite for equal ones."""
    error = (a.float() - b.float()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@dataclass(frozen=True)
class _Search:
    """Where a projection begins, and what it is measured by.

    `mean` [L] and `deviation` are those of w; `typical` is the mean distance between two images of the model.
    """

    generator: Generator
    wanted: Tensor
    distance: Distance
    mean: Tensor
    deviation: float
    typical: float
    w: Tensor
    label: int | None
    noise: tuple[Tensor, ...]

    @classmethod
    @torch.no_grad()
    def begin(
        cls, generator: Generator, wanted: Tensor, distance: Distance, *, label: int | None, stream: torch.Generator
    ) -> _Search:
        """Measure w, and search for the latent whose image is nearest."""
        device = wanted.device

        # Mean and deviation of w over all classes.
        z = torch.randn(NUM_LATENTS, generator.model.latent_size, generator=stream).to(device)
        numbers = torch.arange(NUM_LATENTS, device=device) % max(generator.num_labels, 1)
        ws = generator.mapping(z, numbers if generator.num_labels else None)
        mean = ws.mean(0)
        deviation = (ws - mean).square().sum(1).mean().sqrt().item()

        # The candidates: the mean of each class that may be meant, and random latents of these classes.
        sides = [layer_resolution(index) for index in range(generator.num_layers if generator.model.has_noise else 0)]
        noise = tuple(torch.randn(1, 1, side, side, generator=stream).to(device) for side in sides)
        classes = range(max(generator.num_labels, 1)) if label is None else (label,)
        drawn = min(MOST_STARTS, max(LEAST_STARTS, 2**20 // generator.resolution**2))
        rows = torch.cat([torch.nonzero(numbers == number)[:, 0] for number in classes])
        rows = rows[torch.randperm(len(rows), generator=stream)[:drawn].to(device)]
        candidates = torch.cat([torch.stack([ws[numbers == number].mean(0) for number in classes]), ws[rows]])
        labels = [*classes, *numbers[rows].tolist()]

        # Their distances from the target, and between two random ones.
        scores, apart = [], []
        for part in candidates.split(batch_size(generator.resolution)):
            images = generator.synthesis(
                part[:, None].expand(-1, generator.num_layers, -1), noise=given_noise(noise, generator.w_avg.device)
            )
            targets = wanted.expand(len(images), -1, -1, -1)
            squares = (images - targets).square().mean((1, 2, 3))
            scores.append(distance(images, targets) + PIXEL_WEIGHT * squares)
            if len(images) > 1:
                apart.append(distance(images[1:], images[:-1]))
        nearest = int(torch.cat(scores).argmin())
        return cls(
            generator=generator,
            wanted=wanted,
            distance=distance,
            mean=mean,
            deviation=deviation,
            typical=torch.cat(apart).mean().item(),
            w=candidates[nearest],
            label=labels[nearest] if generator.num_labels else None,
            noise=noise,
        )


@torch.no_grad()
def _normalise(noise: Sequence[Tensor]) -> None:
    """Give each noise map zero mean and unit variance again."""
    for part in noise:
        part -= part.mean()
        part *= part.square().mean().rsqrt()


@torch.no_grad()
def _measured(
    search: _Search, w: Tensor, noise: tuple[Tensor, ...], target: Tensor, history: Sequence[float]
) -> Projection:
    """Return the projection at its end. Raises StepError if it has lost its way."""
    generator = search.generator
    ws = w.repeat(1, generator.num_layers // w.shape[1], 1)
    image = generator.synthesis(ws, noise=given_noise(noise, generator.w_avg.device))
    if not (image.isfinite().all() and ws.isfinite().all()):
        raise StepError("the optimisation has lost its way (values that are not finite); try another --seed")
    drawn = to_uint8(image)[0].cpu()
    return Projection(
        ws=ws.cpu(),
        noise=tuple(part.cpu() for part in noise),
        image=drawn,
        label=search.label,
        history=tuple(history),
        distance=search.distance(image, search.wanted).item(),
        typical=search.typical,
        psnr=psnr(drawn, target.cpu()),
        w_distance=(ws - search.mean).square().sum(-1).mean().sqrt().item() / search.deviation,
    )
