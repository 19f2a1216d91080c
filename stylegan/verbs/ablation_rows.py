"""The papers' tables: their rows as configs of one's own data, and what the papers say about them.

A row is the user's config with the few keys that it changes (`ablations.yaml`, beside the published figures). Rows and
tables that are the same network have stages with equal keys, which are trained once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args

from stylegan.config.file import flatten, load
from stylegan.config.tree import Config
from stylegan.config.yaml_text import read, write
from stylegan.errors import ConfigError
from stylegan.evaluation.metric_table import METRICS
from stylegan.evaluation.page.published import Figure, figures_in
from stylegan.pipeline.sweep import MAX_CHILDREN, Child

TableName = Literal["table1", "table2", "table4", "ssgan"]
TABLES: tuple[TableName, ...] = get_args(TableName)
# Settings by which a config is StyleGAN or not. Lengths, rates and weights of losses are tuned for the data.
OF_STYLEGAN = ("model.", "training.loss")


@dataclass(frozen=True)
class Table:
    """One table of a paper.

    Attributes:
        key, name, subject: its name on the command line, in the paper, and what it is about.
        rows: its rows in order, for the architecture of a config.
        needs: the metrics without which it says nothing.
        shows: the values that it compares.
        claims: by value, the rows in the order that the paper states in words, the best one first.
        source, url: of the paper, if it is not StyleGAN's.
        titles: of rows that no paper has figures of.
    """

    key: TableName
    name: str
    subject: str
    rows: tuple[str, ...]
    needs: tuple[str, ...]
    shows: tuple[str, ...]
    claims: Mapping[str, tuple[str, ...]]
    source: str
    url: str
    titles: Mapping[str, str]

    def title(self, row: str) -> str:
        """Return a row in words."""
        return self.titles.get(row) or self.figures(row)[0].title

    def figures(self, row: str) -> list[Figure]:
        """Return the figures that the table prints in a row, for each of its data sets."""
        return figures_in(self.name, row)


@dataclass(frozen=True)
class RowRun:
    """One training of a row: the row, the seed, and its run as a child of a sweep."""

    row: str
    seed: int
    child: Child


@functools.cache
def find_table(name: TableName, architecture: Literal["stylegan", "resnet"] = "stylegan") -> Table:
    """Return a table by its name on the command line, with the rows that `model.architecture` has.

    Raises:
        ConfigError: it has none of that architecture.
    """
    facts = _facts()["tables"][name]
    rows = facts["rows"] if architecture == "stylegan" else facts.get("resnet_rows")
    if not rows:
        fit = [key for key, other in _facts()["tables"].items() if "resnet_rows" in other]
        raise ConfigError(
            f"{name} with model.architecture={architecture}: its rows are of StyleGAN's networks; the table of these is "
            f"{', '.join(fit)}"
        )
    return Table(
        key=name,
        name=facts["name"],
        subject=facts["subject"],
        rows=tuple(rows),
        needs=tuple(facts["needs"]),
        shows=tuple(facts["shows"]),
        claims={key: tuple(rows) for key, rows in facts.get("claims", {}).items()},
        source=facts.get("source", ""),
        url=facts.get("url", ""),
        titles=facts.get("titles", {}),
    )


def make_rows(
    table: Table, config: str, overrides: Sequence[str] = (), *, rows: Sequence[str] | None = None, seeds: int = 3
) -> tuple[RowRun, ...]:
    """Return the trainings of a table, row by row, and of each row seed by seed.

    Each is a model of its own, `NAME-table1-a`, so that no row is judged against a model in use.

    Args:
        table: the table.
        config: the file of the config that is row f, or what stands in its place.
        overrides: `key.path=value` strings for all rows.
        rows: some rows of the table; unset: all.
        seeds: how often each row is trained: with the seed of the config, and those that follow it.

    Raises:
        ConfigError: an unknown row, or a row that cannot be made of this config.
    """
    if unknown := [row for row in rows or () if row not in table.rows]:
        raise ConfigError(f"--rows {unknown[0]}: {table.key} has no such row; its rows are {','.join(table.rows)}")
    if rows is not None and not rows:
        raise ConfigError(f"--rows: names no row; the rows of {table.key} are {','.join(table.rows)}")
    if not 1 <= seeds <= MAX_CHILDREN // len(table.rows):
        raise ConfigError(f"--seeds {seeds}: must be from 1 to {MAX_CHILDREN // len(table.rows)}")
    common = load(config, overrides)
    chosen = [row for row in table.rows if rows is None or row in rows]
    return tuple(
        RowRun(row, common.seed + number, _child(table, row, common.seed + number, config, overrides, common))
        for row in chosen
        for number in range(seeds)
    )


def row_overrides(row: str, config: Config) -> list[str]:
    """Return what a row changes of a config, as `key.path=value` strings.

    Args:
        row: a row of any table.
        config: whose values some rows scale.
    """
    return [f"{key}={_value(value, config)}" for key, value in _changes(row, config).items()]


def departures(table: Table, config: Config) -> list[str]:
    """Return the settings in which a config is not StyleGAN, of those that the table is about.

    Settings that every row sets do not count.
    """
    changes = [_changes(row, config) for row in table.rows]
    keys = dict.fromkeys(key for change in changes for key in change if key.startswith(OF_STYLEGAN))
    ours = flatten(config)
    usual = flatten(Config.model_validate({"name": "f", "data": config.data.model_dump(), "storage": {"root": "f"}}))
    return [
        f"{key}={ours[key]} (StyleGAN: {usual[key]})"
        for key in keys
        if not all(key in change for change in changes) and ours.get(key) != usual.get(key)
    ]


def _changes(row: str, config: Config) -> dict[str, Any]:
    """Return what a row sets, by key. Each row of a resnet has its own normalisation, whatever that of the config is."""
    own = {"model.norm": None} if config.model.is_resnet else {}
    return own | _facts()["rows"][row]


def _child(table: Table, row: str, seed: int, path: str, overrides: Sequence[str], common: Config) -> Child:
    own = [
        *row_overrides(row, common),
        *_metrics(table, row, common),
        f"name={common.name}-{table.key}-{row}",
        "registry.name=null",
        f"seed={seed}",
    ]
    try:
        config = load(path, [*overrides, *own])
    except ConfigError as error:
        others = ",".join(other for other in table.rows if other != row)
        raise ConfigError(f"row {row} of {table.key}: {error}; or leave the row out: --rows {others}") from None
    return Child(label=f"{row}, seed={seed}", overrides=(*overrides, *own), config=config)


def _metrics(table: Table, row: str, config: Config) -> list[str]:
    """Return the override of a row's metrics, none if those of the config are right: enough, and possible for the row."""
    changes = _facts()["rows"][row]
    styles = changes.get("model.styles", config.model.has_styles)
    wanted = dict.fromkeys([*config.evaluation.metrics, *table.needs])
    possible = tuple(metric for metric in wanted if styles or not METRICS[metric].needs_styles)
    return [] if possible == config.evaluation.metrics else [f"evaluation.metrics={','.join(possible)}"]


def _value(value: Any, config: Config) -> str:
    if isinstance(value, dict) and set(value) == {"times"}:
        value = float(f"{value['times'] * _total_kimg(config):.10g}")  # without the noise of the product
    return write(value, inline=True)


def _total_kimg(config: Config) -> float:
    return config.training.total_kimg or sum(sum(config.kimg_at(resolution)) for resolution in config.resolutions)


@functools.cache
def _facts() -> dict[str, Any]:
    text = files("stylegan.evaluation.page").joinpath("ablations.yaml").read_text(encoding="utf-8")
    return dict(read(text, "ablations.yaml").value)
