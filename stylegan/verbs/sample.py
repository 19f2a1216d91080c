"""Draw images, and grids of images, from any trained model: a run, a checkpoint, or a version in the registry."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from stylegan.config.sections import MOST_PIXELS
from stylegan.config.tree import Config
from stylegan.drawing.draw import Noise, draw, of_file, paint_latents
from stylegan.drawing.latents import Rng, check_seed, read_latents
from stylegan.errors import ConfigError, shown
from stylegan.images import CELL, PICTURE_FORMATS, class_heads, grid, picture, picture_bytes
from stylegan.networks.generator import MAX_PSI, Generator, is_psi
from stylegan.outputs import ending, output_file, write_output
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
    seeds: Sequence[int] = (),
    psi: float | None = None,
    labels: Sequence[str] = (),
    columns: int | None = None,
    noise: Noise = "own",
    rng: Rng = "torch",
    w: Sequence[str] = (),
    out: str,
) -> Grid:
    """Draw a grid of images and write it as a picture.

    A class-conditional model has a row for each seed and a column for each class. An unconditional one, one class alone,
    and latents of files have one image after the other, row by row. A single image is written without a frame.

    Args:
        config, model: as for `find_model`.
        seeds: what to draw; see `draw`.
        psi: truncation of the first 8 layers, from -MAX_PSI to MAX_PSI; None or 1 is off.
        labels: classes of a class-conditional model, by name or number; none means its first ones.
        columns: images in a row; None chooses a number.
        noise, rng: see `draw`.
        w: files of latents that are drawn instead of seeds; see `read_latents`.
        out: path or URI of the picture, or `-` for standard output; its ending chooses the format (PICTURE_FORMATS).

    Raises:
        ConfigError: a value is not allowed, or there is no such model.
        StepError: the model is damaged, or the picture cannot be written.
    """
    # Check what can be checked before the model is read.
    target = output_file(out, PICTURE_FORMATS)
    check_psi(psi)
    if columns is not None and columns < 1:
        raise ConfigError(f"--cols {columns}: must be at least 1")
    for seed in seeds:
        check_seed(seed, rng)
    if w and labels:
        raise ConfigError(f"--label {labels[0]}: the latents of --w have their class in them; leave it out")
    uri = find_model(config, model).checkpoint_uri
    generator, names = load_model(uri)
    check_truncation(psi, generator)

    # Lay out the grid.
    cell = max(generator.resolution, CELL)
    latents = [one for name in w for one in read_latents(name, generator).rows()]
    classes = [] if w else classes_of(labels, names)
    by_class = not w and len(names) > 1 and len(classes) != 1
    if by_class:
        classes = _columns(classes, columns, names, cell)
        columns, number = len(classes), len(seeds) * len(classes)
    else:
        number = len(latents) if w else len(seeds)
        columns = min(columns or math.ceil(math.sqrt(number)), number)
    in_row = 1 if by_class else columns
    rows = [seeds[start : start + in_row] for start in range(0, len(seeds), in_row)]
    check_size(-(-number // columns) * columns, generator, option="--w" if w else "--seeds")

    # Draw it.
    if w:
        images: Sequence[Tensor] = [
            paint_latents(generator, of_file(generator, one, psi=psi, noise=noise))[0] for one in latents
        ]
    else:
        drawn = [seed for seed in seeds for _ in classes] if by_class else seeds
        numbers = (classes * number)[:number]
        images = list(draw(generator, drawn, labels=numbers or None, psi=psi, noise=noise, rng=rng))
    if len(images) == 1:
        sheet = picture(images[0])
    else:
        heads = class_heads(names, classes) if by_class else ()
        sheet = grid(images, columns, heads=heads, sides=() if w else [_side(row) for row in rows])
    write_picture(out, target, sheet)
    return Grid(
        path=out,
        checkpoint_uri=uri,
        num_images=len(images),
        resolution=generator.resolution,
        columns=columns,
        classes=tuple(names[number] for number in classes) if by_class else (),
        num_classes=len(names),
    )


# --- what the verbs that draw share -----------------------------------------------------------------------------------


def check_psi(psi: float | None) -> None:
    """Raise ConfigError if a `--psi` cannot be one."""
    if psi is not None and not is_psi(psi):
        raise ConfigError(f"--psi {psi:g}: must be a number from -{MAX_PSI:g} to {MAX_PSI:g}, usually from 0 to 1")


def check_truncation(psi: float | None, generator: Generator) -> None:
    """Raise ConfigError if a `--psi` truncates, and the generator has no w for it."""
    if psi not in (None, 1) and not generator.model.has_w:
        raise ConfigError(f"--psi {psi:g}: this model has no w to truncate (model.architecture: resnet); leave it out")


def check_size(number: int, generator: Generator, *, option: str) -> None:
    """Raise ConfigError if so many images are too many for one grid."""
    cell = max(generator.resolution, CELL)
    if number * cell**2 > MOST_PIXELS:
        raise ConfigError(
            f"{option}: {number:,} images of {generator.resolution}x{generator.resolution} are too many for one grid; "
            f"at most {MOST_PIXELS // cell**2:,} fit"
        )


def write_picture(out: str, target: str, sheet: Image.Image) -> None:
    """Write a picture in the format that the ending of an `--out` names.

    Args:
        out: as it was given.
        target: what `output_file` has made of it.
        sheet: the picture.

    Raises:
        ConfigError: the format cannot hold a picture of this size.
        StepError: it cannot be written.
    """
    try:
        data = picture_bytes(sheet, ending(out, PICTURE_FORMATS))
    except ValueError as error:
        raise ConfigError(f"--out {out}: {error}") from error
    write_output(target, data)


def one_class(label: str | None, names: tuple[str, ...]) -> int | None:
    """Return the number of the class that is asked for, or the first one; None for a model without classes.

    Raises:
        ConfigError: there is no such class.
    """
    classes = classes_of([label] if label is not None else [], names)
    return classes[0] if classes else 0 if names else None


def classes_of(labels: Sequence[str], names: tuple[str, ...]) -> list[int]:
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
