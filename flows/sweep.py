"""The flow of many runs: a parent run in MLflow, and below it a child for each config, every one an ordinary run.

What is done is known from storage alone: a sweep that is repeated takes finished children from there, and the others go
on from their checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from prefect import flow, task
from pydantic import computed_field

from flows import outage
from flows.attempts import OPTIONS, call
from flows.beginning import begin
from flows.children import Children, SweptChild, described
from flows.killed_runs import SWEEP_FLOW_NAME as FLOW_NAME
from flows.killed_runs import show_stopped
from stylegan import storage
from stylegan.cluster.session import ray_session
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError, UserError, decoration
from stylegan.pipeline import lock
from stylegan.pipeline.run import Run
from stylegan.pipeline.steps import Pipeline
from stylegan.pipeline.sweep import Child, Spread, facts_of_run, finished_run, spreads, sweep_id
from stylegan.records import Record, digest
from stylegan.retry import storage_settings
from stylegan.tracking.open_run import open_run
from stylegan.tracking.runs import TrackedRun
from stylegan.verbs.compare import MOST_RUNS, compare, read_runs
from stylegan.verbs.comparison_page import comparison_page, log_compared
from stylegan.verbs.forgetting import compared_picture

logger = logging.getLogger("stylegan")
POLL_SECONDS = 0.5  # between two looks at the processes
READY_SECONDS = 5.0  # between two looks at the stages in storage


class Swept(Record):
    """What a sweep has done: its id, MLflow's id of its parent run, and its children in order."""

    sweep_id: str
    parent: str
    children: tuple[SweptChild, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spreads(self) -> tuple[Spread, ...]:
        """Mean and spread of each value over trainings that differ in their seeds alone."""
        return spreads([(child.group, child.metrics) for child in self.children])

    @property
    def failed(self) -> tuple[SweptChild, ...]:
        """The children that failed."""
        return tuple(child for child in self.children if child.state == "failed")


def sweep_flow(name: str, children: Sequence[Child], *, at_once: int | None = None) -> Swept:
    """Do the runs of a sweep, as many at once as there is room for; the failure of one does not end the others.

    Args:
        name: of the sweep; with the configs of its children it decides its MLflow run.
        children: as `make_children` returns them, or one's own; they share storage, tracking and Ray.
        at_once: most children that run at the same time; unset: as many as there is room for.

    Raises:
        ConfigError, StepError: storage, MLflow or Ray cannot be used.
        LockedError: the same sweep is under way elsewhere.
    """

    @flow(name=FLOW_NAME, flow_run_name="{name}", persist_result=False, on_crashed=[show_stopped])
    def run_sweep(name: str, runs: list[str]) -> Swept:
        with outage.surviving():
            begin()
            key = sweep_id(name, children)
            with opened(children[0].config, key) as parent:
                ended = run_children(children, parent.mlflow_run_id, at_once)
                log_comparison(children[0].config, ended, parent)
                if any(child.state == "failed" for child in ended):
                    parent.finish("FAILED")
        return Swept(sweep_id=key, parent=parent.mlflow_run_id, children=ended)

    done: Swept = run_sweep(name, [child.label for child in children])
    return done


@contextmanager
def opened(config: Config, key: str) -> Iterator[TrackedRun]:
    """Hold what the children of a sweep share: its lock, the session of Ray, and the parent run in MLflow, which is yielded.

    Args:
        config: names storage, MLflow and Ray; it is the config of the parent run.
        key: the id of the sweep.

    Raises:
        ConfigError, StepError: storage or MLflow cannot be used.
        LockedError: the same sweep is under way elsewhere.
    """
    root = storage.absolute(config.storage.root)
    with (
        storage_settings(config.storage),
        lock.hold(root, f"sweep-{key}", run_id=key, what="stylegan sweep"),
        ray_session(),
    ):
        parent = open_run(config, key, None)
        parent.start()
        try:
            yield parent
        except BaseException as error:
            if not isinstance(error, lock.LostError):  # otherwise the new holder goes on with it
                with suppress(StepError):  # the error of the block is the one to report
                    parent.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        parent.finish("FINISHED")


def log_comparison(config: Config, ended: Sequence[SweptChild], parent: TrackedRun) -> None:
    """Log the page that compares the runs of a sweep as an artifact of its run: the first of them, as many as one page has.

    Args:
        config: names storage and MLflow.
        ended: the children, of which those that are done are compared.
        parent: the run of the sweep.
    """
    done = list(dict.fromkeys(child.run_id for child in ended if child.state == "done" and child.run_id))
    if len(done) < 2:
        return
    with decoration("the comparison of the runs in MLflow"):
        runs = read_runs(config, done[:MOST_RUNS])
        page, picture = comparison_page(runs, compare(runs)), compared_picture(runs)
        log_compared(parent.uri, parent.mlflow_run_id, page, picture)


@task(name="shard", task_run_name="shard", **OPTIONS)
def shard(config: Config) -> ShardSet:
    """Write the images that several children are trained on, once, before any of them begins."""
    with Pipeline(config) as pipeline:
        return pipeline.shard().record


def shard_all(children: Sequence[Child]) -> tuple[dict[str, ShardSet], dict[str, SweptChild]]:
    """Write the images of all children; return the sets, and those children that have none, by label."""
    sets, failures = dict[str, ShardSet | UserError](), dict[str, SweptChild]()
    found = dict[str, ShardSet]()
    for child in children:
        content = digest(child.config.data)
        if content not in sets:
            try:
                sets[content] = call(shard, child.config)
            except UserError as error:
                sets[content] = error
        one = sets[content]
        if isinstance(one, UserError):
            why, kind = str(one), type(one).__name__
            failures[child.label] = SweptChild(**described(child), state="failed", why=why, error=kind)
        else:
            found[child.label] = one
    return found, failures


def run_children(children: Sequence[Child], parent: str, at_once: int | None = None) -> tuple[SweptChild, ...]:
    """Run children to their end, and return what has become of each, in order. Call it in a flow, in a block of `opened`.

    Args:
        children: the runs.
        parent: MLflow's id of the run of the sweep.
        at_once: as for `sweep_flow`.
    """
    shards, ended = shard_all(children)
    waiting = []
    for child in children:
        if child.label in ended:
            logger.warning("%s: failed: %s", child.label, ended[child.label].why)
        elif done := _taken(child, shards[child.label], parent):
            logger.info("%s: taken from storage", child.label)
            ended[child.label] = done
        else:
            waiting.append(child)
    crew = Children(parent, f"sweep:{parent}", at_once=at_once)
    stages = Stages({child.label: Run(child.config, shards[child.label]) for child in waiting})
    try:
        while waiting or crew.running:
            ended |= {child.label: one for child, one in crew.take_ended()}
            _start_next(waiting, crew, stages)
            time.sleep(POLL_SECONDS)
    except BaseException:
        crew.stop()
        raise
    return tuple(ended[child.label] for child in children)


def _start_next(waiting: list[Child], crew: Children, stages: Stages) -> None:
    """Start the first child that waits and can use the room that there is, if there is any."""
    if not waiting or not crew.has_room(waiting[0]):
        return
    free = stages.first_free([child.label for child in waiting], [child.label for child in crew.running])
    if free is not None:
        child = next(one for one in waiting if one.label == free)
        waiting.remove(child)
        crew.start(child)


class Stages:
    """Know by which unfinished stages children are in each other's way: one stage is trained by one of them."""

    def __init__(self, runs: dict[str, Run]) -> None:
        self.runs = runs
        self._finished = set[str]()
        self._looked = float("-inf")  # when

    def first_free(self, waiting: Sequence[str], running: Sequence[str]) -> str | None:
        """Return the first of `waiting` whose run and whose next stage none of `running` has; None if all have to wait.

        Storage is looked at every `READY_SECONDS`, and else the answer is None.
        """
        if running and time.monotonic() - self._looked < READY_SECONDS:
            return None
        self._looked = time.monotonic()
        taken = {key for label in running if (key := self._next(label))}
        runs = {self.runs[label].run_id for label in running}
        for label in waiting:
            if self._next(label) not in taken and self.runs[label].run_id not in runs:
                return label
        return None

    def _next(self, label: str) -> str | None:
        """Return the key of the first stage of a child that is not finished, None if all are."""
        run = self.runs[label]
        for stage in run.stages:
            key = run.stage_key(stage)
            if key in self._finished:
                continue
            with suppress(UserError):  # the child itself reports what cannot be read
                if run.find_stage(stage) is not None:
                    self._finished.add(key)
                    continue
            return key
        return None


def _taken(child: Child, shards: ShardSet, parent: str) -> SweptChild | None:
    """Return a finished child from storage, None if something is left to do."""
    with suppress(UserError):  # its own process reports it
        if finished_run(child.config, shards):
            with Pipeline(child.config, parent=parent) as pipeline:
                if summary := pipeline.repeat():
                    run = pipeline.run(summary.shards)
                    facts = facts_of_run(run, summary.report, summary.mlflow_run_id, summary.version.aliases)
                    return SweptChild(**described(child), **facts, state="done", cached=True)
    return None
