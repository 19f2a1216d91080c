"""Lay out a line chart; the template of the page draws it as an SVG.

All positions are in units of the SVG's view box: x grows to the right, y downwards. The page scales a chart to the
width of its column, and the page's style sheet colours it, so a chart follows light mode, dark mode and print. The same
points always give the same chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_SERIES = 2  # the page has two colours for series
WIDTH, HEIGHT = 400, 250
TOP, BOTTOM, RIGHT = 28, 208, 390  # edges of the plot area; the left one depends on the width of the labels
CHARACTER = 6.6  # width of a digit of a label, whose font size is 11
INSET = 0.04  # share of the x axis that is free at either end, so that no marker covers the edge of the plot area
RADIUS = 4  # of a marker
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
