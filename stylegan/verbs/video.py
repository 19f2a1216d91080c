"""Films of a closed walk through latent space, from image to image and back to the first one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from stylegan.config.tree import Config
from stylegan.drawing.draw import Noise, of_file, of_seed, paint_latents, styles
from stylegan.drawing.figures import film_frames
from stylegan.drawing.film import CELL, FILM_FORMATS, check_film, film_format, write_film
from stylegan.drawing.interpolate import StyleWalk, walk_z
from stylegan.drawing.latents import Latents, Rng, check_seed, latent, read_latents
from stylegan.errors import ConfigError
from stylegan.evaluation.generate import batch_size
from stylegan.networks.generator import Generator
from stylegan.outputs import ending, output_file
from stylegan.progress import Progress
from stylegan.records import Record
from stylegan.training.state import load_model
from stylegan.verbs.find_model import find_model
from stylegan.verbs.sample import check_psi, check_truncation, one_class

MOST_FRAMES, MOST_FPS, MOST_CELLS = 100_000, 120, 256


class Film(Record):
    """A film of a walk.

    Attributes:
        path: the file.
        checkpoint_uri: the model.
        num_frames: frames of the film.
        fps: frames in a second.
        width, height: of a frame in pixels.
        keyframes: images that each cell walks through.
    """

    path: str
    checkpoint_uri: str
    num_frames: int
    fps: int
    width: int
    height: int
    keyframes: int


def video(
    config: Config | None,
    model: str,
    *,
    seeds: Sequence[int] = (),
    w: Sequence[str] = (),
    grid: str = "1x1",
    seconds: float = 10.0,
    fps: int = 30,
    space: Literal["z", "w"] = "z",
    psi: float | None = None,
    label: str | None = None,
    noise: Noise = "own",
    rng: Rng = "torch",
    device: str = "cpu",
    out: str | None = None,
) -> Film:
    """Draw a film: every cell of a grid walks through its images, and ends where it began.

    The noise of a cell is the same in every frame, so that nothing flickers. No more than a few frames are in memory.

    Args:
        config, model: as for `find_model`.
        seeds: the images; each cell has as many of them, in their order.
        w: files of latents that are walked through instead of seeds, in the space w; see `read_latents`.
        grid: columns and rows, such as 2x2.
        seconds: length of the film.
        fps: frames in a second.
        space: z follows great circles between the latents of two seeds; w a smooth curve through their styles.
        psi: truncation of the first 8 layers, from -MAX_PSI to MAX_PSI; None or 1 is off.
        label: the class, by name or number; None: each cell has one, in turn.
        noise: `own` is that of the first image of a cell; see `draw`.
        rng: whose latents; see `latent`.
        device: torch device that draws.
        out: path or URI of the film, or `-` for standard output; None is video.mp4, or video.webp without an encoder.

    Raises:
        ConfigError: a value is not allowed, or there is no such model.
        StepError: the model is damaged, or the film cannot be written.
    """
    # Check what can be checked before the model is read.
    out = f"video{film_format()}" if out is None else out
    target = output_file(out, FILM_FORMATS)
    check_film(out)
    check_psi(psi)
    for seed in seeds:
        check_seed(seed, rng)
    columns, rows = _grid(grid)
    count = _count(seconds, fps)
    if w and label is not None:
        raise ConfigError(f"--label {label}: the latents of --w have their class in them; leave it out")

    # The images that each cell walks through.
    uri = find_model(config, model).checkpoint_uri
    generator, names = load_model(uri)
    check_truncation(psi, generator)
    generator = generator.to(device)
    cells, files = columns * rows, [one for name in w for one in read_latents(name, generator).rows()]
    number = len(files) if w else len(seeds)
    if number % cells or number < 2 * cells:
        option, what = ("--w", "latents") if w else ("--seeds", "seeds")
        raise ConfigError(
            f"{option}: {number} {what} for the {cells} cells of --grid {grid}; each cell needs the same number of them, "
            f"two at least: {2 * cells}, {3 * cells}, ..."
        )
    keys = number // cells
    side = generator.resolution * max(CELL // generator.resolution, 1)
    check_film(out, (columns * side, rows * side))
    classes = [
        one_class(label, names) if label is not None else cell % len(names) if names else None for cell in range(cells)
    ]

    # The noise of each cell, and its way.
    firsts, walk = (
        _through_files(generator, files, cells, psi, noise)
        if w
        else _through_seeds(generator, seeds, classes, psi=psi, noise=noise, rng=rng, space=space)
    )

    def images(cell: int, ws: Tensor) -> Tensor:
        return paint_latents(generator, Latents(ws, firsts[cell].noise), batch=batch_size(generator.resolution))

    frames = film_frames(
        images,
        walk,
        num_keys=keys,
        count=count,
        columns=columns,
        cell_side=CELL,
        at_once=max(batch_size(generator.resolution) // cells, 1),
    )
    write_film(target, ending(out, FILM_FORMATS), _counted(frames, count), count=count, fps=fps)
    return Film(
        path=out,
        checkpoint_uri=uri,
        num_frames=count,
        fps=fps,
        width=columns * side,
        height=rows * side,
        keyframes=keys,
    )


def first_seeds(grid: str) -> list[int]:
    """Return the seeds of a film for which nobody has chosen any: two for each cell, and four in all at least."""
    columns, rows = _grid(grid)
    return list(range(max(2 * columns * rows, 4)))


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text, re.ASCII)
    if not match or int(match[1]) * int(match[2]) > MOST_CELLS:
        raise ConfigError(f"--grid {text}: must be columns x rows, such as 2x2; at most {MOST_CELLS} cells")
    return int(match[1]), int(match[2])


def _count(seconds: float, fps: int) -> int:
    """Return the number of frames."""
    if not 1 <= fps <= MOST_FPS:
        raise ConfigError(f"--fps {fps}: must be from 1 to {MOST_FPS}")
    if not 0 < seconds <= MOST_FRAMES / fps:  # NaN, too
        raise ConfigError(f"--seconds {seconds:g}: must be above 0 and at most {MOST_FRAMES / fps:g} at {fps} fps")
    return max(round(seconds * fps), 2)


def _through_seeds(
    generator: Generator,
    seeds: Sequence[int],
    classes: Sequence[int | None],
    *,
    psi: float | None,
    noise: Noise,
    rng: Rng,
    space: Literal["z", "w"],
) -> tuple[list[Latents], Callable[[float], Tensor]]:
    """Return the first image of each cell, and the styles [cells, num_layers, L] of all of them at a position."""
    keys = len(seeds) // len(classes)
    of_cells = [seeds[cell * keys : (cell + 1) * keys] for cell in range(len(classes))]
    firsts = [
        of_seed(generator, own[0], label, psi=psi, noise=noise, rng=rng)
        for own, label in zip(of_cells, classes, strict=True)
    ]
    size = generator.model.latent_size
    z = torch.stack([torch.cat([latent(seed, size, rng)[0] for seed in own]) for own in of_cells], dim=1)

    def at(z: Tensor) -> Tensor:
        """Return the styles of z [cells, L]."""
        rows = zip(z.split(1), classes, strict=True)
        return torch.cat([styles(generator, row, label, psi=psi) for row, label in rows])

    if space == "z":
        return firsts, lambda position: at(walk_z(z, position))
    return firsts, StyleWalk(torch.stack([at(step) for step in z]))


def _through_files(
    generator: Generator, files: Sequence[Latents], cells: int, psi: float | None, noise: Noise
) -> tuple[list[Latents], Callable[[float], Tensor]]:
    """Return as `_through_seeds` does."""
    keys = len(files) // cells
    ready = [of_file(generator, one, psi=psi, noise=noise) for one in files]
    ws = torch.cat([one.ws for one in ready]).unflatten(0, (cells, keys)).transpose(0, 1)
    return ready[::keys], StyleWalk(ws)


def _counted(frames: Iterator[Image.Image], count: int) -> Iterator[Image.Image]:
    progress = Progress("video", count, "frames")
    for number, frame in enumerate(frames, start=1):
        yield frame
        progress.update(number)
