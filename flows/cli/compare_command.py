"""`stylegan compare`: runs side by side, on the terminal and as a page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.cli.arguments import AnyFile, AsJson, OutputFile, Overrides, RegistryConfig, registry_config
from flows.cli.console import print_json
from stylegan.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from stylegan.verbs.compare import Comparison

FEW = 4  # runs that have a column each; of more, each has a row
MOST_METRICS = 4  # beside a run in its row; the page has all
WIDE = 200  # columns of a table that goes to a file or a pipe


def compare(
    *runs: Annotated[AnyFile, Parameter(name="RUN")],
    out: OutputFile | None = None,
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare 2 to 20 runs with the first of them: settings, images, curves, metrics, samples, speed and cost.

    Whether a difference is more than chance is decided as the gate decides it; what does not compare says why.

    Parameters
    ----------
    runs
        Run ids, folders of runs, name@alias, YAML files of runs, or MLflow runs (ids, also runs:/ID) of any experiment.
    out
        Page to write, .html: one file with curves and a slider through the samples; or a folder for the page and
        forgetting.png, the curves of the probe on D. A path or any fsspec URL.

    Examples
    --------
    stylegan compare digits-1a2b3c4d5e digits-5e4d3c2b1a --config digits.yaml --out comparison.html
    stylegan compare faces@champion faces@challenger --config faces.yaml
    """
    settings = registry_config(config, overrides)
    from stylegan import outputs
    from stylegan.retry import storage_settings
    from stylegan.verbs import compare as comparing
    from stylegan.verbs.comparison_page import PAGE, write_comparison
    from stylegan.verbs.forgetting import PICTURE, is_probed

    uri, picture = outputs.page_outputs(out, [".html"], PAGE, PICTURE) if out is not None else (None, None)
    parent = None
    with storage_settings(settings.storage if settings else None):
        found = comparing.read_runs(settings, runs)
        comparison = comparing.compare(found)
        if uri is not None:
            parent = write_comparison(found, comparison, uri, picture)
    if uri == outputs.STDOUT:
        return
    if as_json:
        print_json(comparison)
        return
    _print(comparison)
    print(f"page        {uri or '--out comparison.html writes one, with curves and samples'}")
    if picture and is_probed(found):
        print(f"picture     {picture}")
    if parent:
        print(f"MLflow      {PAGE}, an artifact of the run above these: {parent}")


def _print(comparison: Comparison) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    tables = [("", _columns(comparison) if len(comparison.runs) <= FEW else _rows(comparison))]
    differing = [
        (title, rows) for title, rows in (("settings", comparison.settings), ("images", comparison.data)) if rows
    ]
    tables += [(title, _differing(comparison, title, rows)) for title, rows in differing]
    for title, table in tables:
        if title:
            print()
        console.print(table)
    if not comparison.settings:
        print("\nno setting of training, model, data or evaluation differs")
    print(f"\n{printable(comparison.summary)}")


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, overflow="fold")
    for other in others:
        table.add_column(
            other, justify="left" if first in ("settings", "images") and not others[1:] else "right", overflow="fold"
        )
    return table


def _add(table: Table, *cells: str) -> None:
    from rich.markup import escape

    table.add_row(*(escape(printable(cell)) for cell in cells))


def _columns(comparison: Comparison) -> Table:
    """Return a table with a column for each run."""
    from stylegan.evaluation.page.metric_rows import ARROWS, DASH, interval_words, number
    from stylegan.progress import duration
    from stylegan.verbs.comparison_page import judged

    runs = comparison.runs
    table = _table("", *(run.label for run in runs))
    _add(table, "kimg", *(number(run.kimg) for run in runs))
    _add(table, "img/s of training", *(number(run.images_per_second) for run in runs))
    if any(run.path for run in runs):
        _add(table, "steps", *(run.path or DASH for run in runs))
    _add(table, "training", *(DASH if run.seconds is None else duration(run.seconds) for run in runs))
    if any(run.gpu_hours is not None for run in runs):
        _add(table, "GPU-hours", *(number(run.gpu_hours) for run in runs))
    for row in comparison.metrics:
        cells = []
        for place, value in enumerate(row.values):
            if value is None:
                cells.append(DASH)
                continue
            interval = f" ({interval_words(value.interval)})" if value.interval else ""
            word = f"\n{judged(value)[0]}" if place and row.direction else ""
            cells.append(f"{number(value.value)}{interval}{word}")
        table.add_row(f"{row.title} {ARROWS.get(row.direction, '')}".rstrip(), *cells)
    return table


def _rows(comparison: Comparison) -> Table:
    """Return a table with a row for each run, and a column for each of the first metrics."""
    from stylegan.evaluation.page.metric_rows import DASH, number
    from stylegan.progress import duration
    from stylegan.verbs.comparison_page import judged

    metrics = [row for row in comparison.metrics if row.direction][:MOST_METRICS]
    table = _table("run", "kimg", "img/s", "training", "GPU-hours", *(row.metric for row in metrics))
    for place, run in enumerate(comparison.runs):
        cells = []
        for row in metrics:
            value = row.values[place]
            word = judged(value)[0].partition(":")[0] if value and place else ""
            cells.append(DASH if value is None else f"{number(value.value)} {word}".rstrip())
        _add(
            table,
            f"{place + 1}  {run.label}",
            number(run.kimg),
            number(run.images_per_second),
            DASH if run.seconds is None else duration(run.seconds),
            number(run.gpu_hours),
            *cells,
        )
    return table


def _differing(comparison: Comparison, title: str, rows: dict[str, tuple[str | None, ...]]) -> Table:
    """Return a table of what differs: a column for each run, or, of many runs, which of them have each value."""
    from stylegan.evaluation.page.metric_rows import DASH

    runs = [run.label for run in comparison.runs]
    few = len(runs) <= FEW
    table = _table(title, *(runs if few else ["values, with the numbers of their runs above"]))
    for key, values in rows.items():
        shown = [DASH if value is None else value for value in values]
        if few:
            _add(table, key, *shown)
        else:
            places = {value: [str(place) for place, one in enumerate(shown, 1) if one == value] for value in shown}
            _add(table, key, "; ".join(f"{value} ({', '.join(found)})" for value, found in places.items()))
    return table
