"""Print an evaluation on the terminal: metrics with intervals and protocols, curves, and published figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stylegan.evaluation.page.html import AXES, number
from stylegan.evaluation.page.published import Comparison
from stylegan.evaluation.report import Report

if TYPE_CHECKING:
    from stylegan.verbs.evaluate import Evaluation


def print_evaluation(evaluation: Evaluation) -> None:
    """Print a whole evaluation and the URI of its page."""
    cached = ", taken from storage" if evaluation.cached else ""
    title = f"{evaluation.model} against {evaluation.data}{cached}"
    print_report(evaluation.report, title=title, published=evaluation.published, page=evaluation.page)


def print_report(report: Report, *, title: str, published: Sequence[Comparison], page: str) -> None:
    """Print the tables of a report to standard output, and the URI of its page in the last line."""
    print_metrics(report, title)
    for name, rows in report.curves.items():
        _print_curve(name, rows)
    _print_published(published)
    print(f"report      {page}")


def print_metrics(report: Report, title: str) -> None:
    """Print every metric with its interval and protocol, and every skipped metric with the reason."""
    console = Console()
    console.print(escape(title), highlight=False, soft_wrap=True)
    table = _table("metric", "value", "95 % interval", "protocol")
    for key in sorted(report.metrics):
        interval = report.intervals.get(key)
        shown = f"{number(interval[0])} to {number(interval[1])}" if interval else ""
        table.add_row(escape(key), number(report.metrics[key]), shown, report.protocols.get(key, ""))
    if report.metrics:
        console.print(table)
    for key, reason in sorted(report.skipped.items()):
        console.print(f"[yellow]skipped[/]  {escape(key)}: {escape(reason)}", highlight=False, soft_wrap=True)


def _print_curve(name: str, rows: Sequence[dict[str, float]]) -> None:
    columns = sorted({key for row in rows for key in row}, key=lambda key: (key not in AXES, key))
    print(name)
    table = _table(*columns)
    for row in rows:
        table.add_row(*(f"{row[key]:g}" if key in AXES else number(row.get(key)) for key in columns))
    Console().print(table)


def _print_published(published: Sequence[Comparison]) -> None:
    """Print the published figures that the report has a value for; numbered reasons say why two do not compare."""
    rows = [comparison for comparison in published if comparison.value is not None]
    if not rows:
        return

    # Table, with the numbers of the reasons in its last column.
    reasons = list(dict.fromkeys(why for row in rows for why in row.why_not))
    print(f"published for {rows[0].published.title}")
    table = _table("metric", "of", "published", "ours", "comparable")
    for row in rows:
        figure = row.published
        numbers = ", ".join(str(position) for position in sorted(reasons.index(why) + 1 for why in row.why_not))
        verdict = "[green]yes[/]" if row.comparable else f"no: {numbers}"
        table.add_row(
            figure.name, f"{figure.dataset_title} {figure.resolution}", f"{figure.value:g}", number(row.value), verdict
        )
    console = Console()
    console.print(table)

    # The reasons.
    for position, reason in enumerate(reasons, start=1):
        console.print(f"  {position:>2} {escape(reason)}", highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in ("metric", "of", "protocol", "comparable") else "right",
            no_wrap=column != "comparable",
        )
    return table
