"""Draw images, and grids of images, from any trained model: a run, a checkpoint, or a version in the registry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stylegan.config.sections import MOST_PIXELS
from stylegan.config.tree import Config
from stylegan.errors import ConfigError, shown
from stylegan.images import CELL, PICTURE_FORMATS, class_heads, grid, picture, picture_bytes, to_uint8
from stylegan.networks.generator import MAX_PSI, Generator, is_psi, random_noise
from stylegan.outputs import ending, output_file, write_output
from stylegan.progress import Progress
from stylegan.records import Record
from stylegan.training.state import load_model
from stylegan.verbs.find_model import find_model

MOST_CLASSES, WIDEST = 16, 4096  # columns of classes that are drawn unasked, and their width in pixels, at most


class Grid(Record):
    """A grid of generated images in a picture file.

    Attributes:
        path: the file.
        checkpoint_uri: the model.
        num_images: images in the grid.
        resolution: side of an image as the model makes it.
        columns: images in a row.
        classes: the classes of the columns; empty if the columns are no classes.
        num_classes: classes of the model; 0 if it is not class-conditional.
    """

    path: str
    checkpoint_uri: str
    num_images: int
    resolution: int
    columns: int
    classes: tuple[str, ...]
    num_classes: int


def sample(
    config: Config | None,
    model: str,
    *,
    seeds: list[int],
    psi: float | None,
    labels: Sequence[str] = (),
    columns: int | None = None,
    out: str,
) -> Grid:
    """Draw a grid of images and write it as a picture.

    A class-conditional model has a row for each seed and a column for each class. An unconditional one, and one class
    alone, have one image for each seed, row by row. A single image is written without a frame.

    Args:
        config, model: as for `find_model`.
        seeds: what to draw; see `draw`.
        psi: truncation of the first 8 layers, from -MAX_PSI to MAX_PSI; None or 1 is off.
        labels: classes of a class-conditional model, by name or number; none means its first ones.
        columns: images in a row; None chooses a number.
        out: path or URI of the picture, or `-` for standard output; its ending chooses the format (PICTURE_FORMATS).

    Raises:
        ConfigError: a value is not allowed, or there is no such model.
        StepError: the model is damaged, or the picture cannot be written.
    """
    # Check what can be checked before the model is read.
    target = output_file(out, PICTURE_FORMATS)
    if psi is not None and not is_psi(psi):
        raise ConfigError(f"--psi {psi:g}: must be a number from -{MAX_PSI:g} to {MAX_PSI:g}, usually from 0 to 1")
    if columns is not None and columns < 1:
        raise ConfigError(f"--cols {columns}: must be at least 1")
    uri = find_model(config, model).checkpoint_uri
    generator, names = load_model(uri)

    # Lay out the grid.
    cell = max(generator.resolution, CELL)
    classes = _classes(labels, names)
    by_class = len(names) > 1 and len(classes) != 1
    if by_class:
        classes = _columns(classes, columns, names, cell)
        columns, drawn = len(classes), [seed for seed in seeds for _ in classes]
    else:
        columns, drawn = min(columns or math.ceil(math.sqrt(len(seeds))), len(seeds)), seeds
    in_row = 1 if by_class else columns
    rows = [seeds[start : start + in_row] for start in range(0, len(seeds), in_row)]
    if len(rows) * columns * cell**2 > MOST_PIXELS:
        raise ConfigError(
            f"--seeds: {len(drawn):,} images of {generator.resolution}x{generator.resolution} are too many for one grid; "
            f"at most {MOST_PIXELS // cell**2:,} fit"
        )

    # Draw it.
    numbers = (classes * len(drawn))[: len(drawn)]
    images = draw(generator, drawn, labels=numbers or None, psi=psi)
    if len(images) == 1:
        sheet = picture(images[0])
    else:
        heads = class_heads(names, classes) if by_class else ()
        sheet = grid(images, columns, heads=heads, sides=[_side(row) for row in rows])
    try:
        data = picture_bytes(sheet, ending(out, PICTURE_FORMATS))
    except ValueError as error:
        raise ConfigError(f"--out {out}: {error}") from error
    write_output(target, data)
    return Grid(
        path=out,
        checkpoint_uri=uri,
        num_images=len(images),
        resolution=generator.resolution,
        columns=columns,
        classes=tuple(names[number] for number in classes) if by_class else (),
        num_classes=len(names),
    )


@torch.no_grad()
def draw(
    generator: Generator, seeds: Sequence[int], *, labels: Sequence[int] | None = None, psi: float | None = None
) -> Tensor:
    """Draw one image for each seed. It depends on its seed, its label and psi alone, not on the other images.

    Args:
        generator: on the CPU, as `load_model` returns it.
        seeds: one for each image; equal seeds have equal z and noise.
        labels: the class number of each image; None for a generator that is not class-conditional.
        psi: truncation of the first 8 layers; None or 1 is off.

    Returns:
        uint8 [N, C, r, r].

    Raises:
        StepError: the generator is class-conditional and `labels` is None.
    """
    images, progress = [], Progress("sample", len(seeds))
    classes = [None] * len(seeds) if labels is None else [torch.tensor([label]) for label in labels]
    for seed, label in zip(seeds, classes, strict=True):
        random = torch.Generator().manual_seed(seed)
        z = torch.randn(1, generator.w_avg.shape[0], generator=random)
        images.append(to_uint8(generator(z, label, noise=random_noise(random, "cpu"), truncation_psi=psi)))
        progress.update(len(images))
    return torch.cat(images)


def _classes(labels: Sequence[str], names: tuple[str, ...]) -> list[int]:
    """Return the numbers of the classes that are asked for; of the only one, if the model has no other."""
    if labels and not names:
        raise ConfigError(f"--label {labels[0]}: this model is not class-conditional; leave it out")
    return [0] if len(names) == 1 and not labels else [_number(label, names) for label in dict.fromkeys(labels)]


def _columns(classes: list[int], columns: int | None, names: tuple[str, ...], cell: int) -> list[int]:
    """Return the classes of the columns: those that are asked for, else the first ones."""
    if columns is not None and columns > len(names):
        raise ConfigError(f"--cols {columns}: each class has a column, and this model has {len(names)} classes")
    if classes and columns not in (None, len(classes)):
        raise ConfigError(f"--cols {columns}: each of the {len(classes)} --label has a column; leave it out")
    return classes or list(range(columns or max(min(len(names), MOST_CLASSES, WIDEST // cell), 1)))


def _number(label: str, names: tuple[str, ...]) -> int:
    if label in names:
        return names.index(label)
    if label.isdecimal() and len(label) < 10 and int(label) < len(names):
        return int(label)
    raise ConfigError(f"--label {label}: no such class; the classes are {shown(', '.join(names), 300)}")


def _side(seeds: Sequence[int]) -> str:
    """Return what to write beside a row: its seeds, as `--seeds` takes them."""
    first, last = seeds[0], seeds[-1]
    if len(seeds) == 1:
        return f"seed {first}"
    in_turn = list(seeds) == list(range(first, last + 1))
    return f"seeds {first}-{last}" if in_turn else f"seeds {','.join(map(str, seeds))}"
