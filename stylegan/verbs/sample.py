"""Draw grids of images from any trained model: a run, a checkpoint, or a version in the registry."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.images import grid, png_bytes
from stylegan.networks.generator import Generator, random_noise
from stylegan.records import Record
from stylegan.training.samples import MIN_CELL
from stylegan.training.state import load_model
from stylegan.verbs.find_model import find_model

MAX_SEEDS = 10_000


class Grid(Record):
    """A grid of generated images in a PNG file."""

    path: str
    checkpoint_uri: str
    num_images: int
    resolution: int


def parse_seeds(text: str) -> list[int]:
    """Parse `0-3,7` to [0, 1, 2, 3, 7]. Raises ConfigError if it is not such a list."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if (
            not first.isdecimal()
            or (dash and not last.isdecimal())
            or (dash and int(last) < int(first))
            or len(first) > 18
        ):
            raise ConfigError(f"--seeds {text}: must be numbers and rising ranges, such as 0-15 or 1,5,9-12")
        count = int(last) - int(first) + 1 if dash else 1
        if len(seeds) + count > MAX_SEEDS:
            raise ConfigError(f"--seeds {text}: at most {MAX_SEEDS} images in one grid")
        seeds += range(int(first), int(first) + count)
    return seeds


def sample(
    config: Config | None, model: str, *, seeds: list[int], psi: float | None, label: str | None, out: str
) -> Grid:
    """Draw one image per seed and write them as a grid.

    Args:
        config, model: as for `find_model`.
        psi: truncation of the first 8 layers; None or 1 is off.
        label: class name or number of a class-conditional model; None draws the classes in turn.
        out: path of the PNG.
    """
    uri = find_model(config, model).checkpoint_uri
    generator, label_names = load_model(uri)
    labels = _labels(label, label_names, len(seeds))
    images = torch.cat(
        [_one(generator, seed, None if labels is None else labels[i : i + 1], psi) for i, seed in enumerate(seeds)]
    )
    scale = max(MIN_CELL // generator.resolution, 1)
    picture = grid(F.interpolate(images, scale_factor=scale, mode="nearest"), math.ceil(math.sqrt(len(seeds))))
    storage.write_bytes(storage.absolute(out), png_bytes(picture))
    return Grid(path=out, checkpoint_uri=uri, num_images=len(seeds), resolution=generator.resolution)


@torch.no_grad()
def _one(generator: Generator, seed: int, labels: Tensor | None, psi: float | None) -> Tensor:
    """Draw the image of a seed, [1, C, r, r]. z and noise depend on the seed alone, not on the rest of the grid."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(1, generator.w_avg.shape[0], generator=random)
    return generator(z, labels, noise=random_noise(random, "cpu"), truncation_psi=psi)


def _labels(label: str | None, names: tuple[str, ...], count: int) -> Tensor | None:
    if not names:
        if label is not None:
            raise ConfigError(f"--label {label}: this model is not class-conditional; leave it out")
        return None
    if label is None:
        return torch.arange(count) % len(names)
    if label in names:
        return torch.full((count,), names.index(label))
    if label.isdecimal() and int(label) < len(names):
        return torch.full((count,), int(label))
    raise ConfigError(f"--label {label}: no such class; the classes are {', '.join(names)}")
