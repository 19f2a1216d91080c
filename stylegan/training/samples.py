"""Draws the pictures of a stage, and of a run how they grow.

{stage_uri}/samples/{kimg}.png   grid of images of the averaged generator at fixed latents
{stage_uri}/samples/reals.png    grid of real images as D sees them
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.data.loading.loader import ImageTable
from stylegan.errors import DamagedError, StepError, one_line
from stylegan.images import (
    CELL,
    PAPER,
    Pixels,
    animation_bytes,
    captioned,
    class_heads,
    cut,
    grid,
    open_picture,
    png_bytes,
    thumbnail,
    to_uint8,
)
from stylegan.networks.generator import random_noise
from stylegan.records import Record
from stylegan.training import distributed
from stylegan.training.background import Background, HostCopy
from stylegan.training.job import StageJob
from stylegan.training.state import TrainState

AT_ONCE = 16  # images in one forward pass of G
LARGEST_CELL = 256  # pixels: up to this side the images of all stages are drawn as large as those of the last one
FILM_FRAMES, FILM_ROWS, FILM_SIDE = 16, 2, 128  # of a film strip, at most: frames, images in each, their side in pixels
FRAMES, FRAME_SIDE = 40, 720  # of the animation of a run, at most: its number of frames, and their side in pixels

logger = logging.getLogger("stylegan")


# --- while a stage trains ---------------------------------------------------------------------------------------------


def sample_latents(config: Config, label_names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
    """Draw the fixed latents of a run's grids.

    Returns:
        z [n, latent_size], and labels, int64 [n], one class per column in turn (None without classes); n = grid * grid.
    """
    num = config.snapshots.grid**2
    z = torch.randn(num, config.model.latent_size, generator=torch.Generator().manual_seed(config.seed))
    return z, torch.tensor(_classes(config, label_names)) if label_names else None


def _classes(config: Config, label_names: tuple[str, ...]) -> list[int]:
    """Return the class of each cell of a grid."""
    side = config.snapshots.grid
    return [column % len(label_names) for _ in range(side) for column in range(side)]


def write_samples(job: StageJob, state: TrainState, background: Background) -> None:
    """Draw the grid of the averaged generator, without truncation (rank 0).

    The images are computed at once; the picture is encoded and written in the background.
    """
    if distributed.rank() == 0:
        images = _draw_images(job, state)
        name = f"samples/{state.nimg // 1000:06d}.png"
        background.submit(lambda: _write_grid(job, torch.cat([piece.get() for piece in images]), name))


def write_reals(job: StageJob, table: ImageTable) -> None:
    """Write a grid of the first real images.

    That of a conditional model has the classes of the sample grids in the same columns, so that the two can be laid side
    by side. Where a class has too few images, cells stay empty.
    """
    _write_grid(job, _reals(job, table), "samples/reals.png")


def _reals(job: StageJob, table: ImageTable) -> list[np.ndarray | None]:
    """Return the real image of each cell, uint8 [C, r, r]."""
    if not job.label_names:
        return list(table.images[: job.config.snapshots.grid**2])

    # The next image of the class of each cell, while there are any.
    classes = _classes(job.config, job.label_names)
    left = {label: iter(np.flatnonzero(table.labels == label).tolist()) for label in set(classes)}
    numbers = [next(left[label], None) for label in classes]
    images = iter(table.images[np.array([number for number in numbers if number is not None], np.int64)])
    return [None if number is None else next(images) for number in numbers]


@torch.no_grad()
def _draw_images(job: StageJob, state: TrainState) -> list[HostCopy[Tensor]]:
    """Return the images of the averaged generator, uint8 [AT_ONCE, C, r, r] each; the noise is the same at every call."""
    z, labels = sample_latents(job.config, job.label_names)
    z, labels = z.to(state.device), None if labels is None else labels.to(state.device)
    noise = random_noise(torch.Generator(state.device).manual_seed(0), state.device)
    alpha = job.stage.alpha(state.nimg)
    pieces = []
    for start in range(0, len(z), AT_ONCE):
        piece = slice(start, start + AT_ONCE)
        images = state.G_ema(z[piece], None if labels is None else labels[piece], alpha=alpha, noise=noise)
        pieces.append(HostCopy(to_uint8(images), state.device))
    return pieces


def _write_grid(job: StageJob, images: Sequence[Pixels | None] | Tensor, name: str) -> None:
    """Write a grid of the stage. Its images are where those of every other stage are, so that one sees the run grow."""
    columns, names = job.config.snapshots.grid, job.label_names
    heads = class_heads(names, _classes(job.config, names)[:columns]) if names else []
    picture = grid(images, columns, cell=cell_of(job.config), heads=heads)
    storage.write_bytes(storage.join(job.uri, name), png_bytes(picture))


def cell_of(config: Config) -> int:
    """Return the side of a cell of the grids of all stages, in pixels."""
    return max(min(config.data.resolution, LARGEST_CELL), CELL)


# --- when a run is trained --------------------------------------------------------------------------------------------


def sample_grids(stage_uri: str) -> dict[int, str]:
    """Return the URIs of a stage's sample grids by their kimg, the oldest first."""
    folder = storage.join(stage_uri, "samples")
    names = [name.partition(".") for name in sorted(storage.names(folder))]
    return {int(kimg): storage.join(folder, f"{kimg}.png") for kimg, _, end in names if kimg.isdigit() and end == "png"}


def draw_growth(stage_uris: Mapping[int, str]) -> bytes:
    """Draw how the images of a run grow, as an animation of the sample grids of its stages.

    Every stage has the same share of at most FRAMES frames, chosen evenly, up to its last one. All have the size of the
    run's last grid, or FRAME_SIDE if that is larger. A grid that is gone or damaged is left out with a warning.

    Args:
        stage_uris: the folders of the stages by their resolutions, in their order.

    Returns:
        The bytes of an animated WebP file; the same grids give the same bytes.

    Raises:
        StepError: there is no grid.
    """
    chosen = [
        (resolution, kimg, uri)
        for resolution, stage_uri in stage_uris.items()
        for kimg, uri in _evenly(list(sample_grids(stage_uri).items()), max(FRAMES // len(stage_uris), 1))
    ]

    # From the last grid, whose size all take, to the first.
    frames: list[Image.Image] = []
    size: tuple[int, int] | None = None
    for resolution, kimg, uri in reversed(chosen):
        try:
            picture = open_picture(storage.read_bytes(uri), uri, cure="the animation goes without it")
        except (FileNotFoundError, DamagedError) as error:
            logger.warning("%s", error)
            continue
        size = size or _within(picture.size, FRAME_SIDE)
        enlarged = picture.width <= size[0]
        method = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
        text = f"{resolution}x{resolution} after {kimg:,} kimg"
        frames.append(captioned(ImageOps.pad(picture, size, method, color=PAPER), text))
    if not frames:
        raise StepError(f"{', '.join(stage_uris.values())}: hold no sample grid")
    return animation_bytes(frames[::-1])


class Frame(Record):
    """What a run drew of a few of its latents at one time: a PNG file of each image."""

    resolution: int
    kimg: int
    images: tuple[bytes, ...]


def read_film(config: Config, stage_uris: Mapping[int, str]) -> list[Frame]:
    """Cut the images of the same few latents out of the sample grids of a run, over its whole length.

    Every stage has the same share of at most FILM_FRAMES frames, chosen evenly, up to its last one. A grid that is gone,
    damaged, or of another size (that of another run with the same stage) is left out.

    Args:
        config: of the run.
        stage_uris: the folders of the stages by their resolutions, in their order.
    """
    side = config.snapshots.grid
    first = side + 1 if config.transfer else 0  # the first row and column of a style transfer are what it was given
    numbers = sorted({first, first + (side - 1) // 2 if config.transfer else side // 2})[:FILM_ROWS]
    frames = []
    for resolution, stage_uri in stage_uris.items():
        for kimg, uri in _evenly(list(sample_grids(stage_uri).items()), max(FILM_FRAMES // len(stage_uris), 1)):
            try:
                sheet = open_picture(storage.read_bytes(uri), uri, cure="the film strip goes without it")
                found = [
                    cut(sheet, number, columns=side, rows=side, side=resolution, cell=cell_of(config))
                    for number in numbers
                ]
            except (FileNotFoundError, DamagedError, ValueError) as error:
                logger.info("%s: is left out of the film strip (%s)", uri, one_line(error))
                continue
            frames.append(
                Frame(resolution=resolution, kimg=kimg, images=tuple(thumbnail(one, FILM_SIDE) for one in found))
            )
    return frames


def _evenly(items: list[tuple[int, str]], most: int) -> list[tuple[int, str]]:
    """Return at most so many items at even distances, the last one among them."""
    steps = np.linspace(len(items) - 1, 0, min(most, len(items))).round().astype(int)
    return [items[step] for step in steps[::-1]]


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return a size, made smaller if need be so that its longer side is at most `side`."""
    scale = min(side / max(size), 1)
    return round(size[0] * scale), round(size[1] * scale)
