"""The figures of the StyleGAN paper for any trained model: what its styles, its noise and truncation do."""

from __future__ import annotations

from collections.abc import Sequence

from stylegan import storage
from stylegan.config.tree import Config
from stylegan.data.loading.loader import LoaderSettings
from stylegan.drawing.figures import FIGURES, WALK, FigureRequest, draw_figures
from stylegan.drawing.latents import Rng
from stylegan.errors import ConfigError, StepError, one_line
from stylegan.evaluation.engine import redraw
from stylegan.outputs import output_folder
from stylegan.pipeline.run import Run
from stylegan.pipeline.style_figures import stage_ends
from stylegan.records import Record
from stylegan.training.state import load_model
from stylegan.verbs.find_model import find_model, run_of
from stylegan.verbs.sample import check_psi, check_truncation, one_class

NEIGHBOURS = "neighbours"
NAMES = (*FIGURES, NEIGHBOURS, WALK)
COMPARED = 512  # images among which those nearest to a real are searched, at most


class Figures(Record):
    """Figures in a folder.

    Attributes:
        folder: where they are.
        checkpoint_uri: the model.
        figures: their URIs by name.
        skipped: why the others are not there, by name.
    """

    folder: str
    checkpoint_uri: str
    figures: dict[str, str]
    skipped: dict[str, str]


def figures(
    config: Config | None,
    model: str,
    *,
    out: str,
    only: Sequence[str] = (),
    psi: float | None = None,
    label: str | None = None,
    rng: Rng = "torch",
    device: str = "cpu",
) -> Figures:
    """Draw the figures of a model at its full resolution.

    Args:
        config, model: as for `find_model`.
        out: folder to write to, a path or URI.
        only: names of figures, of NAMES; empty is all.
        psi: truncation of the figures that do not show it, from -MAX_PSI to MAX_PSI; None or 1 is off.
        label: the class, by name or number; None: the images have the classes in turn.
        rng: whose latents; see `latent`.
        device: torch device that draws.

    Raises:
        ConfigError: a value is not allowed, or there is no such model.
        StepError: the model is damaged, or a figure cannot be written.
    """
    folder = output_folder(out)
    check_psi(psi)
    for name in only:
        if name not in NAMES:
            raise ConfigError(f"--only {name}: no figure is called so; they are {', '.join(NAMES)}")
    found = find_model(config, model)
    generator, names = load_model(found.checkpoint_uri)
    check_truncation(psi, generator)
    run = run_of(found)
    request = FigureRequest(
        name="",
        checkpoint_uri=found.checkpoint_uri,
        stage_uris=tuple(end for end in stage_ends(run) if end[0] <= generator.resolution) if run else (),
        psi=psi,
        label=one_class(label, names) if label is not None else None,
        rng=rng,
        device=device,
    )
    wanted = [name for name in NAMES if not only or name in only]
    drawn, skipped = draw_figures([name for name in wanted if name != NEIGHBOURS], request, folder)
    if NEIGHBOURS in wanted:
        reason = _draw_neighbours(request, run, generator.resolution, folder)
        if reason:
            skipped[NEIGHBOURS] = reason
        else:
            drawn[NEIGHBOURS] = storage.join(folder, f"{NEIGHBOURS}.png")
    return Figures(folder=out, checkpoint_uri=found.checkpoint_uri, figures=drawn, skipped=skipped)


def _draw_neighbours(request: FigureRequest, run: Run | None, resolution: int, folder: str) -> str | None:
    """Draw generated images beside the reals that are nearest to them; return why that cannot be."""
    if run is None:
        return "needs the images that the model was trained on, and the model is of no run whose set is in storage"
    evaluation = run.config.evaluation
    evaluation = evaluation.model_copy(update={"num_images": min(evaluation.num_images, COMPARED)})
    try:
        redraw(
            request.checkpoint_uri,
            run.shards.up_to(resolution),
            evaluation,
            [NEIGHBOURS],
            root=run.root,
            device=request.device,
            out_uri=folder,
            loading=LoaderSettings.of(run.config),
        )
    except (ConfigError, StepError) as error:
        return one_line(error)
    return None
