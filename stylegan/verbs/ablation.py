"""Read the rows of a paper's table from storage, and lay them beside the paper: values, their spread, and their order.

Values of another data set do not compare with the paper's. What can be repeated on any data is their order, pair of rows
by pair of rows. A pair is decided only if its difference is beyond what chance and the spread over seeds explain.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import PlainSerializer, computed_field

from stylegan.config.tree import Config
from stylegan.evaluation.metric_table import describe, split_key
from stylegan.evaluation.page.published import MIXED, compare, dataset_of, describe_incomparable
from stylegan.evaluation.report import Report, plain
from stylegan.pipeline.run import Run, find_run
from stylegan.records import Record
from stylegan.registry.gate import difference, metric_key
from stylegan.retry import storage_settings
from stylegan.uris import redact
from stylegan.verbs.ablation_rows import RowRun, Table, departures
from stylegan.verbs.forgetting import ACCURACY, LAST, Curve, read_layers

Column = tuple[str, int]  # a metric, and how many latents are mixed in the test
Keyed = tuple[str, int]  # a row and a seed
# In JSON a number that is not finite is its name, as in a report.
Number = Annotated[float, PlainSerializer(plain, when_used="json")]


class Value(Record):
    """What one training has reached, with the 95 % interval of its evaluation if that has one."""

    seed: int
    value: Number
    interval: tuple[Number, Number] | None = None


class Cell(Record):
    """One value of a row.

    - `metric`: first part of the report's key, or `probe/accuracy`, the last point of the forgetting curve.
    - `latents`: how many latents are mixed in the test; more than 1 only in Table 2.
    - `paper`: the published values, by data set in words; empty where none ship.
    - `values`: ours, one for each seed whose evaluation is finished.
    - `mean`, `spread`: over the seeds; the spread is the standard deviation, None with fewer than two.
    - `interval`: the 95 % interval of the mean as far as the evaluations go. It does not hold what another training
      would change: that is the spread.
    """

    metric: str
    latents: int = 1
    paper: dict[str, float] = {}
    values: tuple[Value, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean(self) -> Number | None:
        """The mean over the seeds."""
        return math.fsum(one.value for one in self.values) / len(self.values) if self.values else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spread(self) -> Number | None:
        """The standard deviation over the seeds."""
        values = [one.value for one in self.values]
        if len(values) < 2:
            return None
        return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interval(self) -> tuple[Number, Number] | None:
        """The interval of the mean."""
        half, mean = self.half_width, self.mean
        return None if half is None or mean is None else (mean - half, mean + half)

    @property
    def column(self) -> Column:
        """What is measured."""
        return self.metric, self.latents

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval of the mean; None unless all values have one."""
        halves = [(one.interval[1] - one.interval[0]) / 2 for one in self.values if one.interval]
        return math.hypot(*halves) / len(halves) if halves and len(halves) == len(self.values) else None


class TableRow(Record):
    """A row: its name, the row in words, the length of its training in kimg, its runs by seed, and its values."""

    row: str
    title: str
    kimg: float
    runs: dict[int, str]
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        """The row with its meaning: `B: tuned, traditional generator`, `style-0: no mapping layers`."""
        own = self.title.lower().startswith(f"{self.row}:")
        return self.title if own else f"{self.row}: {self.title}"

    def cell(self, column: Column) -> Cell:
        """Return one of its values."""
        return next(cell for cell in self.cells if cell.column == column)

    def only(self, columns: Collection[Column]) -> TableRow:
        """Return the row with some of its values."""
        return self.model_copy(update={"cells": tuple(cell for cell in self.cells if cell.column in columns)})


class Order(Record):
    """Whether two rows are in the order of the paper, by one value.

    - `first`, `second`: the rows; in the paper the first one is better.
    - `paper`: the two published values; None where the paper says the order in words.
    - `disputed`: another data set of the same table has the opposite order.
    - `gain`: by how much our first row is better; negative if it is worse; None if that is not known.
    - `bound`: what chance and the spread over seeds explain at 95 %; None where that cannot be tested.
    - `agrees`: yes, no, or None for not decided; then `why` has the reason.
    """

    metric: str
    latents: int
    first: str
    second: str
    paper: tuple[float, float] | None
    disputed: bool = False
    gain: Number | None = None
    bound: Number | None = None
    agrees: bool | None = None
    why: str = ""

    @property
    def column(self) -> Column:
        """By what the two are ordered."""
        return self.metric, self.latents


class Ablation(Record):
    """A paper's table on one's own data.

    - `key`, `name`, `subject`: of the table.
    - `config`, `data`: the name of the config, its source with its resolution.
    - `comparable`: whether ours were measured as the paper's, on the same data; then the values themselves compare.
    - `statement`: what compares, in a sentence.
    - `orders`: of each pair of rows that the paper orders.
    - `curves`: (kimg, accuracy of the probe on D), by row and seed.
    - `layers`: the same of each block of D, by its name.
    - `notes`: what else to know.
    - `missing`: trainings without a finished evaluation.
    """

    key: str
    name: str
    subject: str
    config: str
    data: str
    seeds: tuple[int, ...]
    comparable: bool
    statement: str
    rows: tuple[TableRow, ...]
    orders: tuple[Order, ...]
    curves: dict[str, dict[int, list[tuple[float, float]]]] = {}
    layers: dict[str, dict[str, dict[int, list[tuple[float, float]]]]] = {}
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def columns(self) -> list[Column]:
        """Return what is compared, in order."""
        return list(dict.fromkeys(cell.column for row in self.rows for cell in row.cells))


def read_table(table: Table, config: Config, runs: Sequence[RowRun]) -> Ablation:
    """Read what the rows of a table have reached so far.

    Args:
        table: the table.
        config: the config of which its rows were made.
        runs: its trainings, from `make_rows`; those without a finished evaluation are listed as missing.

    Raises:
        ConfigError, StepError: the images are not there or not sharded yet, or storage does not answer.
    """
    with storage_settings(config.storage):
        shards = find_run(runs[0].child.config).shards
        found = {(one.row, one.seed): Run(one.child.config, shards) for one in runs}
        reports = {key: report for key, run in found.items() if (report := run.find_report())}
        layers = _layers(table, found)
    curves = layers.pop(LAST, {})
    data_set = dataset_of(config.data.source, shards.num_images)
    rows = [_row(table, row, data_set, found, reports, curves) for row in dict.fromkeys(one.row for one in runs)]
    measured = {cell.column for row in rows for cell in row.cells if cell.values or cell.metric in table.needs}
    rows = [row.only(measured) for row in rows]
    comparable, statement = _statement(table, config, data_set, reports)
    return Ablation(
        key=table.key,
        name=table.name,
        subject=table.subject,
        config=config.name,
        data=_data(config),
        seeds=tuple(dict.fromkeys(one.seed for one in runs)),
        comparable=comparable,
        statement=statement,
        rows=tuple(rows),
        orders=tuple(_orders(table, rows, reports)),
        curves=_by_row(curves),
        layers={layer: _by_row(found) for layer, found in layers.items()},
        notes=tuple(_notes(table, config, runs, measured, bool(curves))),
        missing=tuple(one.child.label for one in runs if (one.row, one.seed) not in reports),
    )


def tally_words(orders: Sequence[Order]) -> str:
    """Return in words how many pairs are in the paper's order."""
    if not orders:
        return "the paper orders no pair"
    agree, differ = (sum(order.agrees is verdict for order in orders) for verdict in (True, False))
    return (
        f"{agree + differ} of {len(orders)} pair{'s' if len(orders) > 1 else ''} decided: {agree} as in the paper, {differ} "
        "the other way round"
    )


def title_of(metric: str, latents: int = 1) -> str:
    """Return a value in words."""
    if metric == ACCURACY:
        return "Accuracy of a probe on D, at the end"
    return describe("fid").title + f", {latents} latents mixed" if latents > 1 else describe(metric).title


def direction_of(metric: str) -> str:
    """Return in which direction a value of a table is better."""
    return "higher" if metric == ACCURACY else describe(metric).better or "lower"


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(
    table: Table,
    row: str,
    data_set: str | None,
    runs: Mapping[Keyed, Run],
    reports: Mapping[Keyed, Report],
    curves: Mapping[Keyed, Curve],
) -> TableRow:
    own = {seed: run for (name, seed), run in runs.items() if name == row}
    paper: dict[Column, dict[str, float]] = {}
    for figure in sorted(table.figures(row), key=lambda figure: figure.dataset != data_set):  # our own data come first
        paper.setdefault((figure.metric, figure.latents), {})[figure.dataset_title] = figure.value
    cells = []
    for column in _columns(table):
        read = {seed: _measured((row, seed), column, reports, curves) for seed in own}
        values = [Value(seed=seed, value=one[0], interval=one[1]) for seed, one in read.items() if one]
        cells.append(Cell(metric=column[0], latents=column[1], paper=paper.get(column, {}), values=tuple(values)))
    return TableRow(
        row=row,
        title=table.title(row),
        kimg=next(iter(own.values())).stages[-1].end_nimg / 1000,
        runs={seed: run.run_id for seed, run in own.items()},
        cells=tuple(cells),
    )


def _columns(table: Table) -> Iterator[Column]:
    for metric in table.shows:
        for latents in (2, 3, 4) if metric == MIXED else (1,):
            yield metric, latents


def _measured(
    key: Keyed, column: Column, reports: Mapping[Keyed, Report], curves: Mapping[Keyed, Curve]
) -> tuple[float, tuple[float, float] | None] | None:
    """Return a value of a training and its interval; None if it was not measured."""
    metric, latents = column
    if metric == ACCURACY:
        return (curves[key][-1][1], None) if key in curves else None
    report = reports.get(key)
    if report is None:
        return None
    if latents > 1:
        points = report.curves.get("mixing", [])
        return next(((point["fid"], None) for point in points if point["latents"] == latents), None)
    name = metric_key(report, metric)
    return None if name is None else (report.metrics[name], report.intervals.get(name))


def _layers(table: Table, runs: Mapping[Keyed, Run]) -> dict[str, dict[Keyed, Curve]]:
    """Return the forgetting curves of the trainings that were probed, by layer, if the table shows them."""
    layers: dict[str, dict[Keyed, Curve]] = {}
    if ACCURACY in table.shows:
        for key, run in runs.items():
            for layer, curve in read_layers(run.curves()).items():
                layers.setdefault(layer, {})[key] = curve
    return layers


def _by_row(curves: Mapping[Keyed, Curve]) -> dict[str, dict[int, Curve]]:
    return {row: {seed: curves[row, seed] for other, seed in curves if other == row} for row, _ in curves}


# --- orders -----------------------------------------------------------------------------------------------------------


def _orders(table: Table, rows: Sequence[TableRow], reports: Mapping[Keyed, Report]) -> Iterator[Order]:
    """Yield the order of each pair of rows that the paper orders, by each value that was measured."""
    for column in [cell.column for cell in rows[0].cells]:
        for pair in itertools.combinations(rows, 2):
            if order := _published_order(table, column, *pair):
                ours, theirs = (next(row for row in pair if row.row == name) for name in (order.first, order.second))
                yield order.model_copy(update=_verdict(order, ours.cell(column), theirs.cell(column), reports))


def _published_order(table: Table, column: Column, one: TableRow, other: TableRow) -> Order | None:
    """Return the order of two rows in the paper, still without our verdict; None if it has none."""
    metric, latents = column
    claimed = table.claims.get(metric, ())
    if one.row in claimed and other.row in claimed:
        first, second = sorted((one.row, other.row), key=claimed.index)
        return Order(metric=metric, latents=latents, first=first, second=second, paper=None)
    mine, others = one.cell(column).paper, other.cell(column).paper
    gains = {name: _gain(metric, mine[name], others[name]) for name in mine if name in others}
    name, gain = next(iter(gains.items()), ("", 0.0))  # of our own data set, else of the table's first
    if not gain:
        return None
    better_row, worse_row = (one, other) if gain > 0 else (other, one)
    paper = better_row.cell(column).paper[name], worse_row.cell(column).paper[name]
    disputed = any(another * gain < 0 for another in gains.values())
    return Order(
        metric=metric, latents=latents, first=better_row.row, second=worse_row.row, paper=paper, disputed=disputed
    )


def _gain(metric: str, value: float, other: float) -> float:
    """Return by how much a value is better than another one."""
    return value - other if direction_of(metric) == "higher" else other - value


def _verdict(order: Order, ours: Cell, theirs: Cell, reports: Mapping[Keyed, Report]) -> dict[str, Any]:
    """Return what an order says of our values: `gain`, `bound`, and `agrees` or `why`."""
    for row, mean in ((order.first, ours.mean), (order.second, theirs.mean)):
        if mean is None:
            return {"why": f"{row} is not measured"}
        if not math.isfinite(mean):
            return {"why": f"the value of {row} is not a finite number"}
    gain = _gain(order.metric, ours.mean or 0.0, theirs.mean or 0.0)
    if obstacles := _obstacles(order, ours, theirs, reports):
        return {"gain": gain, "why": f"the two do not compare: other {obstacles}"}
    bounds = {
        "the spread over seeds": _spread_bound(ours, theirs),
        "the chance of the evaluations": _chance_bound(ours, theirs),
    }
    known = {name: bound for name, bound in bounds.items() if bound is not None}
    if not known:
        return {"gain": gain, "why": "one training each, and the value has no interval"}
    largest = max(known, key=known.__getitem__)
    if abs(gain) > known[largest]:
        return {"gain": gain, "bound": known[largest], "agrees": gain > 0}
    return {"gain": gain, "bound": known[largest], "why": f"within {largest}"}


def _obstacles(order: Order, ours: Cell, theirs: Cell, reports: Mapping[Keyed, Report]) -> str:
    """Return why the gate would not compare the two values; empty if it would."""
    if order.metric == ACCURACY or order.latents > 1:
        return ""
    one, other = (reports[row, cell.values[0].seed] for row, cell in ((order.first, ours), (order.second, theirs)))
    found = difference(one, other, order.metric, use_intervals=False)
    return ", ".join(found.obstacles) if found else ""


def _chance_bound(ours: Cell, theirs: Cell) -> float | None:
    """Return the 95 % bound on the difference of two means as far as the evaluations go; None without all intervals."""
    halves = (ours.half_width, theirs.half_width)
    return None if None in halves else math.hypot(*(half for half in halves if half is not None))


def _spread_bound(ours: Cell, theirs: Cell) -> float | None:
    """Return the 95 % bound on the difference of two means by the spread over seeds (Welch's test); None with one seed."""
    if ours.spread is None or theirs.spread is None:
        return None
    from scipy.special import stdtrit  # a second, which help and mistakes need not wait for

    parts = [cell.spread**2 / len(cell.values) for cell in (ours, theirs) if cell.spread is not None]
    total = math.fsum(parts)
    if total == 0:
        return 0.0
    counts = [len(ours.values), len(theirs.values)]
    freedom = total**2 / math.fsum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return float(stdtrit(freedom, 0.975)) * math.sqrt(total)


# --- words ------------------------------------------------------------------------------------------------------------


def _data(config: Config) -> str:
    return f"{redact(config.data.source)} at {config.data.resolution}x{config.data.resolution}"


def _statement(table: Table, config: Config, data_set: str | None, reports: Mapping[Keyed, Report]) -> tuple[bool, str]:
    """Return whether our values compare with the paper's, and what compares, in a sentence."""
    ours, figures = _data(config), [figure for row in table.rows for figure in table.figures(row)]
    comparisons = [
        comparison
        for (row, _), report in reports.items()
        if table.figures(row)
        for comparison in compare(report, row=row, dataset=data_set)
        if comparison.value is not None
        and table.name in comparison.published.where
        and split_key(comparison.key)[0] in table.shows
    ]
    if comparisons and all(comparison.comparable for comparison in comparisons):
        return True, f"Ours are of {ours} and measured as the paper's: the values themselves compare."
    *sets, last = dict.fromkeys(f"{one.dataset_title} at {one.resolution}x{one.resolution}" for one in figures)
    listed = f"{', '.join(sets)} and {last}" if sets else last
    kinds = describe_incomparable(comparisons).partition(": ")[2]
    return False, (
        f"The paper's values are of {listed}, ours of {ours}{f' ({kinds})' if kinds else ''}: absolute "
        "values do not compare, only the order of rows does."
    )


def _notes(
    table: Table, config: Config, runs: Sequence[RowRun], measured: Collection[Column], probed: bool
) -> Iterator[str]:
    if differs := departures(table, config):
        yield f"the config is not StyleGAN in {', '.join(differs)}; rows that do not set it keep it"
    if len({one.seed for one in runs}) == 1:
        yield (
            "one training each: what is decided is beyond the chance of an evaluation, not beyond that of a training; "
            "--seeds 3 shows how much trainings differ"
        )
    if table.key == "ssgan" and not config.model.is_resnet:
        yield "the paper's networks are a ResNet, these are StyleGAN's; configs/ssgan/ has the paper's"
    if ACCURACY in table.shows and not probed:
        yield "no forgetting curve: set snapshots.probe_kimg before training; it needs labels"
    if "separability_w" in table.shows and not {("separability_w", 1), ("separability_z", 1)} & set(measured):
        yield "separability is not measured: add it to evaluation.metrics; it needs labels"
