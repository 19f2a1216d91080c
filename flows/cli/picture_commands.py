"""Commands that show what the styles of a model do: figures, mixed styles, films."""

from __future__ import annotations

from typing import Literal

from flows.cli.arguments import (
    AnyFile,
    AsJson,
    Device,
    Files,
    Number,
    OutputFile,
    Overrides,
    RegistryConfig,
    Whole,
    parse_seeds,
    registry_config,
)
from flows.cli.console import print_result
from stylegan.errors import ConfigError

Rng = Literal["torch", "numpy"]


def figures(
    model: AnyFile,
    /,
    *,
    out: AnyFile,
    only: str | None = None,
    psi: Number | None = None,
    label: str | None = None,
    rng: Rng = "torch",
    device: Device = "auto",
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw the figures of the StyleGAN paper: mixing, noise, truncation, growth, nearest real images, a walk.

    A run draws them by itself at its end, into its folder, its report and MLflow. Here they have the full resolution.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    out
        Folder to write: a path or any fsspec URL.
    only
        Figures to draw, such as mixing,noise. All are mixing, noise, noise_layers, psi, stages, neighbours and walk.
    psi
        Truncation of the figures that do not show it, from -10 to 10: 1 or unset is off.
    label
        Class (name or number) of a class-conditional model. Unset: the images have the classes in turn.
    rng
        numpy draws the latents of the official scripts: imported official weights give the paper's figures.

    Examples
    --------
    stylegan figures quickstart@champion --config configs/quickstart.yaml --out figures
    stylegan figures imported/ffhq --rng numpy --only mixing,psi --out figures
    """
    settings = registry_config(config, overrides)
    from stylegan.drawing.device import choose_device
    from stylegan.retry import storage_settings
    from stylegan.verbs import figures as drawing

    with storage_settings(settings.storage if settings else None):
        record = drawing.figures(
            settings,
            model,
            out=out,
            only=[name.strip() for name in only.split(",")] if only else [],
            psi=psi,
            label=label,
            rng=rng,
            device=choose_device(device),
        )
    text = [f"{', '.join(record.figures) or 'no figure'} of {record.checkpoint_uri} in {record.folder}"]
    text += [f"not drawn: {name}: {reason}" for name, reason in record.skipped.items()]
    print_result(record, "\n".join(text), as_json)


def mix(
    model: AnyFile,
    /,
    *,
    rows: str | None = None,
    cols: str = "6-11",
    styles: str = "coarse",
    w: Files = None,
    psi: Number | None = None,
    label: str | None = None,
    noise: str | None = None,
    rng: Rng = "torch",
    out: OutputFile = "mix.png",
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw a grid of images that take the styles of some layers from others.

    Each image is that of its row, on the left, with the styles of the image above its column in the layers of --styles.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    rows
        Seeds of the rows: numbers and ranges, such as 0-5 or 1,5,9-12. Unset: 0-5, or none beside --w.
    cols
        Seeds of the columns.
    styles
        coarse, middle, fine, or layers such as 0-3 or 0,2,4-5. Coarse are the first layers: pose and shape; fine the
        last ones: colours.
    w
        File of latents (.npz) for more rows, as `project` and StyleGAN2-ADA write them. Repeatable.
    psi
        Truncation, from -10 to 10: 1 or unset is off, smaller is more typical and less varied.
    label
        Class (name or number) of a class-conditional model. Unset: the seeds have the classes in turn.
    noise
        own: each row has its noise. stored: that of the model. none: no noise. A number: the noise of that seed. Unset:
        own, and stored with --rng numpy.
    rng
        numpy draws the latents of the official scripts, so that imported official weights give their images.
    out
        Picture to write: .png, .jpg or .webp, a path or any fsspec URL; - is standard output.

    Examples
    --------
    stylegan mix quickstart@champion --config configs/quickstart.yaml --rows 0-5 --cols 6-11 --styles middle
    stylegan mix imported/ffhq --rows 888,829 --cols 639,701,687 --styles 0-3 --rng numpy
    """
    settings = registry_config(config, overrides)
    row_seeds = parse_seeds("0-5" if rows is None else rows, "--rows") if rows is not None or not w else []
    column_seeds = parse_seeds(cols, "--cols")
    from stylegan.drawing.draw import parse_noise
    from stylegan.retry import storage_settings
    from stylegan.verbs import mix as mixing

    with storage_settings(settings.storage if settings else None):
        record = mixing.mix(
            settings,
            model,
            rows=row_seeds,
            columns=column_seeds,
            layers=styles,
            w=w or (),
            psi=psi,
            label=label,
            noise=parse_noise(noise, rng),
            rng=rng,
            out=out,
        )
    layers = ", ".join(map(str, record.layers))
    text = (
        f"{record.rows}x{record.columns} images of {record.checkpoint_uri} in {record.path}: layers {layers} of "
        f"{record.num_layers} from the columns"
    )
    print_result(record, text, as_json, out=out)


def video(
    model: AnyFile,
    /,
    *,
    seeds: str | None = None,
    w: Files = None,
    grid: str = "1x1",
    seconds: Number = 10.0,
    fps: Whole = 30,
    space: Literal["z", "w"] = "z",
    psi: Number | None = None,
    label: str | None = None,
    noise: str | None = None,
    rng: Rng = "torch",
    device: Device = "auto",
    out: OutputFile | None = None,
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw a film that walks from image to image and ends where it began.

    With a grid, every cell walks through as many of the seeds: of 8 seeds in 2x2 cells, two each. The noise of a cell does
    not change, so nothing flickers.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    seeds
        Numbers and ranges, such as 0-7 or 1,5,9-12. Unset: two for each cell, from 0 on; at least four in all.
    w
        File of latents (.npz) to walk through instead of seeds, as `project` and StyleGAN2-ADA write them. Repeatable.
    grid
        Columns and rows.
    seconds
        Length of the film.
    fps
        Frames in a second.
    space
        z: along great circles between two seeds, at even speed. w: a smooth curve through all of them.
    psi
        Truncation, from -10 to 10: 1 or unset is off, smaller is more typical and less varied.
    label
        Class (name or number) of a class-conditional model. Unset: each cell has a class, in turn.
    noise
        own: each cell has that of its first seed. stored: that of the model. none: no noise. A number: the noise of that
        seed. Unset: own, and stored with --rng numpy.
    rng
        numpy draws the latents of the official scripts, so that imported official weights give their images.
    out
        Film to write, .mp4 (by the system's ffmpeg, or the extra `video`) or .webp; a path or any fsspec URL. Unset:
        video.mp4, and video.webp where no .mp4 can be written.

    Examples
    --------
    stylegan video quickstart@champion --config configs/quickstart.yaml --seeds 0-7 --grid 2x2 --seconds 10 --psi 0.7
    stylegan video imported/ffhq --space w --out walk.mp4
    """
    settings = registry_config(config, overrides)
    if w and seeds is not None:
        raise ConfigError(
            f"--seeds {seeds}: the latents of --w are walked through instead of seeds; give one of the two"
        )
    numbers = parse_seeds(seeds) if seeds is not None else None
    from stylegan.drawing.device import choose_device
    from stylegan.drawing.draw import parse_noise
    from stylegan.retry import storage_settings
    from stylegan.verbs import video as filming

    with storage_settings(settings.storage if settings else None):
        record = filming.video(
            settings,
            model,
            seeds=() if w else numbers if numbers is not None else filming.first_seeds(grid),
            w=w or (),
            grid=grid,
            seconds=seconds,
            fps=fps,
            space=space,
            psi=psi,
            label=label,
            noise=parse_noise(noise, rng),
            rng=rng,
            device=choose_device(device),
            out=out,
        )
    text = (
        f"{record.num_frames} frames of {record.width}x{record.height} of {record.checkpoint_uri} in {record.path}: "
        f"{record.num_frames / record.fps:g} s through {record.keyframes} images"
    )
    print_result(record, text, as_json, out=record.path)
