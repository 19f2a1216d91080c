"""Line charts as SVG for a page: colours are the page's CSS variables, letters stay text, nothing depends on the time or the machine."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Matplotlib wants colours that it knows; each stands for a variable of the page, so that charts follow light and dark.
INK, GRID = "#010101", "#020202"
SERIES = ("#030303", "#040404")
VARIABLES = {INK: "var(--muted)", GRID: "var(--line)", SERIES[0]: "var(--series-1)", SERIES[1]: "var(--series-2)"}
# Names and styles that would leak into the page, and fonts instead of the page's own.
TIDY = {
    r"<metadata>.*?</metadata>|<style.*?</style>": "",
    r'<g id="[^"]*"': "<g",
    r"font-family: [^;]*; ": "",
    r"xlink:href": "href",
}
MARKERS = ("o", "s")  # told apart without colours too
WIDTH, HEIGHT = 5.0, 3.1  # inches of 72 points: readable from a phone's width upwards
Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], *, x: str, y: str, limits: tuple[float, float] | None = None) -> str:
    """One or two lines with markers, as an `<svg>` element that fills the width it is given.

    Args:
        series: points (x, y) by name; lines are drawn through them in the order of x.
        x, y: what the axes show; plain text.
        limits: ends of the y axis; unset: from 0 to a little above the largest value.

    Raises:
        ValueError: no series, or more than two.
    """
    if not 1 <= len(series) <= len(SERIES):
        raise ValueError(f"a line chart has 1 to {len(SERIES)} series, got {len(series)}")
    # The SVG writer takes these from nowhere else.
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": repr((x, y, *series)), "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _draw(axes, series)
        _dress(axes, x, y)
        top = max((value for points in series.values() for _, value in points), default=1.0)
        axes.set_ylim(*(limits or (0, top * 1.12 if top > 0 else 1)))
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _element(buffer.getvalue())


def _draw(axes: Axes, series: Mapping[str, Points]) -> None:
    for (name, points), colour, marker in zip(series.items(), SERIES, MARKERS, strict=False):
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, color=colour, marker=marker, markersize=5, linewidth=1.8, label=name, clip_on=False, zorder=3)
    if len(series) > 1:
        axes.legend(loc="best", frameon=False, labelcolor=INK)


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, parse_math=False)
    axes.set_ylabel(y, color=INK, parse_math=False)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _element(document: str) -> str:
    """The `<svg>` alone, in the page's colours, of no fixed size."""
    svg = document[document.index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height|xmlns:xlink|version)="[^"]*"', "", head)
    for pattern, replacement in TIDY.items():
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    return f'{head} aria-hidden="true" focusable="false">{body}'.strip()
