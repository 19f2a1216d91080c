"""The layout of line charts."""

import pytest

from stylegan.evaluation.page.charts import Chart, Point, line_chart

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
