"""The command of many runs: a grid, several configs, seeds; what they will share, and a table of what they have become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli import console, supervisor
from flows.cli.arguments import AnyFile, AsJson, ConfigFile, File, Overrides, Whole, load
from flows.cli.console import print_json
from stylegan.errors import ConfigError, StepError, printable
from stylegan.progress import duration

if TYPE_CHECKING:
    from flows.children import SweptChild
    from flows.sweep import Swept
    from stylegan.config.tree import Config
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
    optimize: str | None = None,
    space: AnyFile | None = None,
    trials: Whole | None = None,
    plan: bool = False,
    images: Whole | None = None,
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
    optimize
        Search for the best value of a metric by Optuna, such as eval/fid; the best model is registered.
    space
        With --optimize: YAML file of what may be tried, such as `training.r1_gamma: {low: 0.1, high: 10, log: true}`.
    trials
        With --optimize: trials in all, those of the same command before included.
    plan
        Only say what would be done, what is shared, and how long it takes; touches nothing.
    images
        With --plan: assume so many images and that nothing is done yet, without looking.

    Examples
    --------
    stylegan sweep faces.yaml --grid training.r1_gamma=0.1,1,10 --seeds 3
    stylegan sweep --configs configs/ablations/*.yaml --set storage.root=ablations
    stylegan sweep faces.yaml --grid model.style_mixing_prob=0,0.9 --plan
    stylegan sweep faces.yaml --optimize eval/fid --space space.yaml --trials 30
    """
    for name, number in {"--at-once": at_once, "--trials": trials, "--images": images}.items():
        if number is not None and number < 1:
            raise ConfigError(f"{name} {number}: must be at least 1")
    if images is not None and not plan:
        raise ConfigError(f"--images {images}: is for --plan, which then looks at nothing; a sweep takes what is there")
    if optimize is not None:
        others = {"--grid": grid, "--configs": configs, "--seeds": seeds}
        _optimize(
            config, overrides, optimize, space, trials, at_once, others, plan=plan, images=images, as_json=as_json
        )
        return
    if space is not None or trials is not None:
        raise ConfigError(f"{'--space' if space is not None else '--trials'}: is for --optimize eval/METRIC")
    from stylegan.pipeline.sweep import make_children, plan_sweep

    children = make_children(config, overrides or [], grid=grid or [], configs=configs or [], seeds=seeds)
    if plan:
        planned = plan_sweep(children, images=images)
        if as_json:
            print_json(planned)
        else:
            print_plan(planned)
        return
    supervisor.allow(max(child.config.ray.stop_grace_s for child in children) + STOP_SECONDS)
    names = {child.config.name for child in children}
    swept = run_sweep(f"{names.pop()}-sweep" if len(names) == 1 else "sweep", children, at_once)
    if as_json:
        print_json(swept)
    else:
        _print_swept(swept, children)
    _report_failures(swept.failed, len(children))


def _report_failures(failed: Sequence[SweptChild], count: int) -> None:
    """Print a line for each run that failed. Raises StepError if there is one."""
    for child in failed:
        console.print_error(f"{child.label}: {child.why.rstrip('.')}; by itself: `{child.command}`")
    if failed:
        raise StepError(f"sweep: {len(failed)} of {count} runs failed; the same command does these again, and no other")


def _optimize(
    path: str | None,
    overrides: list[str] | None,
    metric: str,
    space: str | None,
    trials: int | None,
    at_once: int | None,
    others: Mapping[str, object],
    *,
    plan: bool,
    images: int | None,
    as_json: bool,
) -> None:
    """Do the search of `--optimize`, or plan it."""
    if given := [name for name, value in others.items() if value is not None]:
        raise ConfigError(f"{given[0]} with --optimize {metric}: give one of them; --space says what is tried")
    if path is None or space is None or trials is None:
        missing = "CONFIG" if path is None else "--space FILE" if space is None else "--trials N"
        raise ConfigError(
            f"--optimize {metric}: needs {missing} too: CONFIG --optimize {metric} --space FILE --trials N"
        )
    config = load(path, overrides)
    supervisor.allow(config.ray.stop_grace_s + STOP_SECONDS)
    from stylegan.pipeline.study import Objective, check_space, read_space, require_optuna

    objective, dimensions = Objective(key=metric), read_space(space)
    objective.check(config)
    check_space(space, dimensions, config)
    if plan:
        _plan_trials(config, trials, images, as_json)
        return
    require_optuna()
    from flows.cli.run_commands import import_engines, quiet_prefect

    quiet_prefect()
    from flows.prefect_server import api

    with api(meanwhile=import_engines):
        from flows.optimize import optimize_flow

        found = optimize_flow(config, objective, dimensions, trials=trials, at_once=at_once)
    if as_json:
        print_json(found)
    else:
        _print_rows(found.children, [config.registry.gate.metric, objective.value_name])
        best = f"trial {found.best}, {found.objective} {found.value:.5g}" if found.best is not None else "none"
        print(f"best        {best}")
        print(f"MLflow run  {found.parent} ({found.sweep_id}), with all runs below it")
    _report_failures(found.failed, len(found.children))


def _plan_trials(config: Config, trials: int, images: int | None, as_json: bool) -> None:
    """Print the plan of a trial, and what all of them take at most."""
    from stylegan.pipeline.plan import make_plan

    one = make_plan(config, images=images)
    if as_json:
        print_json(one)
        return
    console.print_plan(one, config)
    seconds = [step.seconds for step in one.steps if step.seconds]
    least = f", so {trials} take {duration(trials * sum(seconds))} at most" if seconds else ""
    print(
        f"this is a trial with the settings of the config{least}: stages that trials share are trained once, and a trial"
    )
    print("that is worse than the median of the others at the end of a stage is stopped there")


def run_sweep(name: str, children: Sequence[Child], at_once: int | None) -> Swept:
    """Do the runs of a sweep with a Prefect server, one of its own if none is there."""
    from flows.cli.run_commands import import_engines, quiet_prefect

    quiet_prefect()
    from flows.prefect_server import api

    with api(meanwhile=import_engines):
        from flows.sweep import sweep_flow

        return sweep_flow(name, children, at_once=at_once)


def _print_swept(swept: Swept, children: Sequence[Child]) -> None:
    """Print a row for each run, and mean and spread over seeds."""
    from stylegan.evaluation.page.metric_rows import number

    keys = _print_rows(swept.children, [child.config.registry.gate.metric for child in children])
    shown = [spread for spread in swept.spreads if spread.key in keys]
    if shown:
        print()
        table = _table("over seeds", "metric", "trainings", "mean", "std")
        for one in shown:
            table.add_row(_label(one.group), one.key, f"{one.count}", number(one.mean), number(one.std))
        Console().print(table)
        print(NOTE)
    print(f"MLflow run  {swept.parent} ({swept.sweep_id}), with all runs below it")


def _print_rows(ended: Sequence[SweptChild], first: Sequence[str]) -> list[str]:
    """Print a row for each run, and return the keys of its metrics; those named in `first` come first."""
    from stylegan.evaluation.metric_table import describe
    from stylegan.evaluation.page.metric_rows import ARROWS, interval_words, number

    keys = _shown_keys(ended, first)
    titles = [f"{key} {ARROWS[describe(key).better]}".rstrip() for key in keys]
    table = _table("run", *titles, "kimg", "training", "state")
    for child in ended:
        values = [
            f"{number(child.metrics[key])}{_below(interval_words(child.intervals.get(key)))}"
            if key in child.metrics
            else ""
            for key in keys
        ]
        kimg = f"{child.kimg:,g}" if child.kimg is not None else ""
        trained = duration(child.train_seconds) if child.train_seconds else ""
        state = "cached" if child.cached else str(child.state)
        state = f"{state} ({', '.join(child.aliases)})" if child.aliases else state
        table.add_row(_label(child.label), *values, kimg, trained, escape(state))
    Console().print(table)
    return keys


def _below(text: str) -> str:
    return f"\n({text})" if text else ""


def _shown_keys(ended: Sequence[SweptChild], first: Sequence[str]) -> list[str]:
    """Return the keys of the columns: those asked for first, then others that have a better direction, in their order."""
    from stylegan.evaluation.metric_table import describe, rank, split_key

    keys = dict.fromkeys(key for child in ended for key in child.metrics if describe(key).better)
    return sorted(keys, key=lambda key: (split_key(key)[0] not in first, rank(key)))[:SHOWN_METRICS]


def print_plan(plan: SweepPlan) -> None:
    """Print what is left to do of each run, and what all of them share."""
    table = _table("run", "to do", "shared", "time", "GPU h")
    for child in plan.children:
        left = [step for step in child.plan.steps if step.state == "run" and step.name not in child.shared]
        seconds = sum(step.seconds or 0 for step in left)
        hours = sum(step.gpu_hours or 0 for step in left)
        table.add_row(
            _label(child.label),
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
        on_gpus = f", {plan.gpu_hours:,.1f} GPU-hours" if plan.gpu_hours is not None else ""
        print(
            f"left to do: about {duration(plan.seconds)} one after the other{on_gpus}; less with room for several at once"
        )
    for note in dict.fromkeys(note for child in plan.children for note in child.plan.notes):
        print(printable(note))


def _label(text: str) -> str:
    """Return a label for a cell: a line for each setting."""
    return escape(printable(text)).replace(", ", ",\n")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        texts = ("run", "to do", "shared", "state", "over seeds", "metric")
        table.add_column(
            column,
            justify="left" if column in texts else "right",
            overflow="fold",
            no_wrap=column in ("run", "over seeds", "metric"),
        )
    return table
