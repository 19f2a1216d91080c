"""Mix styles: a grid of images that take the styles of some layers from others (StyleGAN, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stylegan.config.tree import Config
from stylegan.drawing.draw import Noise, of_file, of_seed, paint_latents
from stylegan.drawing.figures import mixing_sheet
from stylegan.drawing.latents import Latents, Rng, check_seed, read_latents
from stylegan.drawing.mixing import parse_layers
from stylegan.errors import ConfigError
from stylegan.images import PICTURE_FORMATS
from stylegan.outputs import output_file
from stylegan.records import Record
from stylegan.training.state import load_model
from stylegan.verbs.find_model import find_model
from stylegan.verbs.sample import check_psi, check_size, one_class, write_picture


class MixedGrid(Record):
    """A grid of mixed images in a picture file.

    Attributes:
        path: the file.
        checkpoint_uri: the model.
        rows, columns: number of images beside and above the grid.
        layers: the synthesis layers that take the styles of the columns.
        num_layers: of the model.
    """

    path: str
    checkpoint_uri: str
    rows: int
    columns: int
    layers: tuple[int, ...]
    num_layers: int


def mix(
    config: Config | None,
    model: str,
    *,
    rows: Sequence[int] = (),
    columns: Sequence[int],
    layers: str,
    w: Sequence[str] = (),
    psi: float | None = None,
    label: str | None = None,
    noise: Noise = "own",
    rng: Rng = "torch",
    out: str,
) -> MixedGrid:
    """Draw a grid: an image has the styles of its row, but those of its column in some layers.

    Args:
        config, model: as for `find_model`.
        rows: seeds of the rows, which keep their noise.
        columns: seeds of the columns.
        layers: those that take the styles of the columns; see `parse_layers`.
        w: files of latents, used as rows instead of seeds; see `read_latents`.
        psi: truncation of the first 8 layers, from -MAX_PSI to MAX_PSI; None or 1 is off.
        label: class of all seeds, by name or number; None: rows, then columns, have the classes in turn.
        noise, rng: see `draw`.
        out: path or URI of the picture, or `-` for standard output; its ending chooses the format (PICTURE_FORMATS).

    Raises:
        ConfigError: a value is not allowed, there is no such model, or it has no styles to mix.
        StepError: the model is damaged, or the picture cannot be written.
    """
    target = output_file(out, PICTURE_FORMATS)
    check_psi(psi)
    for seed in (*rows, *columns):
        check_seed(seed, rng)
    uri = find_model(config, model).checkpoint_uri
    generator, names = load_model(uri)
    if not generator.model.has_styles:
        raise ConfigError(f"{model}: has no styles to mix (it was trained with {generator.model.lacking('styles')})")
    chosen = parse_layers(layers, generator.num_layers)
    number = None if label is None else one_class(label, names)
    classes = [
        number if number is not None else i % len(names) if names else None for i in range(len(rows) + len(columns))
    ]

    # The rows with their noise, then the columns, whose noise is seen above the grid alone.
    def seeded(seeds: Sequence[int], first: int) -> list[Latents]:
        return [
            of_seed(generator, seed, classes[first + i], psi=psi, noise=noise, rng=rng) for i, seed in enumerate(seeds)
        ]

    files = [one for name in w for one in read_latents(name, generator).rows()]
    beside = [*seeded(rows, 0), *(of_file(generator, one, psi=psi, noise=noise) for one in files)]
    above = seeded(columns, len(rows))
    check_size((len(beside) + 1) * (len(above) + 1), generator, option="--rows and --cols")
    sheet = mixing_sheet(
        partial(paint_latents, generator),
        beside,
        above,
        [chosen] * len(beside),
        heads=[f"seed {seed}" for seed in columns],
        sides=[*(f"seed {seed}" for seed in rows), *(f"w {number + 1}" for number in range(len(files)))],
    )
    write_picture(out, target, sheet)
    return MixedGrid(
        path=out,
        checkpoint_uri=uri,
        rows=len(beside),
        columns=len(above),
        layers=chosen,
        num_layers=generator.num_layers,
    )
