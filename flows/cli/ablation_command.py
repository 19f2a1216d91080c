"""The command of the papers' tables: their rows on one's own data, the paper beside ours, and a page of it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TextTable

from flows.cli import console, supervisor, sweep_command
from flows.cli.arguments import AsJson, ConfigFile, OutputFile, Overrides, Whole, load
from flows.cli.console import print_json
from stylegan.errors import ConfigError, StepError, printable

if TYPE_CHECKING:
    from stylegan.verbs.ablation import Ablation, Column

ENDINGS = (".html", ".htm")
# The tables that there are; a literal, so that help and completion need no import.
TableArgument = Annotated[Literal["table1", "table2", "table4", "ssgan"], Parameter(help="Which table.")]


def ablation(
    table: TableArgument,
    config: ConfigFile,
    /,
    *,
    seeds: Whole = 3,
    rows: str | None = None,
    at_once: Whole | None = None,
    plan: bool = False,
    out: OutputFile | None = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the rows of a paper's table on the data of a config, and print the paper beside ours. The same command goes on.

    Says of each pair of rows whether it orders as in the paper. Each row is an ordinary run, and a model of its own.
    Exit code 1 if one failed; the table then shows the others.

    Parameters
    ----------
    seeds
        Train each row so many times: with the seed of the config, and those that follow it.
    rows
        Some rows only: a,b,f. Unset are all of the table.
    at_once
        Most runs at the same time; unset: as many as there is room for.
    plan
        Only say what would be done, what is shared, and how long it takes; touches nothing.
    out
        Page to write: .html, or a folder for the page and forgetting.png; a path or any fsspec URL; - is standard output.

    Examples
    --------
    stylegan ablation table1 configs/digits.yaml --out table1.html
    stylegan ablation table4 configs/digits.yaml --rows style-0,style-8 --seeds 5
    stylegan ablation ssgan configs/digits.yaml --plan
    """
    if at_once is not None and at_once < 1:
        raise ConfigError(f"--at-once {at_once}: must be at least 1")
    settings = load(config, overrides)
    if settings.transfer:
        raise ConfigError(f"{config}: trains a style transfer, and the rows of {table} are StyleGANs; remove transfer")
    from stylegan.verbs.ablation_rows import find_table, make_rows

    facts = find_table(table, settings.model.architecture)
    chosen = [row.strip() for row in rows.split(",") if row.strip()] if rows is not None else None
    runs = make_rows(facts, config, overrides or [], rows=chosen, seeds=seeds)
    children = [one.child for one in runs]
    if plan:
        from stylegan.pipeline.sweep import plan_sweep

        planned = plan_sweep(children)
        if as_json:
            print_json(planned)
        else:
            sweep_command.print_plan(planned)
        return
    from stylegan.outputs import is_standard_output, page_outputs, write_output
    from stylegan.verbs.ablation_page import PAGE, draw_forgetting, log_ablation, read_strips, render
    from stylegan.verbs.forgetting import PICTURE

    uri, picture_uri = page_outputs(out, ENDINGS, PAGE, PICTURE) if out is not None else (None, None)
    supervisor.allow(settings.ray.stop_grace_s + sweep_command.STOP_SECONDS)
    swept = sweep_command.run_sweep(f"{settings.name}-{table}", children, at_once)
    for child in swept.failed:
        console.print_error(f"{child.label}: {child.why.rstrip('.')}; by itself: `{child.command}`")

    from stylegan.verbs.ablation import read_table

    result = read_table(facts, settings, runs)
    page, picture = render(facts, result, strips=read_strips(settings, runs)), draw_forgetting(result)
    log_ablation(settings, swept.parent, page, picture)
    if uri is not None:
        write_output(uri, page.encode(errors="backslashreplace"))
    if picture and picture_uri is not None:
        from stylegan.images import png_bytes

        write_output(picture_uri, png_bytes(picture))
    with redirect_stdout(supervisor.terminal() if out and is_standard_output(out) else sys.stdout):
        if as_json:
            print_json(result)
        else:
            _print(result)
            print(f"MLflow run  {swept.parent}, with all trainings below it and the page among its artifacts")
            print(f"page        {uri}" if uri else "--out table.html writes the page, with charts and images")
            if picture and picture_uri:
                print(f"picture     {picture_uri}")
    if swept.failed:
        raise StepError(
            f"ablation: {len(swept.failed)} of {len(runs)} trainings failed; the same command does these again, and no other"
        )


def _print(result: Ablation) -> None:
    """Print a table for each value, the orders of its pairs, and what compares."""
    print(printable(f"{result.name} on {result.config}: {result.subject}"))
    print(printable(result.statement))
    for column in result.columns():
        _print_values(result, column)
    for note in result.notes:
        print(printable(f"note: {note}"))
    if result.missing:
        print(printable(f"without a finished evaluation: {'; '.join(result.missing)}"))


def _print_values(result: Ablation, column: Column) -> None:
    from stylegan.evaluation.page.metric_rows import ARROWS, DASH, interval_words, number
    from stylegan.verbs.ablation import direction_of, tally_words, title_of

    cells = [row.cell(column) for row in result.rows]
    sets = list(dict.fromkeys(name for cell in cells for name in cell.paper))
    text = TextTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("row", "kimg", *(f"paper, {name}" for name in sets), "ours", "spread", "95 % interval"):
        text.add_column(heading, justify="left" if heading == "row" else "right")
    for row, cell in zip(result.rows, cells, strict=True):
        spread = f"± {number(cell.spread)} ({len(cell.values)})" if cell.spread is not None else DASH
        text.add_row(
            escape(row.label),
            f"{row.kimg:,g}",
            *(number(cell.paper.get(name)) for name in sets),
            number(cell.mean),
            spread,
            interval_words(cell.interval) or DASH,
        )
    print(f"\n{title_of(*column)} {ARROWS[direction_of(column[0])]}")
    Console().print(text)
    orders = [order for order in result.orders if order.column == column]
    pairs = {
        verdict: [f"{o.first} {o.second}" for o in orders if o.agrees is verdict] for verdict in (True, False, None)
    }
    names = {True: "as in the paper, the first better", False: "the other way round", None: "not decided"}
    print(f"pairs: {tally_words(orders)}")
    for verdict, listed in pairs.items():
        if listed:
            print(f"  {names[verdict]}: {', '.join(listed)}")
