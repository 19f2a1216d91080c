"""Draw images for people from a trained generator, one at a time: the bits of an image depend on nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stylegan.drawing.latents import MAX_SEED, Latents, Rng, latent
from stylegan.errors import ConfigError
from stylegan.images import to_uint8
from stylegan.networks.generator import Generator, NoiseFn, random_noise
from stylegan.progress import Progress

# `own`: from the stream of the image's seed. `stored`: the maps that the generator holds, as the official scripts. A number:
# from the stream of that seed, the same for all images.
Noise = Literal["own", "stored", "none"] | int
CUTOFF = 8  # truncated layers: those up to 32x32


def parse_noise(text: str, option: str = "--noise") -> Noise:
    """Read which noise is wanted: own, stored, none, or a seed. Raises ConfigError for anything else."""
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


def given_noise(maps: Sequence[Tensor], device: torch.device | str = "cpu") -> NoiseFn:
    """Return a noise function that gives these maps, one [1, 1, r, r] for each layer."""
    return lambda layer, n, resolution: maps[layer].to(device)


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
    w = generator.mapping(z.to(device), labels)
    return generator.truncate(w[:, None].expand(-1, generator.num_layers, -1), psi=psi, cutoff=cutoff)


@torch.no_grad()
def paint(generator: Generator, ws: Tensor, noise: NoiseFn | None) -> Tensor:
    """Compute the images of styles [N, num_layers, L], one at a time, as uint8 [N, C, r, r] on the CPU.

    Args:
        generator: in evaluation mode, on any device.
        ws: the styles.
        noise: is asked for the noise of one image after the other; None takes the maps that the generator holds.
    """
    ws = ws.to(generator.w_avg.device)
    return torch.cat([to_uint8(generator.synthesis(row, noise=noise)).cpu() for row in ws.split(1)])


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
        noise: which noise; without a torch seed, `own` is that of the same number.
        rng: whose latents; see `latent`.

    Returns:
        uint8 [N, C, r, r].

    Raises:
        ConfigError: there is no such seed.
        StepError: the generator is class-conditional and `labels` is None.
    """
    images, progress = [], Progress("sample", len(seeds))
    for seed, label in zip(seeds, [None] * len(seeds) if labels is None else labels, strict=True):
        z, stream = latent(seed, generator.model.latent_size, rng)
        ws = styles(generator, z, label, psi=psi)
        images.append(paint(generator, ws, noise_of(noise, stream, generator.w_avg.device)))
        progress.update(len(images))
    return torch.cat(images)


def draw_latents(generator: Generator, latents: Latents, *, psi: float | None = None, noise: Noise = "own") -> Tensor:
    """Draw the images of latents from a file, as uint8 [N, C, r, r].

    Args:
        generator: in evaluation mode.
        latents: see `read_latents`.
        psi: truncation of the first 8 layers; None or 1 is off.
        noise: `own` is the noise of the file, and the stored one if it has none.
    """
    device = generator.w_avg.device
    images = []
    for row in range(len(latents)):
        one = latents[row]
        maps = given_noise(one.noise, device) if noise == "own" and one.noise else noise_of(noise, None, device)
        ws = generator.truncate(one.ws.to(device), psi=psi, cutoff=CUTOFF)
        images.append(paint(generator, ws, maps))
    return torch.cat(images)
