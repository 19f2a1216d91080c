"""Commands on latents: the latents of a picture, and images edited along the directions of attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from stylegan.verbs.project import ProjectedImage, Projections

HEAD = ("distance", "PSNR", "w", "seconds")


def project(
    model: AnyFile,
    /,
    *images: AnyFile,
    space: Literal["w", "w+"] = "w+",
    steps: Whole = 500,
    label: str | None = None,
    seed: Whole = 0,
    features: AnyFile | None = None,
    out: AnyFile = "projections",
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> int:
    """Find the latents with which a model makes pictures.

    Each picture gets a folder with w.npz (for --w of other commands), projection.png (the picture, and what was found)
    and a film of the search. Of several pictures, what the folder holds already is not done again; they run in parallel on
    Ray. A picture of another shape is converted as sharding does.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    images
        Pictures, or folders and archives of them: paths or URLs.
    space
        w+ finds a w for each layer, which comes closer. w finds one for all of them, which can be edited better.
    steps
        Steps of the optimisation.
    label
        Class (name or number) of the pictures. Unset: the search begins in the nearest of all classes.
    seed
        Of the latents that the search begins among.
    features
        Network that compares images, instead of that of the model's evaluation: inception (LPIPS), or the URI of a
        .safetensors file that classifier or rotation has written.
    out
        Folder to write: a path or any fsspec URL.

    Examples
    --------
    stylegan project faces@champion portrait.jpg --config faces.yaml --out portrait
    stylegan project faces@champion photos/ --space w --steps 1000 --out projected
    """
    settings = registry_config(config, overrides)
    if not images:
        raise ConfigError("IMAGE is missing; give one or more pictures, or a folder of them")
    from stylegan.retry import storage_settings
    from stylegan.verbs.project import project_images

    with storage_settings(settings.storage if settings else None):
        record = project_images(
            settings,
            model,
            images,
            space=space,
            steps=steps,
            seed=seed,
            label=label,
            features=features,
            out=out,
        )
    print_result(record, "\n".join(_lines(record)), as_json)
    return 1 if record.num_failed else 0


def edit(
    model: AnyFile,
    /,
    *,
    attribute: str,
    strength: Annotated[str, Parameter(allow_leading_hyphen=True)] = "-3..3",
    seeds: str | None = None,
    w: Files = None,
    psi: Number | None = None,
    label: str | None = None,
    noise: str | None = None,
    rng: Literal["torch", "numpy"] = "torch",
    directions: AnyFile | None = None,
    out: OutputFile = "edits.png",
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw images with more and less of an attribute: a row for each image, a column for each strength.

    The directions are the hyperplanes that the metric separability fits in w.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    attribute
        Name of an attribute, or of a class where the images have classes.
    strength
        A range such as -3..3 or a list such as -2,0,2: standard deviations of w along the direction.
    seeds
        Numbers and ranges, such as 0-3. Unset: 0-3.
    w
        File of latents (.npz) to edit instead of seeds, as `project` writes it. Repeatable.
    psi
        Truncation before the edit, from -10 to 10: 1 or unset is off.
    label
        Class (name or number) of the seeds. Unset: the first one.
    noise
        own: each seed or file has its noise. stored: that of the model. none: no noise. A number: the noise of that seed.
        Unset: own, and stored with --rng numpy.
    rng
        numpy draws the latents of the official scripts.
    directions
        Folder of another evaluation (its --out) whose directions to take.
    out
        Picture to write: .png, .jpg or .webp, a path or any fsspec URL; - is standard output.

    Examples
    --------
    stylegan edit faces@champion --attribute smile --strength -3..3 --seeds 0-3 --out smiles.png
    stylegan edit faces@champion --attribute smile --w portrait/portrait/w.npz --out smile.png
    """
    settings = registry_config(config, overrides)
    if w and seeds is not None:
        raise ConfigError(f"--seeds {seeds}: the latents of --w are edited instead of seeds; give one of the two")
    numbers = parse_seeds("0-3" if seeds is None else seeds)
    from stylegan.drawing.draw import parse_noise
    from stylegan.retry import storage_settings
    from stylegan.verbs import edit as editing

    strengths = editing.parse_strengths(strength)
    with storage_settings(settings.storage if settings else None):
        record = editing.edit(
            settings,
            model,
            attribute=attribute,
            strengths=strengths,
            seeds=() if w else numbers,
            w=w or (),
            psi=psi,
            label=label,
            noise=parse_noise(noise, rng),
            rng=rng,
            directions=directions,
            out=out,
        )
    of_class = f" of class {record.label}" if record.label else ""
    text = (
        f"{len(record.rows)} image(s){of_class} with {attribute} at {len(record.strengths)} strengths from "
        f"{min(record.strengths):g} to {max(record.strengths):g} in {record.path}"
    )
    print_result(record, text, as_json, out=out)


def _lines(record: Projections) -> Iterator[str]:
    """Yield the table of projections, with what their figures mean; the log has what is wrong with the other pictures."""
    done = [(image, image.figures) for image in record.images if image.figures]
    width = max((len(_mark(image, record)) for image, _ in done), default=0)
    if done:
        yield f"{'':{width}}" + "".join(f"{word:>10}" for word in HEAD)
    for image, figures in done:
        psnr = "equal" if figures.psnr is None else f"{figures.psnr:.1f} dB"
        cells = (f"{figures.distance:.4f}", psnr, f"{figures.w_distance:.2f}", f"{figures.seconds:.1f}")
        row = "".join(f"{cell:>10}" for cell in cells) + "  (there already)" * image.cached
        yield f"{_mark(image, record):{width}}{row}"
        yield from (f"  {remark}" for remark in figures.remarks)
    if done:
        yield f"distance: perceptual, by {record.network}; w: deviations from the mean w, about 1 for images of the model"
    places = f": {done[0][0].folder}" + ", ..." * (len(done) > 1) if done else ""
    yield f"{len(done)} of {len(record.images)} picture(s) projected{places}"


def _mark(image: ProjectedImage, record: Projections) -> str:
    """Return what to call a picture: its path, and the class that it was found in."""
    label = image.figures.label if image.figures else None
    return image.image if label is None else f"{image.image} ({record.classes[label]})"
