"""Lay out the curves of a run and its film strip: what is worth a look first, over kimg."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stylegan.evaluation.metric_table import describe, split_key
from stylegan.evaluation.page.charts import CurveChart, curve_chart
from stylegan.evaluation.page.metric_rows import ARROWS
from stylegan.training.curves import SPEED, Row
from stylegan.training.samples import Frame

QUICK = "quick/"
MOST_BLOCKS = 8  # of a discriminator: that of StyleGAN at 1024x1024
# The other charts in the order in which one asks: heading, and the curves by their names for people.
CHARTS = (
    ("Losses", {"discriminator": "loss/d", "generator": "loss/g"}),
    ("Scores of the discriminator", {"real images": "scores/real", "generated ones": "scores/fake"}),
    ("Gradient penalty", {"R1": "loss/r1", "R2": "loss/r2", "WGAN-GP": "loss/gp"}),
    (
        "Forgetting: classes of real images recognised",
        {
            "last features": "probe/accuracy",
            **{f"block {n}": f"probe/accuracy/block{n}" for n in range(1, MOST_BLOCKS + 1)},
        },
    ),
    ("Rotations recognised", {"real images": "rotation/accuracy_real", "generated ones": "rotation/accuracy_fake"}),
    ("Speed in images per second", {"images per second": SPEED}),
)


@dataclass(frozen=True)
class RunChart:
    """A chart of a run: its heading, its description for screen readers, and its layout."""

    heading: str
    description: str
    chart: CurveChart


def run_charts(rows: Sequence[Row], starts: Mapping[int, int]) -> list[RunChart]:
    """Lay out the curves of a run: its quality first, then losses, scores and speed. Those without points are left out.

    Args:
        rows: its points, those of quick metrics too, by image count.
        starts: image count at the beginning of each stage, by its resolution.
    """
    marks = {nimg / 1000: f"{resolution}x{resolution}" for resolution, nimg in starts.items()}
    found = list(_quality(rows, marks, max(starts, default=0)))
    for heading, curves in CHARTS:
        series = {name: _points(rows, key) for name, key in curves.items()}
        found += _chart(heading, {name: points for name, points in series.items() if points}, marks)
    return found


def _quality(rows: Sequence[Row], marks: Mapping[float, str], resolution: int) -> Iterator[RunChart]:
    """Yield a chart of each quick metric with a curve for each resolution, whose values compare with no other's."""
    keys = sorted({key for row in rows for key in row["metrics"] if key.startswith(QUICK)}, key=_smallest_first)
    names = list(dict.fromkeys(split_key(key.removeprefix(QUICK))[0] for key in keys))
    for name in sorted(names, key=lambda name: (name != "fid", name)):
        series = {
            _resolution(key) or f"{resolution}x{resolution}": _points(rows, key)
            for key in keys
            if split_key(key.removeprefix(QUICK))[0] == name
        }
        facts = describe(name)
        spread = [y for points in series.values() for _, y in points if y > 0]
        log_y = facts.better == "lower" and bool(spread) and max(spread) > 20 * min(spread)
        yield from _chart(f"{facts.title}, quick {ARROWS[facts.better]}".strip(), series, marks, log_y=log_y)


def _resolution(key: str) -> str:
    """Return the resolution that the key of a quick metric of a lower stage names; empty for the last stage."""
    found = re.search(r"_(\d+x\d+)$", key)
    return found[1] if found else ""


def _smallest_first(key: str) -> tuple[float, str]:
    found = _resolution(key)
    return (int(found.partition("x")[0]) if found else float("inf"), key)


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    return [(row["nimg"] / 1000, row["metrics"][key]) for row in rows if key in row["metrics"]]


def _chart(
    heading: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    marks: Mapping[float, str],
    *,
    log_y: bool = False,
) -> Iterator[RunChart]:
    try:
        chart = curve_chart(series, x_name="kimg", log_y=log_y, marks=marks)
    except ValueError:  # nothing to draw
        return
    last = ", ".join(f"{curve.name} {curve.last:.4g}" for curve in chart.curves if curve.path)
    yield RunChart(heading, f"{heading} over kimg; at the end: {last}.", chart)


def film_strip(frames: Sequence[Frame]) -> list[dict[str, object]]:
    """Return the frames of a film strip for the template: caption, and the images as URIs."""
    return [
        {
            "resolution": f"{frame.resolution}x{frame.resolution}",
            "kimg": f"{frame.kimg:,} kimg",
            "images": [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in frame.images],
            "sharp": frame.resolution <= 64,
        }
        for frame in frames
    ]
