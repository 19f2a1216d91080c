"""Draws the pictures of a stage.

{stage_uri}/samples/{kimg}.png   grid of images of the averaged generator at fixed latents
{stage_uri}/samples/reals.png    grid of real images as D sees them
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.images import grid, png_bytes
from stylegan.networks.generator import random_noise
from stylegan.training import distributed
from stylegan.training.background import Background, HostCopy
from stylegan.training.job import StageJob
from stylegan.training.state import TrainState
from stylegan.training.step import process_reals

MIN_CELL = 64  # pixels: smaller images are enlarged to this size in sample grids
AT_ONCE = 16  # images in one forward pass of G


def sample_latents(config: Config, label_names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
    """Draw the fixed latents of a run's grids.

    Returns:
        z [n, latent_size], and labels, int64 [n], one class per column in turn (None without classes); n = grid * grid.
    """
    side = config.snapshots.grid
    z = torch.randn(side * side, config.model.latent_size, generator=torch.Generator().manual_seed(config.seed))
    labels = torch.arange(side * side) % side % len(label_names) if label_names else None
    return z, labels


def write_samples(job: StageJob, state: TrainState, background: Background) -> None:
    """Draw the grid of the averaged generator, without truncation (rank 0).

    The images are computed at once; the picture is encoded and written in the background.
    """
    if distributed.rank() == 0:
        images = _draw_images(job, state)
        name = f"samples/{state.nimg // 1000:06d}.png"
        background.submit(lambda: _write_grid(job, torch.cat([image.get() for image in images]), name))


def write_reals(job: StageJob, images: Tensor) -> None:
    """Write the grid of the first real images, uint8 [N, C, r, r], as D sees them."""
    _write_grid(job, process_reals(images, alpha=1.0), "samples/reals.png")


@torch.no_grad()
def _draw_images(job: StageJob, state: TrainState) -> list[HostCopy[Tensor]]:
    """Return the images of the averaged generator, [AT_ONCE, C, r, r] each. The noise is the same at every call."""
    z, labels = sample_latents(job.config, job.label_names)
    z, labels = z.to(state.device), None if labels is None else labels.to(state.device)
    noise = random_noise(torch.Generator(state.device).manual_seed(0), state.device)
    alpha = job.stage.alpha(state.nimg)
    pieces = []
    for start in range(0, len(z), AT_ONCE):
        piece = slice(start, start + AT_ONCE)
        images = state.G_ema(z[piece], None if labels is None else labels[piece], alpha=alpha, noise=noise)
        pieces.append(HostCopy(images, state.device))
    return pieces


def _write_grid(job: StageJob, images: Tensor, name: str) -> None:
    scale = max(MIN_CELL // images.shape[-1], 1)
    large = F.interpolate(images, scale_factor=scale, mode="nearest")
    storage.write_bytes(storage.join(job.uri, name), png_bytes(grid(large, job.config.snapshots.grid)))
