"""Render a comparison of runs as one HTML page: a single file that loads nothing.

Its only script, the slider of the samples, is allowed by its digest; without scripts all steps are below each other.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from PIL import Image

from stylegan.errors import DamagedError, UserError, decoration
from stylegan.evaluation.metric_table import describe, split_key
from stylegan.evaluation.page.charts import curve_chart
from stylegan.evaluation.page.metric_rows import ARROWS, DASH, interval_words, number
from stylegan.evaluation.page.template import template
from stylegan.images import open_picture, png_bytes
from stylegan.outputs import write_output
from stylegan.progress import duration
from stylegan.tracking import metric_names
from stylegan.tracking.parents import common_parent, log_page, log_picture
from stylegan.verbs.forgetting import PICTURE, compared_picture

if TYPE_CHECKING:
    from stylegan.verbs.compare import Comparison, MetricRow, Value
    from stylegan.verbs.compared_run import ComparedRun

logger = logging.getLogger("stylegan")

PAGE = "comparison.html"  # among the artifacts of the run above them
FEW = 4  # runs that have a column each, with room for their names; of more, each has a row
FRAMES = 12  # steps of the slider at most
NEAR = 0.05  # a grid is shown beside one of another kimg if that differs by this share at most
PAGE_BYTES = 16_000_000  # of all pictures together
SIDES = (512, 384, 288, 216, 160, 120)  # pixels of the longer side of a grid, as many as fit into the page
# Curves in the order in which a person asks: quality, losses, scores, speed. All that begin so are drawn.
CURVES = (
    "quick/",
    "probe/",
    "rotation/",
    "loss/",
    "scores/",
    "time/img_per_sec",
)
OF_LOWER_STAGE = re.compile(r"_\d+x\d+$")  # quick metrics that a stage below the last one has of its own network
SCRIPT = """
const section = document.getElementById("samples"), frames = [...section.querySelectorAll(".frame")];
const box = section.querySelector(".slider"), range = box.querySelector("input"), output = box.querySelector("output");
function show() {
  frames.forEach((frame, number) => { frame.hidden = number != range.value; });
  output.value = frames[range.value].dataset.kimg;
}
frames.forEach(frame => { frame.querySelector("h3").hidden = true; });
box.hidden = false;
range.addEventListener("input", show);
show();
"""


def comparison_page(runs: Sequence[ComparedRun], comparison: Comparison) -> str:
    """Render a comparison; a grid that cannot be read is left out with a warning."""
    frames, latents = _frames(runs)
    axes = _axes(runs)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    key_metric = comparison.gate_row
    return template("comparison.html.j2").render(
        title=f"{len(runs)} runs compared",
        page_format="comparison-1",
        facts={},
        summary=comparison.summary,
        few=len(runs) <= FEW,
        runs=[
            {
                "label": facts.label,
                "short": facts.label if len(runs) <= FEW else str(number_),
                "colour": (number_ - 1) % 8 + 1,
                "dash": (number_ - 1) // 8,
                "kimg": number(facts.kimg),
                "speed": number(facts.images_per_second),
                "hours": DASH if facts.seconds is None else duration(facts.seconds),
                "gpu_hours": number(facts.gpu_hours),
                "path": facts.path or DASH,
                "verdict": facts.verdict or DASH,
                "key_value": _key_value(key_metric, number_ - 1),
            }
            for number_, facts in enumerate(comparison.runs, start=1)
        ],
        key_metric=f"{key_metric.title} {ARROWS.get(key_metric.direction, '')}" if key_metric else None,
        any_gpu=any(facts.gpu_hours is not None for facts in comparison.runs),
        any_path=any(facts.path for facts in comparison.runs),
        any_verdict=any(facts.verdict for facts in comparison.runs),
        settings=comparison.settings,
        data=comparison.data,
        data_known=all(run.data for run in runs),
        metrics=[_metric(row) for row in comparison.metrics],
        axes=axes,
        legend_curves=axes[0]["charts"][0]["chart"].curves if axes else [],
        frames=frames,
        latents=latents,
        script=Markup(SCRIPT),
        script_digest=f"sha256-{digest}",
    )


def write_comparison(
    runs: Sequence[ComparedRun], comparison: Comparison, uri: str, picture_uri: str | None = None
) -> str | None:
    """Write the page of a comparison, and log it to the run that all of them are below in MLflow, such as that of a sweep.

    Args:
        runs, comparison: what is compared, and how they compare.
        uri: as `outputs.output_file` has checked it.
        picture_uri: of the picture of their forgetting curves, if they have some; None writes none.

    Returns:
        MLflow's id of the run that has the page among its artifacts; None if they have no common parent.
    """
    page, picture = comparison_page(runs, comparison), compared_picture(runs)
    write_output(uri, page.encode())
    if picture and picture_uri:
        write_output(picture_uri, png_bytes(picture))
    trackers = {run.tracker for run in runs}
    (tracker, *others) = trackers
    if tracker is None or others:
        return None
    with decoration("the comparison in MLflow"):
        parent = common_parent(
            tracker,
            [run.run_id for run in runs if run.mlflow_run_id is None],
            [run.mlflow_run_id for run in runs if run.mlflow_run_id],
        )
        if parent:
            log_compared(tracker, parent, page, picture)
        return parent
    return None


def log_compared(uri: str, mlflow_run_id: str, page: str, picture: Image.Image | None) -> None:
    """Log a page, and the picture of the forgetting curves, as artifacts of a run. Raises StepError if MLflow refuses."""
    log_page(uri, mlflow_run_id, page, PAGE)
    if picture:
        log_picture(uri, mlflow_run_id, picture, PICTURE)


def _key_value(row: MetricRow | None, place: int) -> str:
    value = row.values[place] if row else None
    return number(value.value) if value else DASH


def _metric(row: MetricRow) -> dict[str, Any]:
    return {
        "title": row.title,
        "arrow": ARROWS.get(row.direction, ""),
        "cells": [_cell(value, row, first=place == 0) for place, value in enumerate(row.values)],
    }


def _cell(value: Value | None, row: MetricRow, *, first: bool) -> dict[str, Any]:
    if value is None:
        return {"value": DASH, "interval": "", "mark": "", "kind": "", "long": False}
    mark, kind = ("", "") if first or row.direction is None else judged(value)
    return {
        "value": number(value.value),
        "interval": interval_words(value.interval),
        "mark": mark,
        "kind": kind,
        "long": bool(value.why_not),
    }


def judged(value: Value) -> tuple[str, str]:
    """Return in words how a value is beside that of the first run, and whether that is `good`, `bad` or neither."""
    if value.why_not:
        return f"does not compare: {'; '.join(value.why_not)}", ""
    if value.better is None:
        return "equal", ""
    word = "better" if value.better else "worse"
    if value.beyond_chance is None:
        return f"{word}, chance not tested", ""
    return (word, "good" if value.better else "bad") if value.beyond_chance else (f"{word}, within chance", "")


# --- curves -----------------------------------------------------------------------------------------------------------


def _axes(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Return the charts over each x axis that the runs have; empty without curves.

    A metric of which each run has one point at most is left out: that is a value, not a curve.
    """
    names = list(dict.fromkeys(name for run in runs for row in run.rows for name in row["metrics"]))
    chosen = [name for start in CURVES for name in names if name.startswith(start)]
    chosen.sort(key=lambda name: OF_LOWER_STAGE.search(name) is not None)
    known = [("kimg", "kimg", [[row["nimg"] / 1000 for row in run.rows] for run in runs])]
    known.append(("hours", "hours of training", [[seconds / 3600 for seconds in run.seconds] for run in runs]))
    if any(run.gpu_hours for run in runs):
        known.append(("gpu", "GPU-hours", [run.gpu_hours for run in runs]))
    axes = []
    for axis, title, places in known:
        charts = []
        for name in chosen:
            series = {
                run.label: [
                    (x, row["metrics"][name]) for x, row in zip(xs, run.rows, strict=False) if name in row["metrics"]
                ]
                for run, xs in zip(runs, places, strict=True)
            }
            if max(map(len, series.values())) < 2:
                continue
            try:
                chart = curve_chart(series, x_name=title)
            except ValueError:  # no point that can be drawn
                continue
            charts.append({"title": _curve_title(name), "meaning": _meaning(name), "chart": chart})
        if charts:
            axes.append({"id": axis, "title": title, "charts": charts})
    return axes


def _curve_title(name: str) -> str:
    prefix, _, rest = name.partition("/")
    if prefix == "quick":
        facts, (_, network) = describe(rest), split_key(rest)
        return f"{facts.title}, while training" + (f" ({network.replace('_', ' ')})" if network else "")
    return name


def _meaning(name: str) -> str:
    found = None if name.startswith("quick/") else metric_names.find(name)
    return found.meaning if found else ""


# --- samples ----------------------------------------------------------------------------------------------------------


def _frames(runs: Sequence[ComparedRun]) -> tuple[list[dict[str, Any]], str]:
    """Return the steps of the slider, and what the images of the runs have in common, in a sentence."""
    everything = sorted({kimg for run in runs for kimg in run.grids})
    shared = [kimg for kimg in everything if sum(_nearest(run, kimg) is not None for run in runs) > 1]
    if not shared:
        return [], ""
    last = len(shared) - 1
    count = min(FRAMES, len(shared))
    steps = sorted({shared[round(last * place / max(count - 1, 1))] for place in range(count)})
    shown = {run.latents for run in runs if run.grids}
    if None in shown:
        words = "Some runs are known from MLflow alone: whether images at the same place are of the same latent is not known."
    elif len(shown) == 1:
        words = "The same latents at the same places in all runs, drawn by the averaged generator without truncation."
    else:
        words = (
            "The latents differ between runs (another seed, latent size, grid or other classes), so images at the same place "
            "are not of the same latent. Drawn by the averaged generator without truncation."
        )
    side = _side(len(runs) * len(steps))
    return [
        {"title": f"{kimg:,} kimg", "cells": [_picture(run, _nearest(run, kimg), kimg, side) for run in runs]}
        for kimg in steps
    ], words


def _nearest(run: ComparedRun, kimg: int) -> int | None:
    """Return the kimg of the grid to show beside others of `kimg`, None if none is near."""
    found = min(run.grids, key=lambda other: (abs(other - kimg), other), default=None)
    return found if found is not None and abs(found - kimg) <= NEAR * kimg else None


def _side(num_pictures: int) -> int:
    """Return the largest side of which so many pictures fit into the page, at about a byte for each pixel."""
    return next((side for side in SIDES if side * side * num_pictures <= PAGE_BYTES), SIDES[-1])


def _picture(run: ComparedRun, found: int | None, kimg: int, side: int) -> dict[str, Any]:
    if found is None:
        return {"uri": "", "note": "", "sharp": False}
    note = "" if found == kimg else f"at {found:,} kimg"
    try:
        picture = open_picture(run.grids[found](), f"{run.label} at {found} kimg", cure="the page goes without it")
    except (FileNotFoundError, DamagedError, UserError) as error:
        logger.warning("%s", error)
        return {"uri": "", "note": "", "sharp": False}
    small = max(picture.size) <= side
    if not small:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=82, method=2)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/webp;base64,{data}", "note": note, "sharp": small and max(picture.size) < 256}
