"""Compare runs: what differs in their settings and images, what they have reached, and whether that is more than chance.

The first run is the one that the others are compared with. Whether two values compare, and whether they differ by more
than chance, is decided by the gate's own function, so a comparison never contradicts the gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from stylegan.config.file import is_of_place
from stylegan.config.sections import GateConfig
from stylegan.config.tree import Config
from stylegan.errors import ConfigError
from stylegan.evaluation.metric_table import describe, rank, split_key
from stylegan.evaluation.page.metric_rows import number
from stylegan.evaluation.report import Report
from stylegan.records import Record
from stylegan.registry.gate import WHY_NOT, Obstacle, difference, metric_key
from stylegan.training.curves import PATHS
from stylegan.verbs.compared_run import ComparedRun, read_run

MOST_RUNS = 20  # of one comparison: more are read by nobody, and the page has no more styles of lines


class Value(Record):
    """What one run has of a metric, beside the first run.

    Attributes:
        key: in the run's report.
        value, interval: as measured.
        better: whether it is better than that of the first run; None for the first run itself, for equal values, and
            where the two do not compare.
        beyond_chance: whether the two differ by more than chance explains at 95 %; None where that cannot be tested.
        why_not: why the two do not compare; empty if they do.
    """

    key: str
    value: float
    interval: tuple[float, float] | None = None
    better: bool | None = None
    beyond_chance: bool | None = None
    why_not: tuple[str, ...] = ()


class MetricRow(Record):
    """One metric of all runs, None where a run does not have it."""

    metric: str
    title: str
    direction: str | None
    values: tuple[Value | None, ...]


class RunFacts(Record):
    """What one run is, what it took, and what the gate said of it.

    `seconds` are those of training, without starts and pauses; `gpu_hours` are those that its workers reserved
    meanwhile, None without GPUs. `path` says how its steps were made.
    """

    label: str
    run_id: str
    uri: str
    kimg: float
    seconds: float | None
    gpu_hours: float | None
    images_per_second: float | None
    path: str | None
    verdict: str | None


class Comparison(Record):
    """Runs side by side; every tuple has a place for each run, in their order.

    Attributes:
        runs: what they are. The others are compared with the first one.
        settings: by key, the values that differ; None where a run does not have the setting. Settings of where a run
            works and what it shows are left out.
        data: by name, the facts about the images that differ.
        metrics: in the order of pages.
        gate_metric: the one that decides, by the gate of the first run.
        summary: which run is best by the gate's metric, and whether by more than chance.
    """

    runs: tuple[RunFacts, ...]
    settings: dict[str, tuple[str | None, ...]]
    data: dict[str, tuple[str | None, ...]]
    metrics: tuple[MetricRow, ...]
    gate_metric: str
    summary: str

    @property
    def gate_row(self) -> MetricRow | None:
        """The values of the metric that decides; None if no run has it."""
        return next((row for row in self.metrics if row.metric == self.gate_metric), None)


def read_runs(config: Config | None, names: Sequence[str], *, root: str | None = None) -> list[ComparedRun]:
    """Read the runs that texts name, each under a label of its own; arguments and errors as for `read_run`.

    Raises:
        ConfigError: there are fewer than two or too many, or two of them are the same run.
    """
    if not 2 <= len(names) <= MOST_RUNS:
        raise ConfigError(f"compare: got {len(names)} run(s); name 2 to {MOST_RUNS}")
    runs: list[ComparedRun] = []
    for name in names:
        run = read_run(config, name, root=root)
        same = next((given for given, other in zip(names, runs, strict=False) if other.run_id == run.run_id), None)
        if same is not None:
            raise ConfigError(f"{name}: is the run {run.run_id}, as {same} is; name each run once")
        runs.append(run)
    return runs


def compare(runs: Sequence[ComparedRun]) -> Comparison:
    """Compare runs with the first of them."""
    gate = runs[0].config.registry.gate if runs[0].config else GateConfig()
    metrics = _metrics([run.report for run in runs], use_intervals=gate.use_intervals)
    return Comparison(
        runs=tuple(map(_facts, runs)),
        settings=_differing([run.settings for run in runs], leave_out=is_of_place),
        data=_differing([run.data for run in runs]),
        metrics=metrics,
        gate_metric=gate.metric,
        summary=summarize(runs, gate),
    )


def _facts(run: ComparedRun) -> RunFacts:
    paths = [row["metrics"]["time/path"] for row in run.rows if "time/path" in row["metrics"]]
    return RunFacts(
        label=run.label,
        run_id=run.run_id,
        uri=run.uri,
        kimg=run.kimg,
        seconds=run.seconds[-1] if run.seconds else None,
        gpu_hours=run.gpu_hours[-1] if run.gpu_hours else None,
        images_per_second=run.speed,
        path=PATHS[int(paths[-1])] if paths and int(paths[-1]) < len(PATHS) else None,
        verdict=run.verdict,
    )


def _differing(
    values: Sequence[Mapping[str, str]], *, leave_out: Callable[[str], bool] = lambda key: False
) -> dict[str, tuple[str | None, ...]]:
    keys = dict.fromkeys(key for one in values for key in one if not leave_out(key))
    found = {key: tuple(one.get(key) for one in values) for key in keys}
    return {key: row for key, row in found.items() if len(set(row)) > 1}


def _metrics(reports: Sequence[Report | None], *, use_intervals: bool) -> tuple[MetricRow, ...]:
    names = {split_key(key)[0] for report in reports if report for key in report.metrics}
    rows = []
    for name in sorted(names, key=lambda name: (rank(name), name)):
        facts = describe(name)
        values = tuple(_value(report, reports[0], name, use_intervals) for report in reports)
        rows.append(MetricRow(metric=name, title=facts.title, direction=facts.better, values=values))
    return tuple(rows)


def _value(report: Report | None, first: Report | None, name: str, use_intervals: bool) -> Value | None:
    key = metric_key(report, name) if report else None
    if report is None or key is None or split_key(key)[0] != name:  # fid_mixing_... is no value of fid
        return None
    own = Value(key=key, value=report.metrics[key], interval=report.intervals.get(key))
    found = difference(report, first, name, use_intervals=use_intervals) if first and first is not report else None
    if found is None:
        return own
    return own.model_copy(
        update={
            "better": found.better,
            "beyond_chance": found.beyond_chance,
            "why_not": tuple(WHY_NOT[obstacle] for obstacle in found.obstacles),
        }
    )


def summarize(runs: Sequence[ComparedRun], gate: GateConfig) -> str:
    """Return in a sentence which run is best by the gate's metric, and whether by more than chance.

    The runs that compare with the first one that has a finite value take part. One is best if it differs from each other
    by more than chance explains.
    """
    measured = [(run, run.report) for run in runs if run.report and _is_finite(run.report, gate.metric)]
    if not measured:
        return f"No run has a value of {gate.metric} yet."
    (first, reference), *others = measured
    fit = [(first, reference), *(pair for pair in others if not _obstacles(pair[1], reference, gate))]
    title = describe(metric_key(reference, gate.metric) or gate.metric).title
    rest = f" {_count(len(runs) - len(fit))} cannot be compared by it." if len(fit) < len(runs) else ""
    if len(fit) == 1:
        return f"By {title} nothing compares with {first.label}.{rest}"
    best, report = fit[0]
    for run, challenger in fit[1:]:
        found = difference(challenger, report, gate.metric, use_intervals=gate.use_intervals)
        if found and found.better:
            best, report = run, challenger

    # Beside each other run, the nearest first.
    pairs = [
        (run, found)
        for run, other in fit
        if run is not best and (found := difference(report, other, gate.metric, use_intervals=gate.use_intervals))
    ]
    pairs.sort(key=lambda pair: pair[1].gain or 0.0)
    second, nearest = pairs[0]
    if not nearest.better:
        return f"By {title} {best.label} and {second.label} are equal ({number(nearest.value)}).{rest}"
    near = [(run, found) for run, found in pairs if found.beyond_chance is False]
    if near:
        second, nearest = near[0]
        beside = f"{number(nearest.value)} against {number(nearest.other)} of {second.label}"
        more = f" ({_count(len(near) - 1)} likewise)" if len(near) > 1 else ""
        return f"By {title} no run is best: {best.label} has {beside}, which is within what chance explains at 95 %{more}.{rest}"
    beside = f"{number(nearest.value)} against {number(nearest.other)} of {second.label}"
    tested = all(found.beyond_chance for _, found in pairs)
    ending = ", which is more than chance explains at 95 %" if tested else "; chance was not tested, without intervals"
    return f"{best.label} is best by {title}: {beside}{ending}.{rest}"


def _is_finite(report: Report, metric: str) -> bool:
    key = metric_key(report, metric)
    return key is not None and math.isfinite(report.metrics[key])


def _count(num: int) -> str:
    return "1 other run" if num == 1 else f"{num} other runs"


def _obstacles(report: Report, reference: Report, gate: GateConfig) -> tuple[Obstacle, ...]:
    found = difference(report, reference, gate.metric, use_intervals=gate.use_intervals)
    return found.obstacles if found else ("features",)
