"""Draw grids of images from any trained model: a run, a checkpoint, or a version in the registry."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stylegan.config.tree import Config
from stylegan.errors import ConfigError, shown
from stylegan.images import PICTURE_FORMATS, grid, picture_bytes, to_uint8
from stylegan.networks.generator import MAX_PSI, Generator, is_psi, random_noise
from stylegan.outputs import ending, output_file, write_output
from stylegan.records import Record
from stylegan.training.samples import MIN_CELL
from stylegan.training.state import load_model
from stylegan.verbs.find_model import find_model

MAX_SEEDS = 10_000
MAX_PIXELS = 2**28  # of one grid, which is drawn in memory: 0.8 GB as RGB


class Grid(Record):
    """A grid of generated images in a picture file."""

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
            or max(len(first), len(last)) > 18
            or (dash and int(last) < int(first))
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
        psi: truncation of the first 8 layers, from -MAX_PSI to MAX_PSI; None or 1 is off.
        label: class name or number of a class-conditional model; None draws the classes in turn.
        out: path or URI of the picture, or `-` for standard output; its ending chooses the format (PICTURE_FORMATS).

    Raises:
        ConfigError: a value is not allowed, or there is no such model.
        StepError: the model is damaged, or the picture cannot be written.
    """
    target = output_file(out, PICTURE_FORMATS)
    if psi is not None and not is_psi(psi):
        raise ConfigError(f"--psi {psi:g}: must be a number from -{MAX_PSI:g} to {MAX_PSI:g}, usually from 0 to 1")
    uri = find_model(config, model).checkpoint_uri
    generator, label_names = load_model(uri)
    labels = _labels(label, label_names, len(seeds))
    scale = max(MIN_CELL // generator.resolution, 1)
    columns = math.ceil(math.sqrt(len(seeds)))
    if (columns * generator.resolution * scale) ** 2 > MAX_PIXELS:
        most = (math.isqrt(MAX_PIXELS) // (generator.resolution * scale)) ** 2
        raise ConfigError(
            f"--seeds: {len(seeds):,} images of {generator.resolution}x{generator.resolution} are too many for one grid; "
            f"at most {most:,} fit"
        )
    images = torch.cat(
        [_one(generator, seed, None if labels is None else labels[i : i + 1], psi) for i, seed in enumerate(seeds)]
    )
    picture = grid(images.repeat_interleave(scale, 2).repeat_interleave(scale, 3), columns)
    try:
        data = picture_bytes(picture, ending(out, PICTURE_FORMATS))
    except ValueError as error:
        raise ConfigError(f"--out {out}: {error}") from error
    write_output(target, data)
    return Grid(path=out, checkpoint_uri=uri, num_images=len(seeds), resolution=generator.resolution)


@torch.no_grad()
def _one(generator: Generator, seed: int, labels: Tensor | None, psi: float | None) -> Tensor:
    """Draw the image of a seed, uint8 [1, C, r, r]. z and noise depend on the seed alone, not on the rest of the grid."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(1, generator.w_avg.shape[0], generator=random)
    return to_uint8(generator(z, labels, noise=random_noise(random, "cpu"), truncation_psi=psi))


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
    raise ConfigError(f"--label {label}: no such class; the classes are {shown(', '.join(names), 300)}")
