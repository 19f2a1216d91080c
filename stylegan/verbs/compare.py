"""Compare runs: what differs in their settings and images, what they have reached, and whether that is more than chance.

The first run is the one that the others are compared with. Whether two values compare, and whether they differ by more
than chance, is decided by the gate's own function, so a comparison never contradicts the gate.
"""

from __future__ import annotations

from collections.abc import Sequence

from stylegan.config.sections import GateConfig
from stylegan.config.tree import Config
from stylegan.errors import ConfigError, decoration
from stylegan.evaluation.metric_table import describe, rank, split_key
from stylegan.evaluation.page.metric_rows import number
from stylegan.evaluation.report import Report
from stylegan.outputs import write_output
from stylegan.records import Record
from stylegan.registry.gate import Obstacle, difference, metric_key
from stylegan.tracking.connection import resolve_uri
from stylegan.training.curves import PATHS
from stylegan.verbs.compared_run import OF_PLACE, ComparedRun, read_run

PAGE = "comparison.html"  # among the artifacts of the run above them
MOST_RUNS = 20  # of one comparison: more are read by nobody, and the page has no more styles of lines
WORDS: dict[Obstacle, str] = {
    "features": "measured by another network",
    "protocol": "measured under other settings",
    "images": "measured against other images",
    "interval": "one of the two has no interval, so chance cannot be excluded",
}


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
        summary: which run is best by the gate's metric, and whether by more than chance.
    """

    runs: tuple[RunFacts, ...]
    settings: dict[str, tuple[str | None, ...]]
    data: dict[str, tuple[str | None, ...]]
    metrics: tuple[MetricRow, ...]
    summary: str


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
        settings=_differing([run.settings for run in runs], leave_out=OF_PLACE),
        data=_differing([run.data for run in runs]),
        metrics=metrics,
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
    values: Sequence[dict[str, str]], *, leave_out: tuple[str, ...] = ()
) -> dict[str, tuple[str | None, ...]]:
    keys = dict.fromkeys(key for one in values for key in one if not key.startswith(leave_out or ("\0",)))
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
    if report is None or key is None:
        return None
    own = Value(key=key, value=report.metrics[key], interval=report.intervals.get(key))
    found = difference(report, first, name, use_intervals=use_intervals) if first and first is not report else None
    if found is None:
        return own
    return own.model_copy(
        update={
            "better": found.better,
            "beyond_chance": found.beyond_chance,
            "why_not": tuple(WORDS[obstacle] for obstacle in found.obstacles),
        }
    )


def summarize(runs: Sequence[ComparedRun], gate: GateConfig) -> str:
    """Return in a sentence which run is best by the gate's metric, and whether by more than chance."""
    measured = [(run, run.report) for run in runs if run.report and metric_key(run.report, gate.metric)]
    if not measured:
        return f"No run has a value of {gate.metric} yet."
    reference = measured[0][1]
    fit = [(run, report) for run, report in measured if report is reference or not _obstacles(report, reference, gate)]
    others = len(runs) - len(fit)
    rest = f" {others} other run(s) cannot be compared by it." if others else ""
    key = metric_key(reference, gate.metric) or gate.metric
    title = describe(key).title
    if len(fit) == 1:
        return f"By {title} nothing compares with {fit[0][0].label}.{rest}"
    sign = 1 if describe(key).better == "higher" else -1
    fit.sort(key=lambda pair: sign * pair[1].metrics[metric_key(pair[1], gate.metric) or key], reverse=True)
    (best, report), (second, next_report) = fit[:2]
    found = difference(report, next_report, gate.metric, use_intervals=gate.use_intervals)
    assert found is not None
    beside = f"{number(found.value)} against {number(found.other)} of {second.label}"
    if found.better is None:
        return f"By {title} {best.label} and {second.label} are equal ({number(found.value)}).{rest}"
    if found.beyond_chance is None:
        sentence = f"{best.label} is best by {title}: {beside}; chance was not tested, since there are no intervals."
    elif found.beyond_chance:
        sentence = f"{best.label} is best by {title}: {beside}, which is more than chance explains at 95 %."
    else:
        sentence = (
            f"By {title} no run is best: {best.label} has {beside}, which is within what chance explains at 95 %."
        )
    return sentence + rest


def _obstacles(report: Report, reference: Report, gate: GateConfig) -> tuple[Obstacle, ...]:
    found = difference(report, reference, gate.metric, use_intervals=gate.use_intervals)
    return found.obstacles if found else ("features",)


def write_comparison(runs: Sequence[ComparedRun], comparison: Comparison, uri: str) -> str | None:
    """Write the page of a comparison, and log it to the run that all of them are below in MLflow, such as that of a sweep.

    Args:
        uri: as `outputs.output_file` has checked it.

    Returns:
        MLflow's id of the run that has the page among its artifacts; None if they have no common parent.
    """
    from stylegan.tracking.parents import common_parent, log_page
    from stylegan.verbs.comparison_page import comparison_page

    page = comparison_page(runs, comparison)
    write_output(uri, page.encode())
    trackers = {resolve_uri(run.config) for run in runs if run.config}
    if len(trackers) != 1 or not all(run.config for run in runs):
        return None
    with decoration("the comparison in MLflow"):
        (tracker,) = trackers
        parent = common_parent(tracker, [run.run_id for run in runs])
        if parent:
            log_page(tracker, parent, page, PAGE)
        return parent
    return None
