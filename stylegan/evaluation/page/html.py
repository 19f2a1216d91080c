"""A report as one page to read, print and pass on: a single HTML file that asks for nothing from anywhere else.

The page's text comes from `report.html.j2` beside this file; every string is escaped there, only the charts are trusted.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from stylegan.data.dataset_card import DatasetCard
from stylegan.evaluation.names import METRICS, describe, split_key
from stylegan.evaluation.page.charts import line_chart
from stylegan.evaluation.page.data_section import describe_data
from stylegan.evaluation.page.published import Comparison
from stylegan.evaluation.report import Report

DASH, MINUS = "\u2013", "\u2212"
BETTER = {"lower": "↓ lower", "higher": "↑ higher", None: ""}
SHARP_BELOW = 1100  # pixels of a sheet's width that a browser would blur when it enlarges them
# What a figure of the report shows, for those who do not see it too.
CAPTIONS = {
    "grid": (
        "Real and generated",
        "Contact sheet: real images in the left half, generated ones, drawn without truncation, in the right half",
    ),
    "best": (
        "Best samples",
        "The generated images of highest realism: those that lie nearest to real ones among their features",
    ),
    "worst": (
        "Worst samples",
        "The generated images of lowest realism: those that lie farthest from real ones among their features",
    ),
    "truncation": ("Truncation", "Generated images, row by row with a larger ψ: from typical to varied"),
}
AXES = ("psi", "latents")  # what curves are drawn over
COLUMNS = {
    "psi": "ψ",
    "fid": "FID",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "latents": "Latents mixed",
}


@dataclass(frozen=True)
class MetricRow:
    """A line of the table of metrics."""

    title: str
    key: str
    better: str
    value: str
    interval: str
    protocol: str


@dataclass(frozen=True)
class AttributeRow:
    """A line of the table of attributes; `bars` are (space, entropy, percent of the longest bar)."""

    name: str
    share: str
    bars: tuple[tuple[str, float, float], ...]
    error: str


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    name: str
    title: str
    alt: str
    uri: str
    sharp: bool


def render(
    report: Report,
    *,
    images: Mapping[str, bytes] | None = None,
    published: Sequence[Comparison] = (),
    title: str = "Evaluation",
    facts: Mapping[str, str] | None = None,
    data: DatasetCard | None = None,
) -> str:
    """The page.

    Args:
        report: what was measured; parts that it does not have are left out of the page.
        images: PNG files by the names in `report.figures` (grid, best, worst, truncation; others are shown too).
        published: figures of the paper beside ours, from `published.compare`.
        title: heading of the page, such as the model's name and version.
        facts: more lines for the page's head, by their names: run, model, date.
        data: what the real images are.

    Raises:
        ValueError: one of the images is no PNG.
    """
    measured = sorted(report.metrics, key=_order)
    return _template().render(
        title=title,
        facts=_facts(report, facts or {}),
        metrics=[_metric_row(report, key) for key in measured if describe(key).better or key in report.intervals],
        others=[
            _metric_row(report, key) for key in measured if not describe(key).better and key not in report.intervals
        ],
        skipped=[
            (describe(key).title, key, why)
            for key, why in sorted(report.skipped.items(), key=lambda item: _order(item[0]))
        ],
        pictures=[
            _picture(name, data)
            for name, data in sorted((images or {}).items(), key=lambda item: _rank(item[0], CAPTIONS))
        ],
        charts=list(_charts(report.curves.get("truncation", []))),
        truncation=_table(report.curves.get("truncation", [])),
        mixing=_table(report.curves.get("mixing", [])),
        attributes=_attribute_rows(report.attributes),
        published=_published(published),
        data=describe_data(data) if data else None,
        settings=sorted(_flat(report.settings)),
    )


def number(value: float | None) -> str:
    """A figure as people read it: three or four significant digits, thousands set apart, what is not finite by its name."""
    if value is None:
        return DASH
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = abs(value)
    form = ",.0f" if size >= 999.95 else "#.4g" if size >= 1 else ".3f" if size >= 0.01 else "#.3g" if size else ".0f"
    return f"{value:{form}}".rstrip(".").replace("-", MINUS)


@functools.cache
def _template() -> Template:
    source = files("stylegan.evaluation.page").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    return environment.from_string(source)


def _rank(name: str, known: Sequence[str] | Mapping[str, Any]) -> tuple[int, str]:
    """Known names in their order, others after them by name."""
    order = list(known)
    return (order.index(name) if name in order else len(order), name)


def _order(key: str) -> tuple[int, str]:
    return _rank(split_key(key)[0], METRICS)[0], key


def _facts(report: Report, more: Mapping[str, str]) -> dict[str, str]:
    return {
        **more,
        "Checkpoint": report.checkpoint_uri,
        "Real images": f"fingerprint {report.dataset_fingerprint}",
        "Protocol": report.protocol,
    }


def _metric_row(report: Report, key: str) -> MetricRow:
    name = describe(key)
    return MetricRow(
        title=name.title,
        key=key,
        better=BETTER[name.better],
        value=number(report.metrics[key]),
        interval=_interval(report.intervals.get(key)),
        protocol=report.protocols.get(key, report.protocol),
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return f"{number(interval[0])} to {number(interval[1])}" if interval else ""


def _picture(name: str, data: bytes) -> Picture:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise ValueError(f"image {name!r} is no PNG file")
    (width,) = struct.unpack(">I", data[16:20])
    caption, alt = CAPTIONS.get(name, (name.replace("_", " ").capitalize(), f"Images: {name.replace('_', ' ')}"))
    return Picture(
        name, caption, alt, f"data:image/png;base64,{base64.b64encode(data).decode()}", sharp=width < SHARP_BELOW
    )


def _charts(rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, str, Markup]]:
    """Heading, words for those who do not see it, and the SVG of each chart over psi."""
    for heading, names, limits in (
        ("FID", ("fid",), None),
        ("Precision and recall", ("precision", "recall"), (0.0, 1.0)),
    ):
        series = {COLUMNS[name]: [(row["psi"], row[name]) for row in rows if _is_finite(row, name)] for name in names}
        series = {name: points for name, points in series.items() if len(points) > 1}
        if series:
            svg = line_chart(series, x="ψ", y=heading if limits is None else "share", limits=limits)
            yield heading, f"Line chart over psi: {', '.join(series)}. Its values are in the table below.", Markup(svg)


def _is_finite(row: Mapping[str, float], name: str) -> bool:
    return name in row and math.isfinite(row[name])


def _table(rows: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """Columns and cells of a curve; None if there is none."""
    keys = sorted(
        {key for row in rows for key in row}, key=lambda key: (key not in AXES, key)
    )  # whatever order they come in
    if not keys:
        return None
    cells = [[f"{row[key]:g}" if key in AXES else number(row.get(key)) for key in keys] for row in rows]
    return {"columns": [COLUMNS.get(key, key) for key in keys], "rows": cells}


def _attribute_rows(attributes: Mapping[str, Mapping[str, Any]]) -> list[AttributeRow]:
    """Attributes with their bars, the least separable first and those that failed last."""
    spaces = {"W": "entropy_w", "Z": "entropy_z"}
    longest = max((row[key] for row in attributes.values() for key in spaces.values() if row.get(key)), default=1.0)
    rows = []
    for name, row in sorted(attributes.items()):
        bars = tuple(
            (space, row[key], 100 * row[key] / longest) for space, key in spaces.items() if row.get(key) is not None
        )
        share = f"{row['share']:.1%}" if row.get("share") is not None else DASH
        rows.append(AttributeRow(name, share, bars, row.get("error") or ""))
    return sorted(rows, key=lambda row: max((entropy for _, entropy, _ in row.bars), default=-1.0), reverse=True)


def _published(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """Rows by what was published, the reasons that all of them share, and the sources; None if there is nothing."""
    if not comparisons:
        return None
    measured = [set(comparison.why_not) for comparison in comparisons if comparison.value is not None]
    shared = set.intersection(*measured) if measured else set()
    groups: dict[str, list[dict[str, Any]]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.published.title, []).append(_published_row(comparison, shared))
    in_order = [why for why in next((c.why_not for c in comparisons if c.value is not None), ()) if why in shared]
    return {"groups": groups, "shared": "; ".join(in_order), "sources": _sources(comparisons)}


def _published_row(comparison: Comparison, shared: set[str]) -> dict[str, Any]:
    figure = comparison.published
    return {
        "name": figure.name,
        "where": _tables(figure.where),
        "data": f"{figure.dataset_title} {figure.resolution}x{figure.resolution}",
        "theirs": _as_printed(figure.value),
        "measured": comparison.value is not None,
        "ours": number(comparison.value),
        "interval": _interval(comparison.interval),
        "comparable": comparison.comparable,
        "why_not": "; ".join(why for why in comparison.why_not if why not in shared),
    }


def _as_printed(value: float) -> str:
    """A published figure with all its digits, and at least as many as the paper's tables have."""
    least = 2 if value < 100 else 1
    return f"{value:.{max(least, len(repr(value).partition('.')[2]))}f}"


def _sources(comparisons: Sequence[Comparison]) -> list[tuple[str, str, str, str]]:
    """Tables, source, its address and remarks, once each."""
    sources: dict[tuple[str, str, tuple[str, ...]], set[str]] = {}
    for figure in (comparison.published for comparison in comparisons):
        sources.setdefault((figure.source, figure.url, figure.remarks), set()).update(figure.where)
    return [
        (_tables(sorted(where)), source, url, "; ".join(remarks)) for (source, url, remarks), where in sources.items()
    ]


def _tables(names: Sequence[str]) -> str:
    """Table 1, Table 4 -> Tables 1, 4."""
    numbers = [name.removeprefix("Table ") for name in names]
    return f"Tables {', '.join(numbers)}" if len(names) > 1 and all(map(str.isdigit, numbers)) else ", ".join(names)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of nested settings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
