"""Render a report as one HTML page to read, print and pass on. The page is a single file and loads nothing.

This module turns a report into rows, captions and charts. `report.html.j2`, beside this file, holds the page's text.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from stylegan.data.dataset_card import DatasetCard, Spread
from stylegan.errors import shown
from stylegan.evaluation.metric_table import describe, split_key
from stylegan.evaluation.page.charts import Chart, Point, line_chart
from stylegan.evaluation.page.metric_rows import (
    ARROWS,
    COLUMNS,
    DASH,
    curve_cells,
    interval_words,
    metric_rows,
    number,
    skipped_rows,
)
from stylegan.evaluation.page.published import Comparison, describe_incomparable
from stylegan.evaluation.page.run_charts import film_strip, run_charts
from stylegan.evaluation.page.run_story import Against, Story
from stylegan.evaluation.page.template import template
from stylegan.evaluation.report import Report
from stylegan.records import digest
from stylegan.training.curves import Row
from stylegan.training.samples import Frame

logger = logging.getLogger("stylegan")
TEMPLATE = "report.html.j2"
# Pixels. Browsers blur an image when they enlarge it, so the page asks them not to, if it is narrower than any sheet that
# is drawn today. Those consist of enlarged images already, and between them are lines that would become uneven.
SHARP_BELOW = 530
MOST_COUNTS = 60  # rows of the table of classes or attributes: of more, the most frequent and the rarest are shown
# Title and alternative text of each figure of a report.
CAPTIONS = {
    "grid": (
        "Real and generated",
        "Contact sheet: real images in the left half, generated ones, drawn without truncation, in the right half",
    ),
    "best": (
        "Best samples",
        "The generated images of highest realism: those whose features are nearest to features of real images",
    ),
    "worst": (
        "Worst samples",
        "The generated images of lowest realism: those whose features are farthest from features of real images",
    ),
    "neighbours": (
        "Nearest real images",
        "Generated images, one in each row, and to the right of each the real images whose features are nearest",
    ),
    "truncation": ("Truncation", "Generated images, row by row with a larger ψ: from typical to varied"),
    "mixing": (
        "Style mixing",
        "Images on the left that take the coarse, middle or fine styles of the images above them",
    ),
    "noise": (
        "Stochastic variation",
        "An image, other draws of its noise, and where these differ (standard deviation, four times as bright)",
    ),
    "noise_layers": ("Noise", "Images with noise in all layers, in none, in the fine ones, and in the coarse ones"),
    "psi": ("Truncation of one latent", "From ψ = 1 over the average image at ψ = 0 to the opposite at ψ = -1"),
    "stages": ("Growth", "The same latents at the end of every stage"),
    "walk": ("Interpolation", "Animation: images that walk through latent space, and end where they began"),
    "transfers": ("Transfers", "Held-out images: contents at the left, drawn in the styles at the top"),
}
STYLES = ("mixing", "noise", "noise_layers", "psi", "stages", "walk")
CROPS = {
    "center": "central square",
    "wide": "central 4:3 part between black bars",
    "celeba": "face of aligned CelebA, 128x128",
}


@dataclass(frozen=True)
class AttributeRow:
    """A row of the table of attributes; `bars` are (space, entropy, percent of the longest bar)."""

    name: str
    share: str
    bars: tuple[tuple[str, float, float], ...]
    error: str


@dataclass(frozen=True)
class RunParts:
    """What the page of a run has beside its report.

    Attributes:
        story: its verdict, its differences to other runs, and how it was made.
        rows: the points of its curves, by image count.
        starts: image count at the beginning of each stage, by its resolution.
        film: what it drew of the same latents, the oldest first.
    """

    story: Story
    rows: Sequence[Row]
    starts: Mapping[int, int]
    film: Sequence[Frame]


@dataclass(frozen=True)
class Picture:
    """A PNG or an animation inside the page; `sharp` asks the browser not to blur it.

    `still` is the last frame of an animation, for paper and for people who want nothing to move.
    """

    name: str
    title: str
    alt: str
    uri: str
    sharp: bool
    still: str = ""


def render(
    report: Report,
    *,
    images: Mapping[str, bytes] | None = None,
    growth: bytes | None = None,
    published: Sequence[Comparison] = (),
    title: str = "Evaluation",
    facts: Mapping[str, str] | None = None,
    data: DatasetCard | None = None,
    told: RunParts | None = None,
) -> str:
    """Return the page of a report as HTML.

    Args:
        report: the report; the page omits the sections of parts that it does not have.
        images: PNG and animated WebP files by the names in `report.figures`; a damaged animation is left out.
        growth: animated WebP file of the sample grids of a run; a damaged one is left out.
        published: published figures beside ours, from `published.compare`.
        title: heading of the page, such as the model's name and version.
        facts: more lines for the page's head, by their names: run, model, date.
        data: the card of the real images.
        told: what the page of a run has beside its report.

    Raises:
        ValueError: one of the images is neither.
    """
    rows, charts = metric_rows(report), list(_truncation_charts(report))
    pictures = sorted((images or {}).items(), key=lambda item: _picture_order(item[0]))
    return template(TEMPLATE).render(
        title=title,
        page_format=page_format(),
        story_key=told.story.key if told else "",
        story=told.story if told else None,
        others_of_run=[_against(other) for other in (told.story.champion, told.story.previous) if other]
        if told
        else [],
        curves=run_charts(told.rows, told.starts) if told else [],
        film=film_strip(told.film) if told else [],
        facts=facts or {},
        origin=_origin(report),
        warnings=[row.warning for row in rows if row.warning],
        metrics=[row for row in rows if row.of_model],
        others=[row for row in rows if not row.of_model],
        skipped=skipped_rows(report),
        pictures=[found for name, data in pictures if (found := _picture(name, data))],
        styles=STYLES,
        growth=_animation(growth) if growth else None,
        charts=charts,
        intervals=any(
            marker.low is not None for _, _, chart in charts for line in chart.lines for marker in line.markers
        ),
        truncation=_table(report.curves.get("truncation", [])),
        mixing=_table(report.curves.get("mixing", [])),
        attributes=_attribute_rows(report.attributes),
        published=_published(published),
        data=_data_set(data) if data else None,
        settings=sorted(_flat(report.settings)),
    )


@functools.cache
def page_format() -> str:
    """Return the version of the page's format: a digest of all that decides how a report becomes a page."""
    room = files("stylegan.evaluation")
    parts = [room.joinpath("metric_table.py"), *room.joinpath("page").iterdir()]
    texts = {
        part.name: part.read_text(encoding="utf-8") for part in parts if part.name.endswith((".py", ".j2", ".yaml"))
    }
    return digest(texts)


# --- head and settings ------------------------------------------------------------------------------------------------


def _origin(report: Report) -> dict[str, str]:
    return {
        "Checkpoint": report.checkpoint_uri,
        "Real images": f"fingerprint {report.dataset_fingerprint}",
        "Protocol": report.protocol,
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted names and the values of nested settings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _against(other: Against) -> dict[str, Any]:
    """Return the section that compares the run with another one."""
    rows = [
        {
            "title": describe(metric.key).title,
            "network": split_key(metric.key)[1],
            "arrow": ARROWS[describe(metric.key).better],
            "value": number(metric.value),
            "interval": interval_words(metric.interval),
            "other": number(metric.other),
            "other_interval": interval_words(metric.other_interval),
            "outcome": metric.outcome,
            "words": metric.words,
        }
        for metric in other.metrics
    ]
    return {"name": other.name, "run_id": other.run_id, "metrics": rows, "settings": other.settings}


# --- images and curves ------------------------------------------------------------------------------------------------


def _picture_order(name: str) -> tuple[int, str]:
    """Return the sort key of a figure: known ones in the order of CAPTIONS, others after them by name."""
    known = list(CAPTIONS)
    return (known.index(name) if name in known else len(known), name)


def _picture(name: str, png: bytes) -> Picture | None:
    words = name.replace("_", " ")
    title, alt = CAPTIONS.get(name, (words.capitalize(), f"Images: {words}"))
    if png[:4] == b"RIFF":
        animation = _animation(png, name)
        return Picture(name, title, alt, animation["uri"], sharp=False, still=animation["still"]) if animation else None
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise ValueError(f"image {name!r} is no PNG file")
    (width,) = struct.unpack(">I", png[16:20])
    uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Picture(name, title, alt, uri, sharp=width < SHARP_BELOW)


def _animation(webp: bytes, name: str = "of the sample grids") -> dict[str, str] | None:
    """Return the URIs of an animation, and of its last frame for paper and for people who want nothing to move."""
    from stylegan.images import last_frame, png_bytes  # imports torch, which the command line's tables do without

    try:
        still = png_bytes(last_frame(webp))
    except Exception as error:  # Pillow raises errors of many types for damaged files
        logger.warning("evaluate: the animation %s is damaged (%s); the page omits it", name, error)
        return None
    uris = {"uri": ("webp", webp), "still": ("png", still)}
    return {name: f"data:image/{kind};base64,{base64.b64encode(data).decode()}" for name, (kind, data) in uris.items()}


def _truncation_charts(report: Report) -> Iterator[tuple[str, str, Chart]]:
    """Yield heading, description for screen readers, and chart: FID over psi, precision and recall over psi."""
    for heading, names, limits in (
        ("FID", ("fid",), None),
        ("Precision and recall", ("precision", "recall"), (0.0, 1.0)),
    ):
        series = {COLUMNS[name]: _points(report, name) for name in names}
        series = {name: points for name, points in series.items() if len(points) > 1}
        if series:
            description = f"Line chart over ψ: {', '.join(series)}. Its values are in the table below."
            yield heading, description, line_chart(series, x_name="ψ", limits=limits)


def _points(report: Report, name: str) -> list[Point]:
    """Return the finite values of a column of the truncation curve, over psi."""
    rows = report.curves.get("truncation", [])
    finite = [row for row in rows if name in row and math.isfinite(row[name])]
    return [Point(row["psi"], row[name], _interval_at(row, name, report)) for row in finite]


def _interval_at(row: Mapping[str, float], name: str, report: Report) -> tuple[float, float] | None:
    """Return the 95 % interval of a point of the curve; None unless the report holds the same value as a metric.

    A curve has no intervals of its own, but the generated images of psi = 1 are those that the metrics are measured on.
    """
    for key, interval in report.intervals.items():
        same = split_key(key)[0] == name and report.metrics.get(key) == row[name]
        if same and row["psi"] == 1 and all(map(math.isfinite, interval)):
            return interval
    return None


def _table(rows: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """Return the columns and cells of a curve; None if the curve is empty."""
    columns, cells = curve_cells(rows)
    return {"columns": columns, "rows": cells} if columns else None


# --- separability by attribute ----------------------------------------------------------------------------------------


def _attribute_rows(attributes: Mapping[str, Mapping[str, Any]]) -> list[AttributeRow]:
    """Return the attributes with their bars, the least separable first and the failed ones last."""
    spaces = {"W": "entropy_w", "Z": "entropy_z"}
    longest = max((row[key] for row in attributes.values() for key in spaces.values() if row.get(key)), default=1.0)
    rows = []
    for name, row in sorted(attributes.items()):
        bars = tuple(
            (space, row[key], 100 * row[key] / longest) for space, key in spaces.items() if row.get(key) is not None
        )
        share = f"{row['share']:.1%}" if row.get("share") is not None else DASH
        rows.append(AttributeRow(shown(name), share, bars, row.get("error") or ""))
    return sorted(rows, key=lambda row: max((entropy for _, entropy, _ in row.bars), default=-1.0), reverse=True)


# --- the data set -----------------------------------------------------------------------------------------------------


def _data_set(card: DatasetCard) -> dict[str, Any]:
    """Return the section "Data set" of the page.

    Its parts are `facts` by name; `mean`, the mean image as URI and alternative text; `heading` and `column` of the
    table of counts; `counts`, its rows (name, number, share, percent of the longest bar); `left_out`, the number of
    rows that are missing in its middle; `rejected`, the kinds of rejected images (kind, number, paths).
    """
    counts = _count_rows(card)
    rejected = [(kind, f"{count:,}", ", ".join(card.examples.get(kind, ()))) for kind, count in card.rejected.items()]
    return {
        "facts": _data_facts(card),
        "mean": {
            "uri": f"data:image/png;base64,{card.mean_png}",
            "alt": f"Mean of {card.mean_of:,} images",
        },
        "heading": {"classes": "Images by class", "attributes": "Images by attribute", None: ""}[card.counted],
        "column": {"classes": "Class", "attributes": "Attribute", None: ""}[card.counted],
        "counts": counts,
        "left_out": len(card.counts) - len(counts),
        "rejected": rejected,
    }


def _data_facts(card: DatasetCard) -> dict[str, str]:
    colours = "grey" if card.channels == 1 else "RGB"
    originals = f"width {_spread(card.widths)}, height {_spread(card.heights)} pixels"
    if card.num_upscaled:
        originals += f"; {card.num_upscaled:,} ({card.num_upscaled / card.num_images:.1%}) were enlarged"
    rejected = sum(card.rejected.values())
    return {
        "Source": card.source,
        "Fingerprint": card.fingerprint,
        "Images": f"{card.num_images:,} at {card.resolution}x{card.resolution}, {colours}",
        "Labels": f"{len(card.counts):,} {card.counted}" if card.counted else "none",
        "Originals": originals,
        "Crop": f"{CROPS.get(card.crop, card.crop)}, resized with the {card.resize_filter} filter",
        "Rejected": f"{rejected:,}, of which {card.num_duplicates:,} have the same bytes as another image",
        "Stored": f"{card.num_bytes / 1e6:,.1f} MB in all resolutions",
    }


def _spread(spread: Spread) -> str:
    if spread.min == spread.max:
        return f"{spread.min:,}"
    return f"{spread.min:,} to {spread.max:,} (median {spread.median:,g})"


def _count_rows(card: DatasetCard) -> list[tuple[str, str, str, float]]:
    """Return classes or attributes, the most frequent first.

    Of more than MOST_COUNTS the middle ones are omitted. The rarest stay, because a network learns those badly.
    """
    ordered = sorted(card.counts.items(), key=lambda item: -item[1])
    if len(ordered) > MOST_COUNTS:
        ordered = ordered[: MOST_COUNTS // 2] + ordered[-MOST_COUNTS // 2 :]
    longest = max((count for _, count in ordered), default=0) or 1
    return [
        (shown(name), f"{count:,}", f"{count / card.num_images:.1%}", 100 * count / longest) for name, count in ordered
    ]


# --- published figures ------------------------------------------------------------------------------------------------


def _published(comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """Return the section "Published figures"; None without comparisons.

    Its parts are `comparable`, the rows that compare, by published model; `others`, the rows that do not; `why`, the
    line about the others; `shared`, the reasons that all measured ones of them share; `sources`.
    """
    if not comparisons:
        return None

    # A reason that keeps every measured value from comparing is stated once, above the table, and left out of the rows.
    others = [comparison for comparison in comparisons if not comparison.comparable]
    measured = [comparison.why_not for comparison in others if comparison.value is not None]
    shared = [why for why in measured[0] if all(why in reasons for reasons in measured)] if measured else []
    return {
        "comparable": _by_model([comparison for comparison in comparisons if comparison.comparable]),
        "others": _by_model(others, shared),
        "why": describe_incomparable(comparisons),
        "shared": "; ".join(shared),
        "sources": _sources(comparisons),
    }


def _by_model(comparisons: Sequence[Comparison], shared: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.published.title, []).append(_published_row(comparison, shared))
    return groups


def _published_row(comparison: Comparison, shared: Sequence[str]) -> dict[str, Any]:
    figure = comparison.published
    return {
        "name": figure.name,
        "where": _tables(figure.where),
        "data": f"{figure.dataset_title} {figure.resolution}x{figure.resolution}",
        "theirs": _as_printed(figure.value),
        "measured": comparison.value is not None,
        "ours": number(comparison.value),
        "interval": interval_words(comparison.interval),
        "comparable": comparison.comparable,
        "why_not": "; ".join(why for why in comparison.why_not if why not in shared),
    }


def _as_printed(value: float) -> str:
    """Return a published value with all its digits, and at least as many decimals as the paper prints."""
    least = 2 if value < 100 else 1
    return f"{value:.{max(least, len(repr(value).partition('.')[2]))}f}"


def _sources(comparisons: Sequence[Comparison]) -> list[tuple[str, str, str, str]]:
    """Return every source once: its tables, title, address and remarks."""
    sources: dict[tuple[str, str, tuple[str, ...]], set[str]] = {}
    for figure in (comparison.published for comparison in comparisons):
        sources.setdefault((figure.source, figure.url, figure.remarks), set()).update(figure.where)
    return [
        (_tables(sorted(where)), source, url, "; ".join(remarks)) for (source, url, remarks), where in sources.items()
    ]


def _tables(names: Sequence[str]) -> str:
    """Join names of tables: Table 1, Table 4 -> Tables 1, 4."""
    numbers = [name.removeprefix("Table ") for name in names]
    return f"Tables {', '.join(numbers)}" if len(names) > 1 and all(map(str.isdigit, numbers)) else ", ".join(names)
