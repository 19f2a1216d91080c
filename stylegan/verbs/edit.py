"""Edit images along the directions of attributes that separability has found in w."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.tree import Config
from stylegan.drawing.directions import MAX_STRENGTH, Direction, apply, directions_of, find_direction
from stylegan.drawing.draw import Noise, of_file, of_seed, paint_latents
from stylegan.drawing.latents import Latents, Rng, check_seed, read_latents
from stylegan.drawing.projected import W_FILE
from stylegan.errors import ConfigError
from stylegan.evaluation.directions import DIRECTIONS
from stylegan.evaluation.page.write_page import read_report
from stylegan.images import PICTURE_FORMATS, captioned, grid
from stylegan.networks.generator import Generator
from stylegan.outputs import output_file
from stylegan.records import Record
from stylegan.training.state import load_model
from stylegan.verbs.find_model import Model, find_model
from stylegan.verbs.sample import check_psi, check_size, one_class, write_picture

COLUMNS, MOST_COLUMNS = 7, 64  # of a range whose ends say no other number


class Strip(Record):
    """A grid of edited images in a picture file: a row for each image, a column for each strength.

    Attributes:
        path: the file.
        checkpoint_uri: the model.
        attribute: that the images are edited along.
        scale: one unit of strength in w: the standard deviation of w along the direction.
        entropy: what the direction leaves open of the attribute, in nats; 0 is a perfect separation.
        strengths: of the columns.
        rows: what the rows show: `seed 3`, or the number of an image in the file of latents.
        label: the class of the seeds; empty for a model without classes and for latents of a file.
    """

    path: str
    checkpoint_uri: str
    attribute: str
    scale: float
    entropy: float
    strengths: tuple[float, ...]
    rows: tuple[str, ...]
    label: str = ""


def edit(
    config: Config | None,
    model: str,
    *,
    attribute: str,
    strengths: Sequence[float],
    seeds: Sequence[int] = (),
    w: Sequence[str] = (),
    psi: float | None = None,
    label: str | None = None,
    noise: Noise = "own",
    rng: Rng = "torch",
    directions: str | None = None,
    out: str,
) -> Strip:
    """Draw images moved along the direction of an attribute, and write them as a picture.

    Args:
        config, model: as for `find_model`.
        attribute: a name in the directions of the model's run.
        strengths: of the columns, in standard deviations of w along the direction; 0 is the image itself.
        seeds: of the images.
        w: files of latents, edited instead of seeds; see `read_latents`.
        psi: truncation of the first 8 layers, before the edit; None or 1 is off.
        label: class of the seeds, by name or number; None means the first one.
        noise, rng: see `draw`.
        directions: folder of an evaluation, or its file of directions, to take instead of those of the model's run.
        out: path or URI of the picture, or `-` for standard output; its ending chooses the format (PICTURE_FORMATS).

    Raises:
        ConfigError: a value is not allowed, there is no such model or attribute, or the model has no directions.
        StepError: the model is damaged, or the picture cannot be written.
    """
    target = output_file(out, PICTURE_FORMATS)
    check_psi(psi)
    for seed in seeds:
        check_seed(seed, rng)
    found = find_model(config, model)
    generator, names = load_model(found.checkpoint_uri)
    if not generator.model.has_styles:
        raise ConfigError(f"{model}: has no styles to edit (it was trained with {generator.model.lacking('styles')})")
    direction = find_direction(_directions(found, generator, directions), attribute)
    number = one_class(label, names)

    # The images of the rows.
    files = [(uri, read_latents(uri, generator).rows()) for uri in w]
    num_rows = sum(len(rows) for _, rows in files) + len(seeds)
    check_size(num_rows * len(strengths), generator, option="--strength and --seeds")
    rows = [
        (_mark(uri) if len(found_in_file) == 1 else f"image {row}", of_file(generator, latents, psi=psi, noise=noise))
        for uri, found_in_file in files
        for row, latents in enumerate(found_in_file)
    ]
    rows += [(f"seed {seed}", of_seed(generator, seed, number, psi=psi, noise=noise, rng=rng)) for seed in seeds]

    images = [image for _, latents in rows for image in draw_edits(generator, latents, direction, strengths)]
    heads = [f"{strength:+g}" if strength else "0" for strength in strengths]
    sheet = grid(images, len(strengths), heads=heads, sides=[mark for mark, _ in rows])
    write_picture(out, target, captioned(sheet, attribute))
    return Strip(
        path=out,
        checkpoint_uri=found.checkpoint_uri,
        attribute=attribute,
        scale=direction.scale,
        entropy=direction.entropy,
        strengths=tuple(strengths),
        rows=tuple(mark for mark, _ in rows),
        label=names[number] if number is not None and seeds else "",
    )


def draw_edits(
    generator: Generator, latents: Latents, direction: Direction, strengths: Sequence[float]
) -> list[Tensor]:
    """Draw one image at each strength, uint8 [C, r, r] each; its noise is the same in all."""
    moved = (replace(latents, ws=apply(latents.ws, direction, strength)) for strength in strengths)
    return [paint_latents(generator, one)[0] for one in moved]


def parse_strengths(text: str) -> list[float]:
    """Parse `-3..3` or `-2,0,2.5` to strengths.

    A range has a column for each whole number, if its ends are whole and not too far apart, and else COLUMNS of them.

    Raises:
        ConfigError: it is neither, or a strength is beyond MAX_STRENGTH.
    """
    rule = f"--strength {text}: must be a range such as -3..3 or a list such as -2,0,2, from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}"
    number = r"[+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
    if not re.fullmatch(rf"{number}(\.\.{number}|(,{number})*)", text.replace(" ", "")):
        raise ConfigError(rule)
    ends = [float(part) for part in text.replace(" ", "").split("..")] if ".." in text else []
    if ends:
        first, last = ends
        whole = first.is_integer() and last.is_integer() and 0 < abs(last - first) <= 2 * MAX_STRENGTH
        count = int(abs(last - first)) + 1 if whole else COLUMNS
        found = [first + (last - first) * column / (count - 1) for column in range(count)]
    else:
        found = [float(part) for part in text.split(",")]
    if (
        (ends and ends[0] == ends[1])
        or any(abs(strength) > MAX_STRENGTH for strength in found)
        or len(found) > MOST_COLUMNS
    ):
        raise ConfigError(rule)
    return [round(strength, 6) for strength in found]


def _mark(uri: str) -> str:
    """Return what to write beside the image of a file: the folder that `project` has named after its picture, or the file."""
    name = storage.name(uri)
    return storage.name(os.path.dirname(storage.absolute(uri))) if name == W_FILE else name


def _directions(model: Model, generator: Generator, given: str | None) -> tuple[Direction, ...]:
    """Return the directions that are given, or those of the model's run. Raises ConfigError if there are none."""
    if given is not None:
        if found := directions_of(storage.absolute(given).removesuffix(f"/{DIRECTIONS}"), generator):
            return found
        raise ConfigError(f"--directions {given}: holds no {DIRECTIONS}; {_cure(model)}")
    if model.run_uri is None:
        raise ConfigError(f"{model.name}: has no run, which would have directions of attributes; {_cure(model)}")
    if found := directions_of(model.run_uri, generator):
        return found
    report = read_report(model.run_uri)
    if report is not None and report.attributes:
        again = shell_command("stylegan", "evaluate", model.run_uri)
        raise ConfigError(f"{model.run_uri}: holds no {DIRECTIONS}; `{again}` fits the hyperplanes of its report again")
    raise ConfigError(f"{model.run_uri}: was not evaluated with the metric separability; {_cure(model)}")


def _cure(model: Model) -> str:
    """Return how a model gets directions beside its run."""
    source = [] if model.run_uri else ["--data", "IMAGES"]
    measure = [
        "evaluate",
        model.run_uri or model.checkpoint_uri,
        *source,
        "--metrics",
        "separability",
        "--out",
        "results",
    ]
    return f"`{shell_command('stylegan', *measure)}` fits them (to labelled images), then give --directions results"
