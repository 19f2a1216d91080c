"""The terminal: log lines and progress bars on standard error, results on standard output."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn
from rich.table import Column, Table

from flows.cli.supervisor import terminal
from stylegan.commands import shell_command
from stylegan.errors import printable
from stylegan.progress import duration
from stylegan.uris import redact

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flows.cli.doctor import Examination
    from flows.retrain import Retrained
    from stylegan.config.tree import Config
    from stylegan.pipeline.plan import Plan, PlannedStep
    from stylegan.pipeline.retraining import Decision
    from stylegan.pipeline.steps import Done, Summary

WHOLE = "whole run"  # the bar of the whole run
LEAST_REASON = 30  # columns beside a plan's numbers; on a narrower terminal the reasons are below them
SUMMARY = ": training"  # the end of the first line of a summary
LEAST_BAR = 12  # columns for a bar, and for what is between it and the words


class _Bars(Progress):
    """Bars of which that of the whole run is always the last one."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return the table that is drawn."""
        return super().make_tasks_table(sorted(tasks, key=lambda task: task.description == WHOLE))


class Handler(logging.Handler):
    """Prints the library's log; on a terminal it draws progress as bars instead of lines.

    There is a bar for each piece of work under way, and one for the whole run below them. What is done becomes a line.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self.bars: Progress | None = None  # only while there is work: results are printed to a terminal without bars
        self.tasks: dict[str, TaskID] = {}
        self.texts: dict[str, str] = {}  # beside the bars, in full

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if self.console.is_terminal and (hasattr(record, "progress") or hasattr(record, "whole")):
            self._draw(getattr(record, "progress", None), getattr(record, "whole", None))
        else:
            style = "yellow" if record.levelno >= logging.WARNING else ""
            self._print(printable(record.getMessage()), style)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _draw(self, progress: tuple[str, float, float, str] | None, whole: tuple[float, str] | None) -> None:
        """Draw the bars of a record: of a piece of work (its name, done, total, text), and of the whole run."""
        if progress:
            name, done, total, text = progress
            if done < total:
                self._move(name, done, total, text)
            elif name in self.tasks or whole:  # work that was over at once has shown nothing
                self._remove(name)
                self._print(f"{name}: {text}")
        if whole:
            share, text = whole
            self._move(WHOLE, share, 1.0, text)
        elif not progress:
            self._remove(WHOLE)
        if not self.tasks:
            self._stop()

    def _move(self, name: str, done: float, total: float, text: str) -> None:
        if self.bars is None:
            columns = (
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            )
            self.bars = _Bars(
                *columns,
                console=self.console,
                redirect_stdout=False,
                redirect_stderr=False,
                transient=True,
                expand=True,
            )
            self.bars.start()
        self.texts[name] = text
        # What does not fit beside a bar is left out, from the end on.
        room = self.console.width - max(map(len, self.texts)) - LEAST_BAR
        while len(text) > room and ", " in text:
            text = text.rpartition(", ")[0]
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total, text=text)
        self.bars.update(self.tasks[name], completed=done, total=total, text=text)

    def _remove(self, name: str) -> None:
        if self.bars and name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))
            del self.texts[name]

    def _stop(self) -> None:
        if self.bars:
            self.bars.stop()
        self.bars, self.tasks, self.texts = None, {}, {}

    def close(self) -> None:
        """Stop drawing; work that is not done becomes a line, too."""
        texts = self.texts
        self._stop()
        for name, text in texts.items():
            if name != WHOLE:
                self._print(f"{name}: {text}")
        super().close()


@contextlib.contextmanager
def logging_to_terminal() -> Iterator[None]:
    """Send the library's log to the terminal inside the block."""
    console = Console(file=terminal())
    handler = Handler(console)
    names = ["stylegan", "stylegan-progress"] if console.is_terminal else ["stylegan"]
    for name in names:
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)
        handler.close()


def print_error(message: str) -> None:
    """Print one line on standard error."""
    print(f"stylegan: {printable(message)}", file=terminal())


def print_plan(plan: Plan, config: Config) -> None:
    """Print the steps of a config's plan as a table on standard output."""
    unknown = "the run id is known once the data is sharded"
    if plan.assumed_images is not None:
        unknown = f"{plan.assumed_images:,} images assumed; what is done already, and the run id, are not known"
    columns = [
        ("state", [step.state if step.state == "run" else f"[green]{step.state}[/]" for step in plan.steps]),
        ("workers", [_workers(step) for step in plan.steps]),
        ("images", [f"{step.images:,}" if step.images else "" for step in plan.steps]),
        ("time", [duration(step.seconds) if step.seconds else "" for step in plan.steps]),
        ("GPU h", [f"{step.gpu_hours:,.1f}" if step.gpu_hours else "" for step in plan.steps]),
        ("cost", [_short(step.cost, 1000) if step.cost is not None else "" for step in plan.steps]),
        ("GiB", [_short(step.memory_gib, 100) if step.memory_gib else "" for step in plan.steps]),
    ]
    title = f"{plan.name}: {plan.run_id or unknown}"
    if plan.decision:
        print(describe_decision(plan.decision))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("step", no_wrap=True)
    columns = [(heading, cells) for heading, cells in columns if any(cells)]
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    rows = [[step.name, *cells] for step, *cells in zip(plan.steps, *(cells for _, cells in columns), strict=True)]
    console = Console()
    reasons = [escape(printable(step.reason)) for step in plan.steps]
    wide = console.width - sum(max(map(len, cells)) + 2 for cells in zip(*rows, strict=True)) >= LEAST_REASON
    if wide:
        table.add_column("why")
    for row, reason in zip(rows, reasons, strict=True):
        table.add_row(*row, *([reason] if wide else []))
    console.print(table)
    if not wide:
        _print_reasons(plan)
    seconds = [step.seconds for step in plan.steps if step.seconds]
    if seconds:
        evaluated = any(step.seconds for step in plan.steps if step.name == "evaluate")
        hours = f", {plan.gpu_hours:,.1f} GPU-hours" if plan.gpu_hours is not None else ""
        if plan.cost is not None:
            hours += f", {plan.cost:,.2f} at {plan.price_per_gpu_hour:g} per GPU-hour"
        what = "training and evaluation" if evaluated else "training"
        print(f"{what}: about {duration(sum(seconds))} in all{hours}; memory is for one worker")
    elif plan.price_per_gpu_hour is not None:
        print("the price is not known: no step that is left has a known time on GPUs")
    if any(step.workers and step.workers[0] != step.workers[1] for step in plan.steps):
        print("times are for the most workers of a range")
    if plan.speeds:
        print(f"times are from {', and '.join(plan.speeds)}")
    for note in plan.notes:
        print(printable(note))
    if plan.missing:
        print(
            f"weights: {', '.join(plan.missing)} not on this machine; a run downloads them first, see `{config.command('doctor')}`"
        )


def describe_decision(decision: Decision) -> str:
    """Return what a schedule does and why, and from which weights it starts."""
    start = ""
    if decision.start is not None:
        weights = "the champion" if decision.start.kind == "champion" else "new weights"
        start = f"; from {weights} ({decision.start.why})"
    return printable(f"{'train' if decision.train else 'skip'}: {decision.reason}{start}")


def print_retrained(config: Config, done: Retrained, day: str | None) -> None:
    """Print what a retraining has found, decided and done."""
    print(f"{f'{day}: ' if day else ''}{describe_decision(done.decision)}")
    if done.drift is not None:
        print(f"drift: {done.drift.text}")  # type: ignore[attr-defined]
    if done.run is not None:
        print_summary(config, done.run)  # type: ignore[arg-type]
    if done.freed_bytes is not None:
        print(f"clean-up: freed {done.freed_bytes / 2**20:,.1f} MiB")


def print_note(text: str) -> None:
    """Print a line beside the results, on standard error."""
    print(printable(text), file=terminal())


def _short(number: float, whole: float) -> str:
    """Return a number with two digits after the point, above `whole` with none."""
    return f"{number:,.0f}" if number >= whole else f"{number:,.2f}"


def _workers(step: PlannedStep) -> str:
    """Return the number of workers of a step, or their range, and the model of their GPUs."""
    fewest, most = step.workers or (0, 0)
    count = f"{most}" if fewest == most else f"{fewest}-{most}"
    return escape(f"{count} {step.accelerator_type or ''}".strip()) if most else ""


def _print_reasons(plan: Plan) -> None:
    """Print why each step is cached or not; a line for steps after each other that have the same reason."""
    for (_, reason), same in groupby(plan.steps, key=lambda step: (step.name.split()[0], step.reason)):
        first, *others = [step.name for step in same]
        name = f"{first} to {others[-1].split()[-1]}" if others else first
        print(f"{name}: {printable(reason)}")


def print_json(record: BaseModel) -> None:
    """Print a record as one JSON line on standard output."""
    print(json.dumps(record.model_dump(mode="json")), flush=True)


def print_result(record: BaseModel, text: str, as_json: bool, *, out: str | None = None) -> None:
    """Print what a command has made: the record as JSON, or one line of text for people.

    Args:
        out: the command's `--out`. If that is standard output, the line goes to standard error.
    """
    from stylegan.outputs import is_standard_output

    with contextlib.redirect_stdout(terminal() if out and is_standard_output(out) else sys.stdout):
        if as_json:
            print_json(record)
        else:
            print(text)


def print_done(done: Done[Any], as_json: bool) -> None:
    """Print the record of a step, as JSON or for people."""
    if as_json:
        print_json(done.record)
    else:
        print_record(done.record, done.cached)


def print_record(record: BaseModel, cached: bool) -> None:
    """Print a step's record as `key  value` lines on standard output."""
    print("taken from storage:" if cached else "done:")
    for key, value in record.model_dump(mode="json").items():
        if isinstance(value, dict):
            print(f"  {key}:")
            for name, item in value.items():
                print(f"    {name:<28} {item:.5g}" if isinstance(item, float) else f"    {name:<28} {item}")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"  {key:<18} {printable(str(shown))}")


def print_examination(examination: Examination) -> None:
    """Print the facts of the machine and of nodes, and what works and what does not, a line each; a terminal wraps lines."""
    from stylegan.cluster.node_check import describe_node

    lines = [f"{fact.name:<23} {fact.detail}" for fact in examination.machine]
    lines += [f"{f'node {node.name}':<23} {describe_node(node)}" for node in examination.nodes]
    facts = len(lines)
    states = (("warn" if one.warning else "ok" if one.ok else "FAIL", one) for one in examination.findings)
    lines += ["", *(f"{state:<4}  {one.name:<8} {one.detail}" for state, one in states)]
    width, indent = shutil.get_terminal_size().columns, {True: " " * 24, False: " " * 15}
    for position, line in enumerate(lines):
        if sys.stdout.isatty():
            line = textwrap.fill(
                line,
                width,
                subsequent_indent=indent[position < facts],
                break_long_words=False,
                break_on_hyphens=False,
            )
        print(line)


def print_summary(config: Config, summary: Summary) -> None:
    """Print the end of a run: stages, metrics, grid, version, verdict, and the commands that show more."""
    from flows.cli import reports
    from stylegan.registry.gate import describe_verdict
    from stylegan.training.schedule import PENALTIES

    console = Console()
    console.print(f"{escape(summary.run_id)}{SUMMARY}", highlight=False, soft_wrap=True)
    table = Table()
    penalty = next((key for key in PENALTIES if any(key in point for point in summary.stages)), PENALTIES[0])
    for heading in (
        "stage",
        "kimg",
        "D loss",
        "G loss",
        penalty.removeprefix("loss/").upper(),
        "D(real)",
        "D(fake)",
        "img/s",
    ):
        table.add_column(heading, justify="right")
    for point in summary.stages:
        side = f"{point.get('progress/resolution', math.nan):.0f}"
        keys = ("loss/d", "loss/g", penalty, "scores/real", "scores/fake")
        numbers = [f"{point[key]:.3f}" if key in point else "-" for key in keys]
        kimg, speed = point.get("progress/kimg", math.nan), point.get("time/img_per_sec", math.nan)
        table.add_row(f"{side}x{side}", f"{kimg:g}", *numbers, f"{speed:.0f}")
    console.print(_transfer_table(summary) if config.transfer else table)
    reports.print_metrics(summary.report, f"evaluation, protocol {summary.report.protocol}")
    version, verdict = summary.version, summary.verdict
    print(f"samples     {summary.grid}")
    print(f"report      {summary.page}")
    print(f"model       {version.name} version {version.version}, alias {', '.join(version.aliases) or 'none'}")
    print(f"gate        {describe_verdict(verdict, version.aliases)}")
    print("\nLook at it:")
    for line in ui_commands(config, summary):
        print(f"  {line}")


def _transfer_table(summary: Summary) -> Table:
    """Return the table of the training of a style transfer."""
    table = Table()
    for heading in ("stage", "kimg", "content loss", "style loss", "img/s"):
        table.add_column(heading, justify="right")
    for point in summary.stages:
        side = f"{point.get('progress/resolution', math.nan):.0f}"
        losses = [f"{point[key]:.4f}" if key in point else "-" for key in ("loss/content", "loss/style")]
        kimg, speed = point.get("progress/kimg", math.nan), point.get("time/img_per_sec", math.nan)
        table.add_row(f"{side}x{side}", f"{kimg:g}", *losses, f"{speed:.0f}")
    return table


def ui_commands(config: Config, summary: Summary) -> list[str]:
    """Return the commands that open MLflow and Prefect on this run's results, and one that draws from the new model."""
    from stylegan.tracking.connection import from_here, resolve_uri
    from stylegan.tracking.links import LOCAL, comparison_url, server_command

    uri, mlflow, page = from_here(resolve_uri(config)), server_command(config), comparison_url(config)
    api = os.environ.get("PREFECT_API_URL")
    # Without this variable the server prints an error wherever its telemetry cannot be sent.
    prefect = shell_command("prefect", "server", "start", PREFECT_SERVER_ANALYTICS_ENABLED="false")
    model = f"models:/{summary.version.name}/{summary.version.version}"
    draw = ["sample", model, "--seeds", "0-15", "--out", "grid.png"]
    if config.transfer:
        draw = ["transfer", "CONTENT", "STYLE", "--model", model, "--out", "transfer.png"]
    sample = shell_command("stylegan", *draw, MLFLOW_TRACKING_URI=uri)
    return [
        f"{mlflow}    # then open {page or LOCAL}" if mlflow else page or redact(uri),
        redact(api).removesuffix("/api") if api else f"{prefect}    # then open http://127.0.0.1:4200",
        sample,
    ]
