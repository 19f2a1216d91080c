"""Line charts as SVG."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest

from stylegan.evaluation.page.charts import line_chart

TWO = {"Precision": [(1.0, 0.7), (0.3, 0.9), (0.7, 0.8)], "Recall": [(0.3, 0.1), (1.0, 0.5)]}


def chart(series=TWO, x="psi", y="share", limits=(0.0, 1.0)):
    return line_chart(series, x=x, y=y, limits=limits)


def test_it_is_one_svg_element_that_fills_its_place():
    root = ElementTree.fromstring(chart())
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & root.attrib.keys()


def test_its_letters_are_text():
    found = {"".join(text.itertext()) for text in ElementTree.fromstring(chart()).iter() if text.tag.endswith("text")}
    assert {"Precision", "Recall", "psi", "share", "0.8"} <= found


def test_its_colours_are_those_of_the_page():
    svg = chart()
    assert {"var(--series-1)", "var(--series-2)", "var(--line)", "var(--muted)"} <= set(
        re.findall(r"var\([^)]*\)", svg)
    )
    assert re.findall(r"#[0-9a-f]{6}", svg) == []


def test_nothing_of_it_leaks_into_the_page():
    """No style sheet, no names but those that the chart itself refers to, no font of its own."""
    svg = chart()
    assert "<style" not in svg
    assert "font-family" not in svg
    names, used = set(re.findall(r'\bid="([^"]*)"', svg)), set(re.findall(r'#([^")]+)[")]', svg))
    assert names == used


def test_two_charts_share_no_name():
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (chart(), chart({"FID": TWO["Recall"]}, y="FID"))]
    assert all(ids)
    assert not ids[0] & ids[1]


def test_it_is_the_same_every_time():
    assert chart() == chart()


def test_points_are_drawn_in_the_order_of_x():
    """The line never goes back."""
    path = next(line for line in chart({"a": TWO["Precision"]}).split("<path ") if "stroke: var(--series-1)" in line)
    xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", path)]
    assert len(xs) == 3
    assert xs == sorted(xs)


def test_the_axis_begins_at_zero_unless_limits_are_given():
    lowest = [
        min(re.findall(r">([\d.]+)</text>", chart({"a": [(10, 5), (20, 9)]}, limits=limits)), key=float)
        for limits in (None, (4, 10))
    ]
    assert [float(value) for value in lowest] == [0, 4]


def test_labels_are_taken_literally():
    """No formulas, no tags."""
    svg = chart(x="$x^2$ <b>", y="a & b")
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter() if text.tag.endswith("text")]
    assert "$x^2$ <b>" in texts
    assert "a & b" in texts


def test_matplotlib_is_left_as_it_was():
    before = dict(matplotlib.rcParams)
    chart()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("number", [0, 3])
def test_another_number_of_series_is_refused(number):
    with pytest.raises(ValueError, match=f"got {number}"):
        chart({str(n): [(0, 1), (1, 2)] for n in range(number)})
