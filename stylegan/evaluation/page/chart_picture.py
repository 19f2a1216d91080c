"""Draw curve charts as a picture, for places that show no page: the layout of charts.py in the light colours of pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from PIL import Image, ImageDraw

from stylegan.evaluation.page.charts import Curve, CurveChart
from stylegan.images import fit_text, font_of_size

# As base.html.j2 has them; a test compares.
PAGE, INK, MUTED, LINE = "#fcfcfb", "#1c1e21", "#5d636b", "#dfe2e6"
SERIES = ("#1a5fb4", "#b8560f", "#1d7044", "#8637b5", "#b8246e", "#0b7886", "#7a6000", "#5d636b")
DASHES = ((), (7, 3), (2, 3))
THIN = 0.55  # opacity of a thin curve
SCALE, FINE = 2, 2  # pixels of a unit of the charts, and of a side of each pixel while it is drawn
MOST_COLUMNS = 3
MARGIN, TITLE, ROW_GAP = 14, 26, 6  # in units: around all, height of the title, and below each row of charts
KEY, SAMPLE, GAP = 18, 28, 7  # of a line of the legend: its height, the length of a line, and the room beside that

Place = tuple[float, float]


def draw_charts(title: str, charts: Mapping[str, CurveChart]) -> Image.Image:
    """Draw charts that have the same series beside each other, under one legend.

    Args:
        title: of the picture.
        charts: by their headings; at least one.
    """
    first = next(iter(charts.values()))
    columns = min(len(charts), MOST_COLUMNS)
    rows, height = -(-len(charts) // columns), first.height + ROW_GAP
    width = columns * first.width
    keys = _keys(first.curves, width)
    top = MARGIN + TITLE + KEY * (keys[-1][1] + 1 if keys else 0) + GAP
    size = (width + 2 * MARGIN, top + rows * height + MARGIN)
    image = Image.new("RGB", (round(size[0] * SCALE) * FINE, round(size[1] * SCALE) * FINE), PAGE)

    sheet = _Pen(image, (MARGIN, MARGIN))
    sheet.text((0, TITLE / 2), title, INK, size=14, anchor="lm")
    for x, row, curve, name in keys:
        y = TITLE + KEY * (row + 0.5)
        sheet.line([(x, y), (x + SAMPLE, y)], _colour(curve), 2, DASHES[curve.dash])
        sheet.text((x + SAMPLE + GAP, y), name, INK, anchor="lm")
    for place, (heading, chart) in enumerate(charts.items()):
        corner = MARGIN + place % columns * chart.width, top + place // columns * height
        _draw(replace(sheet, corner=corner), heading, chart)
    return image.reduce(FINE)


@dataclass(frozen=True)
class _Pen:
    """Draws on an image in units of the charts, from a corner on."""

    image: Image.Image
    corner: Place

    def text(self, place: Place, text: str, colour: str, *, size: int = 11, anchor: str = "ls") -> None:
        font = font_of_size(size * SCALE * FINE)
        ImageDraw.Draw(self.image).text(self._pixel(place), text, colour, font, anchor=anchor)

    def line(self, points: Sequence[Place], colour: str, width: float, dash: Sequence[float] = ()) -> None:
        draw, pixels = ImageDraw.Draw(self.image), max(round(width * SCALE * FINE), 1)
        for piece in _dashed(points, dash) if dash else [points]:
            draw.line([self._pixel(place) for place in piece], colour, pixels, joint="curve")

    def dot(self, place: Place, colour: str, radius: float) -> None:
        ImageDraw.Draw(self.image).circle(self._pixel(place), radius * SCALE * FINE, colour)

    def _pixel(self, place: Place) -> Place:
        return (self.corner[0] + place[0]) * SCALE * FINE, (self.corner[1] + place[1]) * SCALE * FINE


def _keys(curves: Sequence[Curve], width: float) -> list[tuple[float, int, Curve, str]]:
    """Return the places of the legend: x and row, the curve, and as much of its name as fits into the width."""
    font, keys, x, row = font_of_size(11 * SCALE), [], 0.0, 0
    for curve in curves:
        if curve.thin:
            continue
        name = fit_text(curve.name, font, round((width - SAMPLE - GAP) * SCALE))
        length = SAMPLE + GAP + font.getlength(name) / SCALE
        if x and x + length > width:
            x, row = 0.0, row + 1
        keys.append((x, row, curve, name))
        x += length + 3 * GAP
    return keys


def _draw(pen: _Pen, heading: str, chart: CurveChart) -> None:
    pen.text((chart.left, chart.top - 10), heading, INK, size=12)
    for tick in chart.y_ticks:
        ends = [(chart.left, tick.position), (chart.right, tick.position)]
        pen.line(ends, MUTED if tick.position == chart.bottom else LINE, 0.8)
        pen.text((chart.left - 6, tick.position), tick.label, MUTED, anchor="rm")
    for tick in chart.x_ticks:
        pen.text((tick.position, chart.bottom + 17), tick.label, MUTED, anchor="ms")
    pen.text(((chart.left + chart.right) / 2, chart.bottom + 36), chart.x_name, MUTED, anchor="ms")
    for curve in sorted(chart.curves, key=lambda curve: not curve.thin):  # the thin ones lie below
        for piece in curve.pieces:
            if len(piece) > 1:
                pen.line(piece, _colour(curve), 1 if curve.thin else 2, DASHES[curve.dash])
            else:
                pen.dot(piece[0], _colour(curve), 2.5)


def _colour(curve: Curve) -> str:
    """Return the colour of a curve; that of a thin one is mixed with the page's."""
    colour = SERIES[curve.colour - 1]
    if not curve.thin:
        return colour
    channels = [[int(one[place : place + 2], 16) for one in (colour, PAGE)] for place in (1, 3, 5)]
    return "#" + "".join(f"{round(THIN * own + (1 - THIN) * page):02x}" for own, page in channels)


def _dashed(points: Sequence[Place], dash: Sequence[float]) -> Iterator[list[Place]]:
    """Yield the drawn parts of a line through points; `dash` has the lengths of a part and of the gap after it."""
    on, left, part = True, dash[0], [points[0]]
    for start, end in pairwise(points):
        length, done = math.dist(start, end), 0.0
        while length - done > left:
            done += left
            part.append(
                (start[0] + (end[0] - start[0]) * done / length, start[1] + (end[1] - start[1]) * done / length)
            )
            if on:
                yield part
            on, part = not on, part[-1:]
            left = dash[0] if on else dash[1]
        left -= length - done
        part.append(end)
    if on and len(part) > 1:
        yield part
