"""The layout of charts."""

import math
import re

import pytest

from stylegan.evaluation.page.charts import Chart, Point, curve_chart, dot_chart, line_chart
from stylegan.evaluation.page.template import template

TWO = {
    "Precision": [Point(1.0, 0.7), Point(0.3, 0.9), Point(0.7, 0.8)],
    "Recall": [Point(0.3, 0.1), Point(1.0, 0.5)],
}


def chart(series=TWO, *, limits=(0.0, 1.0)) -> Chart:
    return line_chart(series, x_name="psi", limits=limits)


def labels(ticks) -> list[str]:
    return [tick.label for tick in ticks]


def test_everything_is_in_the_plot_area_and_that_in_the_view_box():
    found = chart()
    assert 0 < found.left < found.right < found.width
    assert 0 < found.top < found.bottom < found.height
    assert all(found.left <= tick.position <= found.right for tick in found.x_ticks)
    assert all(found.top <= tick.position <= found.bottom for tick in found.y_ticks)
    for marker in (marker for line in found.lines for marker in line.markers):
        assert found.left < marker.x < found.right
        assert found.top <= marker.y <= found.bottom


def test_a_larger_value_is_higher():
    high, low = chart({"a": [Point(0, 0.9), Point(1, 0.1)]}).lines[0].markers
    assert high.y < low.y


def test_values_and_ticks_share_a_scale():
    found = chart()
    marker = chart({"a": [Point(0.3, 0.2), Point(0.8, 0.4)]}).lines[0].markers
    (y,) = [tick.position for tick in found.y_ticks if tick.label == "0.4"]
    assert marker[1].y == y
    (x,) = [tick.position for tick in chart({"a": [Point(0.3, 0), Point(0.8, 0)]}).x_ticks if tick.label == "0.8"]
    assert marker[1].x == x


def test_markers_are_in_the_order_of_x():
    """The line never goes back."""
    xs = [marker.x for marker in chart({"a": TWO["Precision"]}).lines[0].markers]
    assert len(xs) == 3
    assert xs == sorted(xs)


@pytest.mark.parametrize(
    ("points", "limits", "expected"),
    [
        ([(10, 5), (20, 9)], None, ["0", "2", "4", "6", "8", "10"]),
        ([(10, 5), (20, 9)], (4, 10), ["4", "6", "8", "10"]),
        ([(0, 0.5), (1, 1)], (0, 1), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([(0, 300), (1, 2345)], None, ["0", "500", "1,000", "1,500", "2,000", "2,500"]),
        ([(0, 0.3), (1, 0.00071)], None, ["0", "0.1", "0.2", "0.3"]),
        ([(0, 0), (1, 0)], None, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    ],
)
def test_the_y_axis_begins_at_zero_unless_limits_are_given_and_ends_at_a_round_value(points, limits, expected):
    found = chart({"a": [Point(*point) for point in points]}, limits=limits)
    assert labels(found.y_ticks) == expected
    assert [found.y_ticks[0].position, found.y_ticks[-1].position] == [found.bottom, found.top]


@pytest.mark.parametrize("largest", [1e-9, 0.02, 1, 7.3, 9.99, 10, 123, 4e5])
def test_an_axis_has_few_ticks(largest: float):
    found = chart({"a": [Point(0, largest), Point(1, 0)]}, limits=None)
    assert 3 <= len(found.y_ticks) <= 6


def test_points_at_one_place_have_an_axis_too():
    found = chart({"a": [Point(0.5, 0.1), Point(0.5, 0.2)]})
    assert found.left < found.lines[0].markers[0].x < found.right
    assert len(found.x_ticks) > 1


def test_wide_labels_have_room():
    narrow, wide = (chart({"a": [Point(0, top), Point(1, 0)]}, limits=None) for top in (1, 10_000))
    assert narrow.left < wide.left


def test_an_interval_is_drawn_around_its_value():
    (marker, other) = chart({"a": [Point(0, 0.5, (0.4, 0.6)), Point(1, 0.5)]}).lines[0].markers
    assert marker.high < marker.y < marker.low
    assert (other.low, other.high) == (None, None)


def test_an_interval_that_the_marker_covers_is_not_drawn():
    marker = chart({"a": [Point(0, 0.5, (0.499, 0.501)), Point(1, 0.5)]}).lines[0].markers[0]
    assert (marker.low, marker.high) == (None, None)


def test_the_y_axis_has_room_for_intervals():
    found = chart({"a": [Point(0, 9, (5, 13)), Point(1, 3)]}, limits=None)
    assert found.lines[0].markers[0].high >= found.top


def test_it_is_the_same_every_time():
    assert chart() == chart()


@pytest.mark.parametrize("number", [0, 3])
def test_another_number_of_series_is_refused(number):
    with pytest.raises(ValueError, match="1 to 2 series"):
        chart({str(n): [Point(0, 1), Point(1, 2)] for n in range(number)})


def test_a_series_without_points_is_refused():
    with pytest.raises(ValueError, match="one point at least"):
        chart({"a": []})


def drawn(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_a_curve_of_thousands_of_points_keeps_its_ends_and_its_peak_and_is_short():
    points = [(k, 1000.0 if k == 5000 else math.sin(k / 300)) for k in range(20_000)]
    (curve,) = curve_chart({"loss": points}, x_name="kimg").curves
    places = drawn(curve.path)
    assert len(places) < 2000
    assert places == sorted(places, key=lambda place: place[0])
    found = curve_chart({"loss": [(0, 0.0), (19_999, 1000.0)]}, x_name="kimg").curves[0]
    assert min(y for _, y in places) == min(y for _, y in drawn(found.path))
    assert (places[0][0], places[-1][0]) == tuple(x for x, _ in drawn(found.path))
    assert (curve.end, curve.last) == (19_999, points[-1][1])


def test_curves_stay_in_the_plot_area_on_both_scales():
    for log_y in (False, True):
        found = curve_chart({"a": [(0, 3.0), (5, 470.0), (9, 0.002)]}, x_name="kimg", log_y=log_y)
        for x, y in drawn(found.curves[0].path):
            assert found.left <= x <= found.right
            assert found.top <= y <= found.bottom
        assert all(found.top <= tick.position <= found.bottom for tick in found.y_ticks)
        assert 3 <= len(found.y_ticks) <= 7


@pytest.mark.parametrize(
    ("values", "log_y", "expected"),
    [
        ((90, 100), False, ["90", "92", "94", "96", "98", "100"]),
        ((10, 100), False, ["0", "20", "40", "60", "80", "100"]),
        ((-3, 5), False, ["-4", "-2", "0", "2", "4", "6"]),
        ((-9, -7), False, ["-9", "-8.5", "-8", "-7.5", "-7"]),
        ((7, 7), False, ["2", "4", "6", "8", "10", "12"]),
        ((0, 0), False, ["-1", "-0.5", "0", "0.5", "1"]),
        ((3, 40), True, ["2", "5", "10", "20", "50"]),
        ((0.5, 3e4), True, ["0.1", "10", "1,000", "100,000"]),
        ((5, 5), True, ["5", "10"]),
    ],
)
def test_an_axis_of_curves_holds_its_values(values, log_y, expected):
    found = curve_chart({"a": list(enumerate(values))}, x_name="x", log_y=log_y)
    assert labels(found.y_ticks) == expected


def test_a_value_that_cannot_be_drawn_is_a_gap():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 3.0), (6, 4.0)]
    (curve,) = curve_chart({"a": points}, x_name="x").curves
    assert curve.path.count("M") == 3
    assert curve.lone.count("M") == 1
    (curve,) = curve_chart({"a": [(0, 1.0), (1, 0.0), (2, 10.0)]}, x_name="x", log_y=True).curves
    assert curve.path.count("M") == 2


def test_each_of_twenty_series_has_its_own_style_which_does_not_depend_on_the_others():
    points = [(0, 1.0), (1, 2.0)]
    all_drawn = curve_chart({str(k): points for k in range(20)}, x_name="x").curves
    assert len({(curve.colour, curve.dash) for curve in all_drawn}) == 20
    some = curve_chart({str(k): points if k > 7 else [] for k in range(20)}, x_name="x").curves
    assert [(curve.colour, curve.dash) for curve in some] == [(curve.colour, curve.dash) for curve in all_drawn]
    assert [bool(curve.path) for curve in some] == [k > 7 for k in range(20)]


def test_marks_outside_the_curves_are_left_out():
    found = curve_chart({"a": [(0, 1), (10, 2)]}, x_name="x", marks={5.0: "8x8", 11.0: "16x16"})
    assert labels(found.marks) == ["8x8"]


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, math.nan)]}, {str(k): [(0, 1.0)] for k in range(21)}])
def test_curves_without_a_point_and_too_many_are_refused(series):
    with pytest.raises(ValueError, match="a curve chart"):
        curve_chart(series, x_name="x")


def test_the_macro_draws_a_line_for_each_series_with_points_and_names_all_in_the_legend():
    chart = curve_chart({"<a>": [(0, 1), (1, 3)], "b": []}, x_name="kimg", y_name="FID", marks={1.0: "8x8"})
    html = template("macros.html.j2").module.curve_chart(chart, "over kimg")
    assert html.count('<path class="curve series-1 dash-0"') == 1
    assert 'path class="curve series-2' not in html
    assert "<title>&lt;a&gt;: 3.000 at kimg = 1</title>" in html
    assert html.count("<li>") == 2
    assert ">8x8</text>" in html
    assert "<li>" not in template("macros.html.j2").module.curve_chart(chart, "over kimg", keys=False)


# --- dots -------------------------------------------------------------------------------------------------------------


def test_each_group_of_dots_has_a_row_of_its_own_with_its_mean():
    found = dot_chart({"a": [1.0, 2.0, 6.0], "b": [], "c": [4.0]}, x_name="FID")
    assert [row.name for row in found.rows] == ["a", "b", "c"]
    assert found.top < found.rows[0].y < found.rows[1].y < found.rows[2].y < found.bottom < found.height
    assert (found.rows[0].value, found.rows[1].value, found.rows[2].value) == (3.0, None, 4.0)
    (one,) = found.rows[2].dots
    assert found.rows[0].mean < one < found.rows[0].dots[2]
    assert [tick.position for tick in found.x_ticks if tick.label == "4"] == [one]


def test_the_axis_of_dots_is_logarithmic_over_a_long_way_only():
    """Else one group that is far away would press all others into a point."""
    near = dot_chart({"a": [2.0], "b": [12.0]}, x_name="FID")
    far = dot_chart({"a": [10.0], "b": [1000.0]}, x_name="FID")
    assert (near.x_name, far.x_name) == ("FID", "FID, logarithmic")
    (low,), (high,) = far.rows[0].dots, far.rows[1].dots
    (middle,) = [tick.position for tick in far.x_ticks if tick.label == "100"]
    assert middle == pytest.approx((low + high) / 2, abs=0.02)


def test_dots_without_a_number_are_left_out():
    found = dot_chart({"a": [math.nan, 1.0], "b": [math.inf]}, x_name="FID")
    assert [len(row.dots) for row in found.rows] == [1, 0]
    with pytest.raises(ValueError, match="needs a value"):
        dot_chart({"a": [math.nan]}, x_name="FID")


def test_a_group_of_dots_is_drawn_with_its_values_as_hints():
    draw = template("macros.html.j2").module.dot_chart
    svg = str(draw(dot_chart({"<a>": [1.0, 2.0]}, x_name="FID"), "what"))
    assert svg.count("<circle") == 2
    assert "&lt;a&gt;: 1.000" in svg
    assert "&lt;a&gt;, mean: 1.500" in svg
