"""The steps as Prefect tasks: each body is one call into the library."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import Completed

from flows import outage
from flows.artifacts import publish_shards
from flows.attempts import OPTIONS
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.report import Report
from stylegan.pipeline.steps import Done, Pipeline
from stylegan.registry.gate import Verdict
from stylegan.registry.versions import ModelVersion
from stylegan.training.schedule import Stage, stages
from stylegan.training.state import Checkpoint


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
    outage.when_there("the artifacts of this data set", lambda: publish_shards(done.record))
    return _state(done)


@task(name="shard", task_run_name="shard", **OPTIONS)
def take_shards(pipeline: Pipeline, shards: ShardSet) -> ShardSet:
    """Go on with the shards of a run that was begun before."""
    return _state(pipeline.take(shards, then=stages(pipeline.config)))


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
