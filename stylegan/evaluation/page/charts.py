"""Lay out line charts; the macros of the pages draw them as SVG.

A line chart shows a few measured points with their intervals; a curve chart compares long curves of up to 20 series; a
dot chart compares groups of single values.

All positions are in units of the SVG's view box: x grows to the right, y downwards. The page scales a chart to the
width of its column, and the page's style sheet colours it, so a chart follows light mode, dark mode and print. The same
points always give the same chart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_SERIES = 2  # of a line chart
COLOURS, DASHES = 8, 3  # of curves: the 9th has the first colour and the second dash pattern
MOST_CURVES = 20
WIDTH, HEIGHT = 400, 250
TOP, BOTTOM, RIGHT = 28, 208, 390  # edges of the plot area; the left one depends on the width of the labels
CHARACTER = 6.6  # width of a digit of a label, whose font size is 11
INSET = 0.04  # share of the x axis that is free at either end, so that no marker covers the edge of the plot area
RADIUS = 4  # of a marker
TOP_OF_DOTS, ROW_HEIGHT = 10, 26  # of a dot chart
LINEAR_RANGE = 8  # largest by smallest value of a dot chart, above which its axis is logarithmic
MOST_INTERVALS = 5  # between the ticks of an axis


@dataclass(frozen=True)
class Point:
    """One measured value `y` at `x`, with its 95 % interval if it has one."""

    x: float
    y: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Tick:
    """One label of an axis: its position along the axis and its text."""

    position: float
    label: str


@dataclass(frozen=True)
class Marker:
    """A point at its position (x, y).

    `low` and `high` are the y positions of the ends of its interval. They are None if it has none, or if the marker
    covers it.
    """

    point: Point
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """One series: its name, and its markers in the order of x."""

    name: str
    markers: tuple[Marker, ...]


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws: size of the view box, edges of the plot area, both axes, one or two lines."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    radius: float
    x_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Curve:
    """One series of a curve chart.

    Attributes:
        name: for the legend.
        colour, dash: its style, from 1 and from 0; those of a series depend on its place alone, so that it looks the
            same in all charts of a page.
        pieces: the positions of its points, in pieces between gaps; none for a series without points.
        end, last: x and y of the last point, as measured; not a number without points.
        thin: whether the line is drawn thin, as one of several that another one sums up.
    """

    name: str
    colour: int
    dash: int
    pieces: tuple[tuple[tuple[float, float], ...], ...]
    end: float
    last: float
    thin: bool = False

    @property
    def path(self) -> str:
        """The line, as data of an SVG path; empty for a series without points."""
        return "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in piece) for piece in self.pieces)

    @property
    def lone(self) -> str:
        """Dots for the points that no line connects, in the same form."""
        return "".join(f"M{x:g} {y:g}h0" for ((x, y), *rest) in self.pieces if not rest)


@dataclass(frozen=True)
class CurveChart:
    """What the macro `curve_chart` draws: size of the view box, edges of the plot area, both axes, marks, and curves."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class DotRow:
    """One group of a dot chart: its name, its y, the x of its values and of their mean, and mean and values as numbers."""

    name: str
    y: float
    dots: tuple[float, ...]
    mean: float | None
    value: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class DotChart:
    """What the macro `dot_chart` draws: size of the view box, edges of the plot area, the x axis, and a row a group."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    radius: float
    x_name: str
    x_ticks: tuple[Tick, ...]
    rows: tuple[DotRow, ...]


def line_chart(
    series: Mapping[str, Sequence[Point]], *, x_name: str, limits: tuple[float, float] | None = None
) -> Chart:
    """Lay out one or two series of finite points in one chart.

    Args:
        series: points by the name of their series, in any order.
        x_name: the name of the x axis.
        limits: ends of the y axis; unset: from 0 to the first tick that no value or interval exceeds.

    Raises:
        ValueError: no series, more than two, or one without points.
    """
    if not 1 <= len(series) <= MOST_SERIES or not all(series.values()):
        raise ValueError(f"a line chart has 1 to {MOST_SERIES} series of one point at least, got {dict(series)}")
    points = [point for one in series.values() for point in one]

    # Choose the ranges of both axes, and the ticks of y.
    low, high = limits or (0.0, _highest(points))
    y_ticks = _ticks(low, high)
    first, last = min(point.x for point in points), max(point.x for point in points)
    margin = INSET * (last - first) or 0.5

    # Leave room for the labels of the y axis, then map values to positions.
    left = round(10 + CHARACTER * max(len(_label(value)) for value in y_ticks), 2)
    x_axis = _Axis(first - margin, last + margin, left, RIGHT)
    y_axis = _Axis(low, high, BOTTOM, TOP)

    return Chart(
        width=WIDTH,
        height=HEIGHT,
        left=left,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
        radius=RADIUS,
        x_name=x_name,
        x_ticks=tuple(Tick(x_axis.position(value), _label(value)) for value in _ticks(x_axis.low, x_axis.high)),
        y_ticks=tuple(Tick(y_axis.position(value), _label(value)) for value in y_ticks),
        lines=tuple(Line(name, _markers(one, x_axis, y_axis)) for name, one in series.items()),
    )


def curve_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_name: str,
    y_name: str = "",
    log_y: bool = False,
    limits: tuple[float, float] | None = None,
    marks: Mapping[float, str] | None = None,
) -> CurveChart:
    """Lay out curves of any length in one chart.

    A curve is thinned to what the width can show: of the points that share a place, the first, lowest, highest and
    last. It has a gap where a value is not finite, or not above 0 on a logarithmic axis.

    Args:
        series: points (x, y) by the name of their series, in any order. One without points is not drawn and keeps its
            style, so that the same series look the same in all charts of a page.
        x_name, y_name: names of the axes; the second one is above the plot area.
        log_y: whether the y axis is logarithmic.
        limits: the lowest and highest y that the axis holds, such as those of several charts; unset: of the points.
        marks: labels of vertical lines by their x, such as the beginnings of stages. Those outside the curves are left
            out.

    Raises:
        ValueError: more than 20 series, or none has a point that can be drawn.
    """
    if len(series) > MOST_CURVES:
        raise ValueError(f"a curve chart has at most {MOST_CURVES} series, got {len(series)}")
    drawn = {
        name: sorted((x, y if math.isfinite(y) and (y > 0 or not log_y) else math.nan) for x, y in points)
        for name, points in series.items()
    }
    points = [(x, y) for one in drawn.values() for x, y in one if not math.isnan(y)]
    if not points:
        raise ValueError(f"a curve chart needs a point, got none in {', '.join(series) or 'no series'}")

    # Choose the range of y and its ticks, then leave room for their labels.
    lowest, highest = limits or (min(y for _, y in points), max(y for _, y in points))
    y_ticks = _powers(lowest, highest) if log_y else _round_ticks(lowest, highest)
    left = round(10 + CHARACTER * max(len(_label(value)) for value in y_ticks), 2)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    margin = INSET * (last - first) or 0.5
    x_axis = _Axis(first - margin, last + margin, left, RIGHT)
    scale = math.log10 if log_y else float
    y_axis = _Axis(scale(y_ticks[0]), scale(y_ticks[-1]), BOTTOM, TOP)

    def at(x: float, y: float) -> tuple[float, float]:
        return x_axis.position(x), math.nan if math.isnan(y) else y_axis.position(scale(y))

    return CurveChart(
        width=WIDTH,
        height=HEIGHT,
        left=left,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
        x_name=x_name,
        y_name=y_name,
        x_ticks=tuple(Tick(x_axis.position(value), _label(value)) for value in _ticks(x_axis.low, x_axis.high)),
        y_ticks=tuple(Tick(y_axis.position(scale(value)), _label(value)) for value in y_ticks),
        marks=_marks({x_axis.position(x): label for x, label in sorted((marks or {}).items()) if first <= x <= last}),
        curves=tuple(
            _curve(name, place, one, [at(x, y) for x, y in one]) for place, (name, one) in enumerate(drawn.items())
        ),
    )


def _marks(labels: Mapping[float, str]) -> tuple[Tick, ...]:
    """Return the marks at ascending positions; a label that would cover that of an earlier one is left out."""
    marks, free = [], 0.0
    for position, label in labels.items():
        half = CHARACTER * len(label) / 2
        fits = position - half >= free
        marks.append(Tick(position, label if fits else ""))
        free = position + half + CHARACTER if fits else free
    return tuple(marks)


def dot_chart(groups: Mapping[str, Sequence[float]], *, x_name: str) -> DotChart:
    """Lay out groups of values, such as those of several seeds, a row each, with a dot a value and their mean.

    The axis is logarithmic if the largest value is many times the smallest.

    Args:
        groups: values by the name of their group; one that is not finite is left out, and a group may have none.
        x_name: the name of the x axis.

    Raises:
        ValueError: no finite value at all.
    """
    finite = {name: tuple(value for value in values if math.isfinite(value)) for name, values in groups.items()}
    every = [value for values in finite.values() for value in values]
    if not every:
        raise ValueError(f"a dot chart needs a value, got none in {', '.join(groups) or 'no groups'}")
    low, high = min(every), max(every)
    logarithmic = low > 0 and high / low > LINEAR_RANGE
    ticks = _powers(low, high) if logarithmic else _round_ticks(low, high)
    scale = math.log10 if logarithmic else float
    left = round(14 + CHARACTER * max(map(len, groups)), 2)
    bottom = TOP_OF_DOTS + ROW_HEIGHT * len(groups)
    axis = _Axis(scale(ticks[0]), scale(ticks[-1]), left, RIGHT - 10)

    def row(number: int, name: str) -> DotRow:
        values = finite[name]
        mean = math.fsum(values) / len(values) if values else None
        return DotRow(
            name=name,
            y=TOP_OF_DOTS + ROW_HEIGHT * (number + 0.5),
            dots=tuple(axis.position(scale(value)) for value in values),
            mean=None if mean is None else axis.position(scale(mean)),
            value=mean,
            values=values,
        )

    return DotChart(
        width=WIDTH,
        height=bottom + HEIGHT - BOTTOM,
        left=left,
        right=RIGHT - 10,
        top=TOP_OF_DOTS,
        bottom=bottom,
        radius=RADIUS,
        x_name=f"{x_name}, logarithmic" if logarithmic else x_name,
        x_ticks=tuple(Tick(axis.position(scale(value)), _label(value)) for value in ticks),
        rows=tuple(row(number, name) for number, name in enumerate(groups)),
    )


def _curve(
    name: str, place: int, points: Sequence[tuple[float, float]], positions: Sequence[tuple[float, float]]
) -> Curve:
    """Return a series by its place among all, its points, and their positions; not a number is a gap."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in positions:
        if not math.isnan(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    pieces = [_thinned(piece) for piece in pieces if piece]
    end, last = next(((x, y) for x, y in reversed(points) if not math.isnan(y)), (math.nan, math.nan))
    return Curve(
        name=name,
        colour=place % COLOURS + 1,
        dash=place // COLOURS,
        pieces=tuple(tuple(piece) for piece in pieces),
        end=end,
        last=last,
    )


def _thinned(piece: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a piece of a curve with few points at each unit of x: the first, lowest, highest and last, in their order."""
    kept: list[tuple[float, float]] = []
    for _, found in itertools.groupby(piece, key=lambda position: int(position[0])):
        here = list(found)
        ys = [y for _, y in here]
        kept += [here[number] for number in sorted({0, ys.index(min(ys)), ys.index(max(ys)), len(here) - 1})]
    return kept


@dataclass(frozen=True)
class _Axis:
    """A linear map from the values low to high to the positions start to end."""

    low: float
    high: float
    start: float
    end: float

    def position(self, value: float) -> float:
        """Return the position of a value, rounded to a hundredth of a unit."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)


def _markers(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> tuple[Marker, ...]:
    markers = []
    for point in sorted(points, key=lambda point: point.x):
        low, high = map(y_axis.position, point.interval or (point.y, point.y))
        visible = low - high > 2 * RADIUS
        ends = (low, high) if visible else (None, None)
        markers.append(Marker(point, x_axis.position(point.x), y_axis.position(point.y), *ends))
    return tuple(markers)


def _highest(points: Sequence[Point]) -> float:
    """Return the first tick of an axis from 0 that no value or interval exceeds; 1 if nothing is above 0."""
    largest = max(max(point.y, point.interval[1] if point.interval else point.y) for point in points)
    if largest <= 0:
        return 1.0
    step = _step(largest)
    return math.ceil(largest / step) * step


def _round_ticks(low: float, high: float) -> list[float]:
    """Return the ticks of an axis that holds low to high; it begins at 0 unless that would waste half of it."""
    low, high = (min(low, 0.0), max(high, 0.0)) if low * high <= 0 or 2 * abs(low) < abs(high) else (low, high)
    if low == high:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    step = _step(high - low)
    slack = 1e-9
    return [step * number for number in range(math.floor(low / step + slack), math.ceil(high / step - slack) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis that holds low to high: powers of ten, over a short way 2 and 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(math.ceil((last - first) / MOST_INTERVALS), 1)
    if last - first > 2:
        return [10.0**power for power in range(first, last + every, every)]
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below, above = [tick for tick in ticks if tick <= low], [tick for tick in ticks if tick >= high and tick > low]
    return [tick for tick in ticks if below[-1] <= tick <= (above or [10.0 ** (last + 1)])[0]]


def _ticks(low: float, high: float) -> list[float]:
    """Return the multiples of a round step from low to high, both included."""
    step = _step(high - low)
    slack = 1e-9  # a limit that is a multiple of the step up to rounding gets its tick
    return [step * number for number in range(math.ceil(low / step - slack), math.floor(high / step + slack) + 1)]


def _step(length: float) -> float:
    """Return the smallest step, 1, 2 or 5 times a power of ten, that cuts a length into few parts (MOST_INTERVALS)."""
    least = length / MOST_INTERVALS * (1 - 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)


def _label(value: float) -> str:
    return f"{value:,g}"
