"""Print an evaluation on the terminal: metrics with their meanings and warnings, curves, and published figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stylegan.evaluation.metric_table import split_key
from stylegan.evaluation.page.metric_rows import (
    MetricRow,
    curve_cells,
    metric_rows,
    number,
    skipped_rows,
)

if TYPE_CHECKING:
    from stylegan.evaluation.page.published import Comparison
    from stylegan.evaluation.report import Report
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
    """Print every value with its interval and key, warnings, what was skipped and why, and what each value means."""
    console, rows = Console(), metric_rows(report)
    console.print(escape(title), highlight=False, soft_wrap=True)
    if rows:
        console.print(_metric_table(rows))
    for row in rows:
        if row.warning:
            console.print(f"[yellow]warning  {escape(row.warning)}[/]", highlight=False, soft_wrap=True)
    for skipped in skipped_rows(report):
        line = escape(f"{skipped.key}: {skipped.reason}")
        console.print(f"[yellow]skipped[/]  {line}", highlight=False, soft_wrap=True)
    if rows:
        console.print(_legend(rows, report.protocols))


def _metric_table(rows: Iterable[MetricRow]) -> Table:
    table = _table("metric", "value", "95 % interval", "key")
    for row in rows:
        value = f"[yellow]{row.value}[/]" if row.warning else row.value
        table.add_row(escape(f"{row.title} {row.arrow}"), value, row.interval, escape(row.key))
    return table


def _legend(rows: Iterable[MetricRow], protocols: Mapping[str, str]) -> Table:
    """Return what the table leaves open: the meaning of each value, the arrows, the protocols by which values compare."""
    legend = Table.grid(padding=(0, 2, 0, 0))
    legend.add_column(style="dim", no_wrap=True)
    legend.add_column(style="dim")
    same: dict[str, list[str]] = {}
    for row in rows:
        if row.meaning:
            legend.add_row(escape(row.title), escape(row.short_meaning))
        if row.key in protocols:
            same.setdefault(protocols[row.key], []).append(split_key(row.key)[0])
    legend.add_row("↓, ↑", "lower is better, higher is better")
    if same:
        legend.add_row("protocols", escape(", ".join(f"{' '.join(names)} {which}" for which, names in same.items())))
    return legend


def _print_curve(name: str, rows: Sequence[dict[str, float]]) -> None:
    columns, cells = curve_cells(rows)
    print(name)
    table = _table(*columns)
    for row in cells:
        table.add_row(*row)
    Console().print(table)


def _print_published(published: Sequence[Comparison]) -> None:
    """Print the published figures that compare with ours as a table, and one line about the others."""
    from stylegan.evaluation.page.published import describe_incomparable

    console = Console()
    comparable = [comparison for comparison in published if comparison.comparable]
    if comparable:
        print(f"published for {comparable[0].published.title}")
        table = _table("metric", "of", "published", "ours")
        for row in comparable:
            figure = row.published
            where = f"{figure.dataset_title} {figure.resolution}"
            table.add_row(figure.name, where, f"{figure.value:g}", number(row.value))
        console.print(table)
    if others := describe_incomparable(published):
        console.print(f"{escape(others)}; see the page", style="dim", highlight=False, soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("metric", "of", "key") else "right", overflow="fold")
    return table
