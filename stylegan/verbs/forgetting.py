"""Read the forgetting curves of runs, by the last features of D and by each of its blocks, and draw them side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stylegan.evaluation.page.chart_picture import draw_charts
from stylegan.evaluation.page.charts import CurveChart, curve_chart
from stylegan.training.curves import Row

if TYPE_CHECKING:
    from PIL import Image

    from stylegan.verbs.compared_run import ComparedRun

Curve = list[tuple[float, float]]  # kimg and the accuracy of the probe
PICTURE = "forgetting.png"
ACCURACY = "probe/accuracy"  # of the curves: how much D knows of the classes
LAST = "last features"
TITLE = "Forgetting: share of real images whose class a linear classifier recognises from D"


def read_layers(rows: Sequence[Row]) -> dict[str, Curve]:
    """Return the points of the forgetting curve of each layer that was probed: `last features`, `block 1`, ..."""
    names = dict.fromkeys(name for row in rows for name in row["metrics"] if name.startswith(ACCURACY))
    return {
        layer: [(row["nimg"] / 1000, row["metrics"][name]) for row in rows if name in row["metrics"]]
        for name, layer in sorted(((name, _title(name)) for name in names), key=lambda pair: _number(pair[1]))
    }


def is_probed(runs: Sequence[ComparedRun]) -> bool:
    """Return whether any run has a forgetting curve."""
    return any(read_layers(run.rows) for run in runs)


def limits_of(curves: Iterable[Curve]) -> tuple[float, float]:
    """Return the lowest and the highest accuracy of curves, so that their charts share an axis."""
    accuracies = [accuracy for curve in curves for _, accuracy in curve]
    return min(accuracies), max(accuracies)


def forgetting_picture(charts: Mapping[str, CurveChart]) -> Image.Image:
    """Draw charts of the layers, by their names."""
    return draw_charts(TITLE, charts)


def compared_picture(runs: Sequence[ComparedRun]) -> Image.Image | None:
    """Draw the forgetting curves of runs, a chart for each layer; None if none of them was probed."""
    return pictured_together({run.label: run.rows for run in runs})


def pictured_together(rows: Mapping[str, Sequence[Row]]) -> Image.Image | None:
    """Draw the forgetting curves in the points of several runs, by their names; None if there are none."""
    read = {name: read_layers(points) for name, points in rows.items()}
    layers = sorted({layer for curves in read.values() for layer in curves}, key=_number)
    if not layers:
        return None
    limits = limits_of(curve for curves in read.values() for curve in curves.values())
    return forgetting_picture(
        {
            layer: curve_chart(
                {name: curves.get(layer, []) for name, curves in read.items()}, x_name="kimg", limits=limits
            )
            for layer in layers
        }
    )


def _title(name: str) -> str:
    return LAST if name == ACCURACY else name.removeprefix(f"{ACCURACY}/").replace("block", "block ")


def _number(layer: str) -> int:
    found = re.search(r"\d+$", layer)
    return int(found[0]) if found else 0
