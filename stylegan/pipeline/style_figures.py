"""The figures of a run's styles: drawn with its evaluation, and again if their files are gone."""

from __future__ import annotations

import logging
from collections.abc import Collection

from stylegan.cluster.parallel_map import evaluation_means
from stylegan.drawing.figures import FIGURES, WALK, FigureRequest, draw_figures
from stylegan.evaluation.engine import redraw
from stylegan.pipeline.run import Run
from stylegan.transfer.measure import draw_figure

logger = logging.getLogger("stylegan")
STYLE_FIGURES = (*FIGURES, WALK)
SIDE = 256  # pixels of an image in the figures of a run, at most: they are in its page


def draw_style_figures(run: Run, checkpoint_uri: str, names: Collection[str] = STYLE_FIGURES) -> dict[str, str]:
    """Draw figures of `drawing/figures.py` into the folder of a run, on its workers; return their URIs by name.

    A figure that means nothing for the model is left out, and the reason logged.

    Raises:
        StepError: the model is damaged, or storage refuses.
    """
    if run.config.transfer:  # whose figure its evaluation has drawn
        return {}
    means = evaluation_means(run.config)
    request = FigureRequest("", checkpoint_uri, stage_ends(run), side=SIDE, device=means["device"])
    drawn, skipped = draw_figures(tuple(names), request, run.uri, pmap=means["pmap"])
    for name, reason in skipped.items():
        logger.info("evaluate: no figure %s: %s", name, reason)
    return drawn


def redraw_figures(run: Run, checkpoint_uri: str, names: Collection[str]) -> None:
    """Draw figures of a run's report again, because their files are gone. Raises as `redraw` and `draw_style_figures`."""
    if run.config.transfer:
        draw_figure(checkpoint_uri, run.shards, run.config, run.uri)
        return
    styles = set(names) & set(STYLE_FIGURES)
    if measured := set(names) - styles:
        means = evaluation_means(run.config)
        redraw(checkpoint_uri, run.shards, run.config.evaluation, measured, out_uri=run.uri, **means)
    if styles:
        draw_style_figures(run, checkpoint_uri, sorted(styles))


def stage_ends(run: Run) -> tuple[tuple[int, str], ...]:
    """Return the resolutions of a run's stages that storage still has, with the URIs of their last checkpoints."""
    found = [(stage.resolution, run.find_stage(stage)) for stage in run.stages]
    return tuple((resolution, end.uri) for resolution, end in found if end)
