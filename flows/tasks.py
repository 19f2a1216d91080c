"""The steps as Prefect tasks: each body is one call into the library.

Storage alone decides whether a step is done already (stylegan/pipeline/run.py); such a task run ends as `Cached`.
Prefect's own result cache stays off, since it cannot know that storage was emptied.
"""

from __future__ import annotations

import logging
import time
from typing import Any, TypeVar
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from flows.artifacts import publish_shards
from stylegan.data.shardset import ShardSet
from stylegan.errors import ExhaustedError, UnavailableError, UserError
from stylegan.evaluation.report import Report
from stylegan.pipeline.steps import Done, Pipeline
from stylegan.registry.gate import Verdict
from stylegan.registry.versions import ModelVersion
from stylegan.retry import patience
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import Checkpoint

R = TypeVar("R")
logger = logging.getLogger("stylegan")


# How often a step is tried again after a crash. After a server that does not answer, the patience decides; no other limit
# is reached then.
CRASHES, ATTEMPTS = 2, 2_100

_first_failures: dict[UUID, float] = {}  # task run -> time of its first failure


def _may_work_later(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether to try a step again.

    After a crash it is tried again, `CRASHES` times. After a server that does not answer it is tried again until
    `storage.patience_s` is over, counted from its first failure. What was waited for already is not tried again, nor is
    a user's mistake.
    """
    error = state.result(raise_on_failure=False)
    if not isinstance(error, UserError):
        return task_run.run_count <= CRASHES
    if not isinstance(error, UnavailableError) or isinstance(error, ExhaustedError):
        return False
    now = time.monotonic()
    left = _first_failures.setdefault(task_run.id, now) + patience() - now
    if left > 0:
        logger.warning("%s (trying again for another %.0f s)", error, left)
    return left > 0


OPTIONS: dict[str, Any] = {
    "retries": ATTEMPTS,
    "retry_delay_seconds": [5, 30, 60, 300],  # the last one for all further attempts
    "retry_condition_fn": _may_work_later,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


def _state(done: Done[Any]) -> Any:
    if done.record is None:
        return Completed(name="Cached", message="not needed: a later stage has gone beyond it")
    if done.cached:
        return Completed(name="Cached", message="taken from storage", data=done.record)
    return done.record


@task(name="shard", task_run_name="shard", **OPTIONS)
def shard(pipeline: Pipeline) -> ShardSet:
    """Write images as WebDataset shards; card, rejects and a sheet of images become artifacts."""
    done = pipeline.shard(then=stages(pipeline.config), to_end=True)
    publish_shards(done.record)
    return _state(done)


@task(name="train", task_run_name="train {stage.name}", **OPTIONS)
def train(pipeline: Pipeline, shards: ShardSet, stage: Stage, previous: Checkpoint | None) -> Checkpoint | None:
    """Train one resolution stage as a Ray Train run; None if nothing needs it any more."""
    return _state(pipeline.train(shards, stage, previous))


@task(name="evaluate", task_run_name="evaluate", **OPTIONS)
def evaluate(pipeline: Pipeline, shards: ShardSet, checkpoint: Checkpoint) -> Report:
    """Measure the last checkpoint: FID, PPL, separability or whatever the config asks for."""
    return _state(pipeline.evaluate(shards, checkpoint))


@task(name="register", task_run_name="register", **OPTIONS)
def register(pipeline: Pipeline, shards: ShardSet, checkpoint: Checkpoint, report: Report) -> ModelVersion:
    """Register a version in the MLflow registry, as challenger."""
    return _state(pipeline.register(shards, checkpoint, report))


@task(name="gate", task_run_name="gate", **OPTIONS)
def gate(pipeline: Pipeline, shards: ShardSet, version: ModelVersion, report: Report) -> Verdict:
    """Decide whether the version becomes champion."""
    return _state(pipeline.gate(shards, version, report))


def call(step: Task[..., R], *arguments: Any) -> R:
    """Run a task and return its record, also if it ended as `Cached` (Prefect then returns the state, not the record)."""
    result: Any = step(*arguments)
    record: R = result.result() if isinstance(result, State) else result
    return record
