"""Many runs of one subject: the configs of a grid, of files and of seeds, and what their runs share.

Every child is an ordinary run: `stylegan run` of the same values finds it finished. Stages with equal keys are trained
once, by whichever child comes first (`Pipeline.train`); the others wait for it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import computed_field

from stylegan.config.file import build, load
from stylegan.config.tree import Config
from stylegan.data.sharding.write_shards import find_shards, shard_key
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError
from stylegan.evaluation.report import Report
from stylegan.pipeline.keys import stage_keys
from stylegan.pipeline.plan import Plan, make_plan
from stylegan.pipeline.run import Run
from stylegan.pipeline.story import hours_by_stage
from stylegan.records import Record, digest
from stylegan.retry import storage_settings
from stylegan.training.schedule import stages

MAX_CHILDREN = 1000
# What the children of one sweep have in common: they share stages below one root, one registry and one Ray.
COMMON = ("storage.root", "tracking.uri", "tracking.experiment", "ray.address")

Grid = Mapping[str, Sequence[str]]  # the values of a key, as text of a command line


class Child(Record):
    """One run of a sweep.

    Attributes:
        label: what differs from the others, such as `training.r1_gamma=0.1, seed=1`.
        overrides: `key.path=value` strings that make it of its config file.
        config: a whole ordinary config.
        group: the label without the seed, by which trainings that differ in nothing else belong together; empty if it
            has only one.
    """

    label: str
    overrides: tuple[str, ...]
    config: Config
    group: str = ""


class Spread(Record):
    """One value over trainings that differ in their seeds alone: mean and standard deviation (that of a sample)."""

    group: str
    key: str
    count: int
    mean: float
    std: float


class PlannedChild(Record):
    """The plan of one child.

    - `shared`: the steps, of those that it would do, that an earlier child of the sweep does for it.
    """

    label: str
    plan: Plan
    shared: tuple[str, ...] = ()


class SweepPlan(Record):
    """The dry run of a sweep.

    - `stages`: the stages of all children, each counted for each child.
    - `distinct`: of these, those with different keys.
    - `cached`: of the distinct ones, those that storage has.
    - `seconds`, `gpu_hours`: estimates of what is left, each stage once, one child after the other; None where nothing
      is known.
    """

    children: tuple[PlannedChild, ...]
    stages: int
    distinct: int
    cached: int

    def _left(self, name: str) -> float | None:
        known = [
            value
            for child in self.children
            for step in child.plan.steps
            if step.name not in child.shared and (value := getattr(step, name)) is not None
        ]
        return sum(known) if known else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def to_train(self) -> int:
        """The stages that are left to be trained, each once."""
        return self.distinct - self.cached

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds(self) -> float | None:
        """The time of all that is left, one child after the other."""
        return self._left("seconds")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def gpu_hours(self) -> float | None:
        """The hours of GPUs that all that is left reserves."""
        return self._left("gpu_hours")


def parse_grid(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse `key.path=a,b` entries. A comma in brackets or quotes belongs to a value.

    Raises:
        ConfigError: an entry has another form, or a key comes twice.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        key, values = key.strip(), tuple(part.strip() for part in _split(text))
        if not equals or not key or not all(values):
            raise ConfigError(f"--grid {entry}: must be key.path=a,b, such as --grid training.r1_gamma=0.1,1,10")
        if key in grid:
            raise ConfigError(f"--grid {entry}: {key} has values already; give all of them at once: {key}=a,b,c")
        grid[key] = values
    return grid


def _split(text: str) -> list[str]:
    """Split text at its commas, but not at those in brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def make_children(
    config: str | Path | Config | None,
    overrides: Sequence[str] = (),
    *,
    grid: Grid | Sequence[str] = (),
    configs: Sequence[str | Path] = (),
    seeds: int | None = None,
) -> tuple[Child, ...]:
    """Return the runs of a sweep: for each config all combinations of the grid, and each of these for each seed.

    Args:
        config: a config, or its file.
        overrides: `key.path=value` strings for all of them.
        grid: values by key, or `key.path=a,b` strings.
        configs: further config files, each a config of its own.
        seeds: how many seeds: that of the config, and those that follow it. Unset: that of the config alone.

    Raises:
        ConfigError: a config is not valid, two runs are the same, or they do not share storage, registry and Ray.
    """
    axes = dict(grid) if isinstance(grid, Mapping) else parse_grid(grid)
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds {seeds}: must be at least 1")
    if seeds is not None and "seed" in axes:
        raise ConfigError(f"--seeds {seeds} with --grid seed={','.join(axes['seed'])}: give one of them")
    bases = ([config] if config is not None else []) + list(configs)
    if not bases:
        raise ConfigError("a sweep needs a config: CONFIG, or --configs FILE FILE ...")
    count = len(bases) * (seeds or 1)
    for values in axes.values():
        count *= len(values)
    if count > MAX_CHILDREN:
        raise ConfigError(f"the grid has {count:,} runs; at most {MAX_CHILDREN:,} are allowed: give fewer values")

    children = []
    for base in bases:
        for values in itertools.product(*axes.values()):
            own = [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
            first = with_overrides(base, [*overrides, *own])
            named = [_name(base)] if len(bases) > 1 else []
            for number in range(seeds or 1):
                seed = [f"seed={first.seed + number}"] if seeds else []
                child = with_overrides(base, [*overrides, *own, *seed]) if seed else first
                group = ", ".join([*named, *own]) or child.name
                children.append(
                    Child(
                        label=", ".join([*named, *own, *seed]) or child.name,
                        overrides=(*overrides, *own, *seed),
                        config=child,
                        group=group if seeds and seeds > 1 else "",
                    )
                )
    _check(children)
    return tuple(children)


def with_overrides(base: str | Path | Config, overrides: Sequence[str]) -> Config:
    """Return a config, or that of a file, with overrides on top; it keeps the names by which a command line calls it.

    Raises:
        ConfigError: as `load`.
    """
    if not isinstance(base, Config):
        return load(base, overrides)
    found = build(base.model_dump(mode="json"), "config", overrides)
    found._arguments = (*base._arguments, *(argument for override in overrides for argument in ("--set", override)))
    return found


def _name(base: str | Path | Config) -> str:
    return base.name if isinstance(base, Config) else Path(base).stem


def _check(children: Sequence[Child]) -> None:
    """Check that no two runs are the same and that all share storage, registry and Ray. Raises ConfigError."""
    seen: dict[str, str] = {}
    for child in children:
        other = seen.setdefault(digest(child.config), child.label)
        if other != child.label or sum(each.label == child.label for each in children) > 1:
            raise ConfigError(f"two runs of the sweep are the same: {other} and {child.label}; leave one out")
    first = children[0]
    for child in children[1:]:
        for key in COMMON:
            ours, others = _value(child.config, key), _value(first.config, key)
            if ours != others:
                raise ConfigError(
                    f"{key}: is {others} in {first.label} and {ours} in {child.label}; the runs of a sweep share it: set "
                    f"it for all with --set {key}=VALUE"
                )


def _value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def spreads(values: Sequence[tuple[str, Mapping[str, float]]]) -> tuple[Spread, ...]:
    """Return mean and spread of each value over the trainings of each group that has at least two.

    Args:
        values: for each training its group, and its values by key. Those without a group are left out.
    """
    found = []
    for group in dict.fromkeys(group for group, _ in values if group):
        rows = [row for other, row in values if other == group]
        for key in dict.fromkeys(key for row in rows for key in row):
            numbers = [row[key] for row in rows if key in row and math.isfinite(row[key])]
            if len(numbers) > 1:
                mean, std = statistics.fmean(numbers), statistics.stdev(numbers)
                found.append(Spread(group=group, key=key, count=len(numbers), mean=mean, std=std))
    return tuple(found)


def sweep_id(name: str, children: Sequence[Child]) -> str:
    """Return the id of a sweep: the same command finds its MLflow run again, wherever its storage is."""
    apart = {"storage", "ray", "tracking"}
    return f"{name}-{digest(sorted(digest(child.config.identity(apart)) for child in children))}"


def shared_keys(config: Config, *, assumed: bool = False) -> tuple[str, ...]:
    """Return what the stages of a config are told apart by: children in which it is equal train that stage once.

    These are the keys of the stages. Before the images are sharded, the listing of the source stands for them.

    Args:
        config: of a child.
        assumed: take the settings of `data` for the images, and look at nothing.

    Raises:
        ConfigError, StepError: the source or storage cannot be read.
    """
    shards, content, names = None, digest(config.data), tuple[str, ...]()
    if not assumed:
        with storage_settings(config.storage):
            source = open_source(config.data, config.storage.root)
            shards = find_shards(source, config.data, config.storage.root)
            content, names = shard_key(config.data, source), source.label_names
    shards = shards or ShardSet(
        uri="",
        fingerprint=content,
        num_images=0,
        resolutions=config.resolutions,
        label_names=names,
        num_rejected=0,
    )
    return stage_keys(config, shards)


def plan_sweep(children: Sequence[Child], *, images: int | None = None) -> SweepPlan:
    """Plan a sweep: what each child would do, and which stages they share; touches nothing.

    Args:
        children: the runs.
        images: as for `make_plan`.

    Raises:
        ConfigError, StepError: as `make_plan`, for any child.
    """
    planned, seen, cached, data = list[PlannedChild](), set[str](), set[str](), set[str]()
    for child in children:
        plan = make_plan(child.config, images=images)
        state = {step.name: step.state for step in plan.steps}
        keys = dict(
            zip(
                [f"train {stage.name}" for stage in stages(child.config)],
                shared_keys(child.config, assumed=images is not None),
                strict=True,
            )
        )
        shared = [name for name, key in keys.items() if key in seen and state[name] == "run"]
        content = digest(child.config.data)
        if content in data and state["shard"] == "run":
            shared.insert(0, "shard")
        cached |= {key for name, key in keys.items() if state[name] != "run"}
        seen |= set(keys.values())
        data.add(content)
        planned.append(PlannedChild(label=child.label, plan=plan, shared=tuple(shared)))
    total = sum(len(child.config.resolutions) for child in children)
    return SweepPlan(children=tuple(planned), stages=total, distinct=len(seen), cached=len(cached))


def facts_of_run(run: Run, report: Report, mlflow_run_id: str, aliases: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a sweep says of a run that has come to its end, as plain values.

    Args:
        run: in storage.
        report: of its evaluation.
        mlflow_run_id: that of MLflow.
        aliases: of its version in the registry.
    """
    hours = hours_by_stage(run)
    facts = report.model_dump(mode="json", include={"metrics", "intervals"})
    return facts | {
        "run_id": run.run_id,
        "mlflow_run_id": mlflow_run_id,
        "kimg": run.stages[-1].end_nimg / 1000,
        "train_seconds": 3600 * hours[-1][2] if len(hours) == len(run.stages) else None,
        "aliases": tuple(aliases),
    }


def finished_run(config: Config, shards: ShardSet) -> bool:
    """Return whether a run has come to its end, as far as its storage knows; asks neither source nor registry.

    Raises:
        DamagedError, StepError: as `Run`.
    """
    run = Run(config, shards)
    return (
        run.find_stage(run.stages[-1]) is not None
        and run.find_report() is not None
        and run.judged_version() is not None
    )
