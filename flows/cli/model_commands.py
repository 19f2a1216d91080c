"""Commands on a trained model: samples, weights from and to other programs."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from flows.cli.arguments import (
    AnyFile,
    AsJson,
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


def sample(
    model: AnyFile,
    /,
    *,
    seeds: str | None = None,
    w: Files = None,
    psi: Number | None = None,
    label: Annotated[list[str] | None, Parameter(negative="")] = None,
    noise: str | None = None,
    rng: Literal["torch", "numpy"] = "torch",
    cols: Whole | None = None,
    out: OutputFile = "grid.png",
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw a grid of images.

    A class-conditional model has a row for each seed and a column for each class. Other models, and a single class, have
    one image for each seed, row by row. A single image is written without a frame.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    seeds
        Numbers and ranges, such as 0-15 or 1,5,9-12. An image depends on its seed, class and options alone. Unset: 0-15.
    w
        File of latents (.npz) to draw instead of seeds, as `project` and StyleGAN2-ADA write them. Repeatable.
    psi
        Truncation, from -10 to 10: 1 or unset is off, smaller is more typical and less varied.
    label
        Class (name or number) of a class-conditional model. Repeatable: each one has a column.
    noise
        own: each seed has its noise. stored: that of the model, the same for all images. none: no noise. A number: the
        noise of that seed for all images. Unset: own, and stored with --rng numpy.
    rng
        numpy draws the latents of the official scripts, so that imported official weights give their images.
    cols
        Images in a row. Of a class-conditional model: draw its first classes, so many. Unset is all classes that fit, or
        about as many as rows.
    out
        Picture to write: .png, .jpg or .webp, a path or any fsspec URL such as s3://bucket/grid.png; - is standard output.

    Examples
    --------
    stylegan sample quickstart@champion --config configs/quickstart.yaml
    stylegan sample imported/ffhq --seeds 0-15,77 --psi 0.7 --out grid.png
    """
    settings = registry_config(config, overrides)
    numbers = parse_seeds("0-15" if seeds is None else seeds)
    if w and seeds is not None:
        raise ConfigError(f"--seeds {seeds}: the latents of --w are drawn instead of seeds; give one of the two")
    from stylegan.drawing.draw import parse_noise
    from stylegan.retry import storage_settings
    from stylegan.verbs import sample as sampling

    with storage_settings(settings.storage if settings else None):
        record = sampling.sample(
            settings,
            model,
            seeds=() if w else numbers,
            psi=psi,
            labels=label or (),
            columns=cols,
            noise=parse_noise(noise, rng),
            rng=rng,
            w=w or (),
            out=out,
        )
    text = f"{record.num_images} images of {record.checkpoint_uri} in {record.path}"
    if record.classes and not label and len(record.classes) < record.num_classes:
        text += f": the first {len(record.classes)} of {record.num_classes} classes; --cols or --label draws others"
    print_result(record, text, as_json, out=out)


def import_weights(official: AnyFile, /, *, out: AnyFile, as_json: AsJson = False) -> None:
    """Turn an official StyleGAN v1 pickle into a folder that every verb reads like a checkpoint.

    Parameters
    ----------
    official
        Path or URL of the .pkl file.
    out
        Folder to write, new or empty: a path or any fsspec URL.

    Examples
    --------
    stylegan import-weights karras2019stylegan-ffhq-1024x1024.pkl --out imported/ffhq
    """
    from stylegan.verbs import exchange

    record = exchange.import_weights(official, out)
    files, side = ", ".join(record.files), record.resolution
    print_result(record, f"{files} of {side}x{side} in {record.uri}", as_json)


def export(
    model: AnyFile,
    /,
    *,
    out: OutputFile,
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write the averaged generator into one file for other programs.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    out
        File to write, a path or any fsspec URL: .safetensors, or .onnx (inputs z, labels if conditional, psi if there is a w; needs
        the extra `onnx`).

    Examples
    --------
    stylegan export quickstart@champion --config configs/quickstart.yaml --out digits.safetensors
    """
    settings = registry_config(config, overrides)
    from stylegan.retry import storage_settings
    from stylegan.verbs import exchange

    with storage_settings(settings.storage if settings else None):
        record = exchange.export(settings, model, out)
    print_result(record, f"{record.checkpoint_uri} in {record.path}, {record.num_bytes:,} bytes", as_json, out=out)
