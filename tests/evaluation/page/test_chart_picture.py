"""Charts as a picture: its colours, and that lines, dots and names are where the layout has them."""

import re
from dataclasses import replace
from importlib.resources import files

import numpy as np

from stylegan.evaluation.page.chart_picture import (
    DASHES,
    INK,
    KEY,
    LINE,
    MARGIN,
    MUTED,
    PAGE,
    ROW_GAP,
    SCALE,
    SERIES,
    TITLE,
    draw_charts,
)
from stylegan.evaluation.page.charts import curve_chart


def count(pixels, colour):
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(pixels.astype(int) - wanted).sum(-1) < 12).sum())


def drawn(series, **changes):
    """Return the pixels of the plot area of a picture of one chart."""
    chart = curve_chart(series, x_name="kimg")
    chart = replace(chart, curves=tuple(replace(curve, **changes) for curve in chart.curves))
    image = draw_charts("Title", {"all": chart})
    pixels = np.asarray(image)
    above = image.height - SCALE * (MARGIN + ROW_GAP + int(chart.height))  # of the corner of the chart
    top, bottom = (above + round(SCALE * y) for y in (chart.top, chart.bottom))
    left, right = (round(SCALE * (MARGIN + x)) for x in (chart.left, chart.right))
    return pixels[top : bottom - 3, left:right]


def test_colours_and_dashes_are_those_of_pages():
    style = files("stylegan.evaluation.page").joinpath("base.html.j2").read_text()
    light = style.partition("@media")[0]
    for number, colour in enumerate(SERIES, start=1):
        assert f"--series-{number}: {colour};" in light
    for name, colour in {"page": PAGE, "ink": INK, "muted": MUTED, "line": LINE}.items():
        assert f"--{name}: {colour};" in light
    found = dict(re.findall(r"\.chart \.dash-(\d)[^{]*\{ stroke-dasharray: ([\d ]+);", style))
    assert {number: tuple(map(int, dash.split())) for number, dash in found.items()} == {"1": DASHES[1], "2": DASHES[2]}


def test_a_line_is_as_long_as_its_curve_and_a_dash_leaves_gaps():
    line = count(drawn({"a": [(0, 0.5), (10, 0.9)]}), SERIES[0])
    assert line > 2000
    assert 0.4 * line < count(drawn({"a": [(0, 0.5), (10, 0.9)]}, dash=1), SERIES[0]) < 0.85 * line
    assert 0.2 * line < count(drawn({"a": [(0, 0.5), (10, 0.9)]}, dash=2), SERIES[0]) < 0.6 * line
    assert count(drawn({"a": [(0, 0.5), (10, 0.9)]}, thin=True), SERIES[0]) == 0  # paler, and thinner


def test_a_point_alone_is_a_dot():
    assert 40 < count(drawn({"a": [(1, 0.5)]}), SERIES[0]) < 120


def test_a_curve_lies_where_the_axis_says():
    pixels = drawn({"a": [(0, 1.0), (10, 1.0)], "b": [(0, 0.0), (10, 0.0)]})
    half = len(pixels) // 2
    assert count(pixels[:half], SERIES[0]) > 1000
    assert count(pixels[half:], SERIES[0]) == 0


def test_the_legend_has_a_line_for_each_curve_that_is_not_thin_and_breaks_where_it_is_full():
    chart = curve_chart({"a": [(0, 0.5)], "b": [(0, 0.7)]}, x_name="kimg")
    one = draw_charts("Title", {"x": chart})
    few = replace(chart, curves=(chart.curves[0], replace(chart.curves[1], thin=True)))
    head = np.asarray(one)[: SCALE * (MARGIN + TITLE + KEY)]
    assert count(head, SERIES[1]) > 150
    assert count(np.asarray(draw_charts("Title", {"x": few}))[: len(head)], SERIES[1]) == 0
    names = {f"a-run-with-a-rather-long-name-{number}": [(0, 0.5)] for number in range(6)}
    longer = draw_charts("Title", {"x": curve_chart(names, x_name="kimg")})
    assert longer.height == one.height + 5 * SCALE * KEY
    cut = draw_charts("Title", {"x": curve_chart({"n" * 300: [(0, 0.5)]}, x_name="kimg")})
    assert cut.size == one.size


def test_charts_stand_three_in_a_row():
    chart = curve_chart({"a": [(0, 0.5), (1, 0.6)]}, x_name="kimg")
    sizes = [draw_charts("T", {str(number): chart for number in range(count)}).size for count in (1, 2, 3, 4)]
    assert [width for width, _ in sizes] == [856, 1656, 2456, 2456]
    assert sizes[0][1] == sizes[2][1] < sizes[3][1]
