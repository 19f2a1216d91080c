"""Turn the values of a report into rows for people.

The terminal, the page, the model card and Prefect show the same rows in the same order, with the same warnings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stylegan.evaluation.metric_table import describe, rank, split_key

if TYPE_CHECKING:
    from stylegan.evaluation.report import Report

DASH, MINUS = "\u2013", "\u2212"
ARROWS = {"lower": "↓", "higher": "↑", None: ""}
AXES = ("psi", "latents")  # the columns of a curve that its other columns are functions of
COLUMNS = {
    "psi": "ψ",
    "fid": "FID",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "latents": "Latents mixed",
}


@dataclass(frozen=True)
class Row:
    """The names of a value: its key in the report, its title, and the network that saw the images (may be empty)."""

    key: str
    title: str
    network: str

    @property
    def name(self) -> str:
        """The title with the network."""
        return f"{self.title}, {self.network}" if self.network else self.title


@dataclass(frozen=True)
class MetricRow(Row):
    """One value for people.

    Attributes:
        arrow: the direction of improvement; empty if there is none.
        value, interval: as text; the interval is empty if there is none.
        meaning: what the value measures, in a sentence; may be empty for a key of another program.
        warning: why the value means trouble, as a sentence; empty if it does not.
        protocol: what decides whether the value compares with another one.
        of_model: False if the value describes the measurement, such as the accuracy of the measuring network.
    """

    arrow: str
    value: str
    interval: str
    meaning: str
    warning: str
    protocol: str
    of_model: bool

    @property
    def short_meaning(self) -> str:
        """The meaning in one line of a terminal."""
        return self.meaning.partition(";")[0].rstrip(".")


@dataclass(frozen=True)
class SkippedRow(Row):
    """One value that was wanted and could not be measured."""

    reason: str


def metric_rows(report: Report) -> list[MetricRow]:
    """Return a row for each value of a report, in the order of the table of metrics."""
    return [_metric_row(report, key) for key in _ordered(report.metrics)]


def skipped_rows(report: Report) -> list[SkippedRow]:
    """Return a row for each value that could not be measured, in the order of the table of metrics."""
    return [
        SkippedRow(key, describe(key).title, split_key(key)[1], report.skipped[key]) for key in _ordered(report.skipped)
    ]


def warnings(report: Report) -> list[str]:
    """Return a sentence for each value of a report that means trouble, in the order of the table of metrics."""
    return [row.warning for row in metric_rows(report) if row.warning]


def curve_cells(rows: Sequence[Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Return the titles of the columns of a curve, the axis first, and the cells of its rows; both empty without rows."""
    keys = sorted({key for row in rows for key in row}, key=lambda key: (key not in AXES, key))
    cells = [[f"{row[key]:g}" if key in AXES else number(row.get(key)) for key in keys] for row in rows]
    return [COLUMNS.get(key, key) for key in keys], cells


def number(value: float | None) -> str:
    """Return a number for people: three or four significant digits, thousands separated, infinity as ∞."""
    if value is None:
        return DASH
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    size = abs(value)
    if size >= 999.95:  # 999.9 is the largest with one decimal
        text = f"{value:,.0f}"
    elif size >= 1:
        text = f"{value:#.4g}".rstrip(".")
    elif size >= 0.01:
        text = f"{value:.3f}"
    elif size > 0:
        text = f"{value:#.3g}".rstrip(".")
    else:
        text = f"{value:.0f}"
    return text.replace("-", MINUS)


def interval_words(interval: tuple[float, float] | None) -> str:
    """Return an interval for people; empty if there is none."""
    return f"{number(interval[0])} to {number(interval[1])}" if interval else ""


def _ordered(keys: Mapping[str, object]) -> list[str]:
    return sorted(keys, key=lambda key: (rank(key), key))


def _metric_row(report: Report, key: str) -> MetricRow:
    facts = describe(key)
    return MetricRow(
        key=key,
        title=facts.title,
        network=split_key(key)[1],
        arrow=ARROWS[facts.better],
        value=number(report.metrics[key]),
        interval=interval_words(report.intervals.get(key)),
        meaning=facts.meaning,
        warning=_warning(report, key),
        protocol=report.protocols.get(key, report.protocol),
        # A value without direction and interval, such as an accuracy, describes the measurement.
        of_model=facts.better is not None or key in report.intervals,
    )


def _warning(report: Report, key: str) -> str:
    """Return the warning about a value; empty if none is due."""
    facts, value = describe(key), report.metrics[key]
    if not math.isfinite(value):
        return f"{facts.title} is {number(value)}: the model or its measurement has failed; the gate promotes no such model."
    words = next((trouble.words for trouble in facts.troubles if trouble.due(key, report)), "")
    return f"{facts.title} is {number(value)}: {words}." if words else ""
