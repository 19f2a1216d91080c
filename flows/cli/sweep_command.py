"""The command of many runs: a grid, several configs, seeds; what they will share, and a table of what they have become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli import console, supervisor
from flows.cli.arguments import AsJson, ConfigFile, File, Overrides, Whole
from flows.cli.console import print_json
from stylegan.errors import ConfigError, StepError, printable
from stylegan.progress import duration

if TYPE_CHECKING:
    from flows.children import SweptChild
    from flows.sweep import Swept
    from stylegan.pipeline.sweep import Child, SweepPlan

SHOWN_METRICS = 3  # columns of the table; all are in --json, in MLflow and in the reports
NOTE = (
    "the spread (std) is over trainings with different seeds; the interval of one run does not hold it: that is only of "
    "the images that were drawn for its evaluation"
)
STOP_SECONDS = 4.0  # in which a sweep ends after its runs


def _as_typed(_hint: Any, tokens: Sequence[Token]) -> list[str]:
    return [token.value for token in tokens]


Grid = Annotated[list[str] | None, Parameter(negative="")]
ConfigFiles = Annotated[list[File] | None, Parameter(converter=_as_typed, consume_multiple=True, negative="")]


def sweep(
    config: ConfigFile | None = None,
    /,
    *,
    grid: Grid = None,
    configs: ConfigFiles = None,
    seeds: Whole | None = None,
    at_once: Whole | None = None,
    plan: bool = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Do many runs of one subject, each an ordinary run; what they share is trained once. The same command goes on.

    Exit code 1 if a run failed; the others come to their end all the same.

    Parameters
    ----------
    grid
        Values of one key: key.path=a,b. Repeatable: all combinations are run.
    configs
        Further config files, each a run (or a grid) of its own.
    seeds
        Train each so many times: with the seed of its config, and those that follow it.
    at_once
        Most runs at the same time; unset: as many as there is room for.
    plan
        Only say what would be done, what is shared, and how long it takes; touches nothing.

    Examples
    --------
    stylegan sweep faces.yaml --grid training.r1_gamma=0.1,1,10 --seeds 3
    stylegan sweep --configs configs/ablations/*.yaml --set storage.root=ablations
    stylegan sweep faces.yaml --grid model.style_mixing_prob=0,0.9 --plan
    """
    if at_once is not None and at_once < 1:
        raise ConfigError(f"--at-once {at_once}: must be at least 1")
    from stylegan.pipeline.sweep import make_children, plan_sweep

    children = make_children(config, overrides or [], grid=grid or [], configs=configs or [], seeds=seeds)
    if plan:
        planned = plan_sweep(children)
        if as_json:
            print_json(planned)
        else:
            _print_plan(planned)
        return
    supervisor.allow(max(child.config.ray.stop_grace_s for child in children) + STOP_SECONDS)
    names = {child.config.name for child in children}
    swept = _run(f"{names.pop()}-sweep" if len(names) == 1 else "sweep", children, at_once)
    if as_json:
        print_json(swept)
    else:
        _print_swept(swept, children)
    for child in swept.failed:
        console.print_error(f"{child.label}: {child.why.rstrip('.')}; by itself: `{child.command}`")
    if swept.failed:
        raise StepError(
            f"sweep: {len(swept.failed)} of {len(children)} runs failed; the same command does these again, and no other"
        )


def _run(name: str, children: Sequence[Child], at_once: int | None) -> Swept:
    from flows.cli.run_commands import import_engines, quiet_prefect

    quiet_prefect()
    from flows.prefect_server import api

    with api(meanwhile=import_engines):
        from flows.sweep import sweep_flow

        return sweep_flow(name, children, at_once=at_once)


def _print_swept(swept: Swept, children: Sequence[Child]) -> None:
    """Print a row for each run, and mean and spread over seeds."""
    from stylegan.evaluation.metric_table import describe
    from stylegan.evaluation.page.metric_rows import ARROWS, interval_words, number

    keys = _shown_keys(swept.children, children)
    titles = [f"{key} {ARROWS[describe(key).better]}".rstrip() for key in keys]
    table = _table("run", *titles, "kimg", "training", "state")
    for child in swept.children:
        values = [
            f"{number(child.metrics[key])} {interval_words(child.intervals.get(key))}".rstrip()
            if key in child.metrics
            else ""
            for key in keys
        ]
        kimg = f"{child.kimg:,g}" if child.kimg is not None else ""
        trained = duration(child.train_seconds) if child.train_seconds else ""
        state = "done, taken from storage" if child.cached else child.state
        state = f"{state} ({', '.join(child.aliases)})" if child.aliases else state
        table.add_row(escape(printable(child.label)), *values, kimg, trained, escape(state))
    Console().print(table)
    shown = [spread for spread in swept.spreads if spread.key in keys]
    if shown:
        print()
        table = _table("over seeds", "metric", "trainings", "mean", "std")
        for one in shown:
            table.add_row(escape(printable(one.group)), one.key, f"{one.count}", number(one.mean), number(one.std))
        Console().print(table)
        print(NOTE)
    print(f"MLflow run  {swept.parent} ({swept.sweep_id}), with all runs below it")


def _shown_keys(ended: Sequence[SweptChild], children: Sequence[Child]) -> list[str]:
    """Return the keys of the columns: the metric of the gate first, then those that have a better direction, in their order."""
    from stylegan.evaluation.metric_table import describe, rank, split_key

    asked = {child.config.registry.gate.metric for child in children}
    keys = dict.fromkeys(key for child in ended for key in child.metrics if describe(key).better)
    return sorted(keys, key=lambda key: (split_key(key)[0] not in asked, rank(key)))[:SHOWN_METRICS]


def _print_plan(plan: SweepPlan) -> None:
    """Print what is left to do of each run, and what all of them share."""
    table = _table("run", "to do", "shared", "time", "GPU h")
    for child in plan.children:
        left = [step for step in child.plan.steps if step.state == "run" and step.name not in child.shared]
        seconds = sum(step.seconds or 0 for step in left)
        hours = sum(step.gpu_hours or 0 for step in left)
        table.add_row(
            escape(printable(child.label)),
            ", ".join(step.name for step in left) or "nothing",
            ", ".join(child.shared),
            duration(seconds) if seconds else "",
            f"{hours:,.1f}" if hours else "",
        )
    Console().print(table)
    saved = plan.stages - plan.distinct
    print(
        f"{len(plan.children)} runs with {plan.stages} stages: {plan.distinct} different ones are trained once each "
        f"({saved} are shared), {plan.cached} of them are in storage"
    )
    if plan.seconds:
        hours = f", {plan.gpu_hours:,.1f} GPU-hours" if plan.gpu_hours is not None else ""
        print(
            f"left to do: about {duration(plan.seconds)} one after the other{hours}; less with room for several at once"
        )
    for note in dict.fromkeys(note for child in plan.children for note in child.plan.notes):
        print(printable(note))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        texts = ("run", "to do", "shared", "state", "over seeds", "metric")
        table.add_column(column, justify="left" if column in texts else "right", overflow="fold")
    return table
