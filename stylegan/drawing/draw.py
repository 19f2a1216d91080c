"""Draw images for people from a trained generator, one at a time: the bits of an image depend on nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from stylegan.drawing.latents import MAX_SEED, Latents, Rng, latent
from stylegan.errors import ConfigError
from stylegan.images import to_uint8
from stylegan.networks.generator import Generator, NoiseFn, layer_resolution, random_noise
from stylegan.progress import Progress

# `own`: from the stream of the image's seed. `stored`: the maps that the generator holds, as the official scripts. A number:
# from the stream of that seed, the same for all images.
Noise = Literal["own", "stored", "none"] | int
CUTOFF = 8  # truncated layers: those up to 32x32
# Side of the images that one thread draws: several are hardly faster there, and slower on a busy machine. They also sum in
# another order, so that such an image has the same bits whatever the number of processors.
SMALL = 64


def parse_noise(text: str | None, rng: Rng = "torch", option: str = "--noise") -> Noise:
    """Read which noise is wanted: own, stored, none, or a seed; unset is own, and stored for latents of the official scripts.

    Raises:
        ConfigError: it is anything else.
    """
    if text is None:
        return "own" if rng == "torch" else "stored"
    if text in ("own", "stored", "none"):
        return text  # type: ignore[return-value]
    if text.isdecimal() and text.isascii() and int(text) <= MAX_SEED:
        return int(text)
    raise ConfigError(f"{option} {text}: must be own, stored, none, or a seed from 0 to {MAX_SEED}")


def noise_of(noise: Noise, stream: torch.Generator | None, device: torch.device | str = "cpu") -> NoiseFn | None:
    """Return the function that draws the noise of one image; None means the maps that the generator holds.

    Args:
        noise: which one.
        stream: of the image's seed, behind its z; None for an image without a seed, whose own noise is the stored one.
        device: where it is needed. It is drawn on the CPU, so that every machine draws the same.
    """
    if noise == "none":
        return no_noise(device)
    if isinstance(noise, int):
        return random_noise(torch.Generator().manual_seed(noise), device)
    return random_noise(stream, device) if noise == "own" and stream else None


def no_noise(device: torch.device | str = "cpu") -> NoiseFn:
    """Return a noise function of zeros."""
    return lambda layer, n, resolution: torch.zeros(n, 1, resolution, resolution, device=device)


def given_noise(maps: Sequence[Tensor], device: torch.device | str = "cpu") -> NoiseFn | None:
    """Return a noise function that gives these maps, [1 or k, 1, r, r] for each layer; more than k images have them in turn.

    None, the maps that the generator holds, without maps.
    """

    def give(layer: int, n: int, resolution: int) -> Tensor:
        part = maps[layer].to(device)
        return part if len(part) in (1, n) else part.repeat(n // len(part), 1, 1, 1)

    return give if maps else None


def noise_maps(generator: Generator, noise: NoiseFn | None) -> tuple[Tensor, ...]:
    """Return the maps [1, 1, r, r] of each layer that a noise function draws for one image.

    None are returned for the maps that the generator holds, and for a model without noise.
    """
    if noise is None or not generator.model.has_noise:
        return ()
    return tuple(noise(layer, 1, layer_resolution(layer)) for layer in range(generator.num_layers))


@contextmanager
def drawing_threads(generator: Generator) -> Iterator[None]:
    """Draw with the number of threads that images of this size are drawn with, inside the block.

    torch's number is that of the whole process. Threads that draw at the same time have it set before they begin.
    """
    before = torch.get_num_threads()
    number = 1 if generator.resolution <= SMALL else before
    if number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def styles(
    generator: Generator, z: Tensor, label: int | None, *, psi: float | None = None, cutoff: int = CUTOFF
) -> Tensor:
    """Compute the styles of an image.

    Args:
        generator: in evaluation mode, on any device.
        z: [N, L].
        label: the class; None for a generator that is not class-conditional.
        psi: truncation of the first `cutoff` layers; None or 1 is off.
        cutoff: number of truncated layers.

    Returns:
        ws [N, num_layers, L].

    Raises:
        StepError: the generator is class-conditional and `label` is None.
    """
    device = generator.w_avg.device
    labels = None if label is None else torch.tensor([label], device=device).expand(len(z))
    with drawing_threads(generator):
        w = generator.mapping(z.to(device), labels)
    return generator.truncate(w[:, None].expand(-1, generator.num_layers, -1), psi=psi, cutoff=cutoff)


@torch.no_grad()
def paint(generator: Generator, ws: Tensor, noise: NoiseFn | None, *, batch: int = 1) -> Tensor:
    """Compute the images of styles [N, num_layers, L] as uint8 [N, C, r, r] on the CPU.

    Args:
        generator: in evaluation mode, on any device.
        ws: the styles.
        noise: is asked for the noise of one batch after the other; None takes the maps that the generator holds.
        batch: images at a time. Many are faster; the last bit of an image may then depend on those beside it.
    """
    ws = ws.to(generator.w_avg.device)
    with drawing_threads(generator):
        return torch.cat([to_uint8(generator.synthesis(rows, noise=noise)).cpu() for rows in ws.split(batch)])


def of_seed(
    generator: Generator,
    seed: int,
    label: int | None,
    *,
    psi: float | None = None,
    noise: Noise = "own",
    rng: Rng = "torch",
) -> Latents:
    """Return the latents of one seed, truncated. Arguments and errors as for `draw`."""
    z, stream = latent(seed, generator.model.latent_size, rng)
    ws = styles(generator, z, label, psi=psi)
    return Latents(ws, noise_maps(generator, noise_of(noise, stream, generator.w_avg.device)))


def of_file(generator: Generator, latents: Latents, *, psi: float | None = None, noise: Noise = "own") -> Latents:
    """Return the latents of one image of a file, truncated.

    Args:
        generator: in evaluation mode.
        latents: of one image; see `read_latents`.
        psi: truncation of the first 8 layers; None or 1 is off.
        noise: `own` is the noise of the file, and the stored one if it has none.
    """
    device = generator.w_avg.device
    ws = generator.truncate(latents.ws.to(device), psi=psi, cutoff=CUTOFF)
    return Latents(ws, latents.noise if noise == "own" else noise_maps(generator, noise_of(noise, None, device)))


def paint_latents(generator: Generator, latents: Latents, *, batch: int = 1) -> Tensor:
    """Compute the images of latents as uint8 [N, C, r, r] on the CPU; `batch` as for `paint`."""
    return paint(generator, latents.ws, given_noise(latents.noise, generator.w_avg.device), batch=batch)


def draw(
    generator: Generator,
    seeds: Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    psi: float | None = None,
    noise: Noise = "own",
    rng: Rng = "torch",
) -> Tensor:
    """Draw one image for each seed. It depends on its seed, its label and the options alone, not on the other images.

    Args:
        generator: in evaluation mode, as `load_model` returns it.
        seeds: one for each image; equal seeds have equal z and own noise.
        labels: the class number of each image; None for a generator that is not class-conditional.
        psi: truncation of the first 8 layers; None or 1 is off.
        noise: which noise.
        rng: whose latents; see `latent`. The own noise of a seed is the same with both.

    Returns:
        uint8 [N, C, r, r].

    Raises:
        ConfigError: there is no such seed.
        StepError: the generator is class-conditional and `labels` is None.
    """
    images, progress = [], Progress("sample", len(seeds))
    for seed, label in zip(seeds, [None] * len(seeds) if labels is None else labels, strict=True):
        images.append(paint_latents(generator, of_seed(generator, seed, label, psi=psi, noise=noise, rng=rng)))
        progress.update(len(images))
    return torch.cat(images)
