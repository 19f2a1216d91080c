"""The DAG: shard -> one task per resolution stage -> evaluate -> register -> gate."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect import Flow, flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import Pending

from flows import artifacts, outage, tasks
from flows.attempts import call
from flows.beginning import begin, flow_name_of
from flows.children import ChildRequest
from flows.killed_runs import FLOW_NAME, MEASURE_FLOW_NAME, show_stopped
from stylegan.config.file import build, load
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.pipeline.run import Run
from stylegan.pipeline.steps import Pipeline, Summary
from stylegan.pipeline.sweep import facts_of_run, with_overrides
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint


def _checked(config: Config | dict[str, Any] | str, overrides: list[str]) -> Config:
    """Return the config with its overrides, checked by the same rules in whatever form it came."""
    if isinstance(config, str):
        return load(config, overrides)
    if isinstance(config, Config):
        return with_overrides(config, overrides)
    return build(config, "config", overrides)


@flow(name=FLOW_NAME, flow_run_name=flow_name_of, persist_result=False, on_crashed=[show_stopped])
def train_flow(
    config: Config | dict[str, Any] | str, overrides: list[str] | None = None, parent: str | None = None
) -> Summary:
    """Turn images into a registered, judged model; go on where an earlier run of the same config stopped.

    Args:
        config: the config, its values as JSON has them, or the path of its YAML file; the last two in deployments.
        overrides: `key.path=value` strings on top of it.
        parent: MLflow's id of the run that its own is shown below, such as that of a sweep.

    Raises:
        ConfigError: the config is not valid; nothing was started.
    """
    with outage.surviving():
        begin()
        with Pipeline(_checked(config, overrides or []), parent=parent) as pipeline:
            return run_steps(pipeline, call(tasks.shard, pipeline))


@flow(name=MEASURE_FLOW_NAME, flow_run_name=flow_name_of, persist_result=False, on_crashed=[show_stopped])
def measure_flow(config: Config, parent: str | None = None) -> dict[str, Any]:
    """Train and evaluate, and leave the registry alone; `train_flow` of the same config does the rest.

    Args:
        config: as for `train_flow`.
        parent: as for `train_flow`.

    Returns:
        What `facts_of_run` says of it.
    """
    with outage.surviving():
        begin()
        with Pipeline(config, parent=parent) as pipeline:
            shards = call(tasks.shard, pipeline)
            *_, last = train_stages(pipeline, shards)
            report = call(tasks.evaluate, pipeline, shards, last)
            return facts_of_run(pipeline.run(shards), report, pipeline.tracked(shards).mlflow_run_id)


def run_child(config: Config, request: ChildRequest) -> dict[str, Any]:
    """Do a run of a sweep in this process, shown below the flow run of the sweep; return its facts.

    Args:
        config: of `request`.
        request: what to do of it.
    """
    chosen: Flow[..., Any] = train_flow if request.to == "gate" else measure_flow
    with tags(request.tag):
        done: Any = run_flow(chosen, flow_run=_below(chosen, config, request), parameters=_parameters(config, request))
    if not isinstance(done, Summary):
        return dict(done)
    return facts_of_run(Run(config, done.shards), done.report, done.mlflow_run_id, done.version.aliases)


def _parameters(config: Config, request: ChildRequest) -> dict[str, Any]:
    return {"config": config, "parent": request.parent}


def _below(chosen: Flow[..., Any], config: Config, request: ChildRequest) -> FlowRun | None:
    """Create the flow run of a child below that of its sweep; None if the server is away, so that it gets one of its own."""
    if request.task_run is None:
        return None
    with suppress(Exception), get_client(sync_client=True) as client:
        return client.create_flow_run(
            chosen,
            name=config.name,
            parameters=chosen.serialize_parameters(_parameters(config, request)),
            parent_task_run_id=UUID(request.task_run),
            state=Pending(),
            tags=[request.tag],
        )
    return None


def run_steps(pipeline: Pipeline, shards: ShardSet) -> Summary:
    """Do all steps after sharding as tasks of the present flow run, and return their summary."""
    checkpoints = train_stages(pipeline, shards)
    report = call(tasks.evaluate, pipeline, shards, checkpoints[-1])
    version = call(tasks.register, pipeline, shards, checkpoints[-1], report)
    verdict = call(tasks.gate, pipeline, shards, version, report)
    summary = pipeline.summarize(shards, checkpoints, report, version, verdict)
    outage.when_there("the artifacts of this run", lambda: artifacts.publish_run(pipeline.config, summary))
    return summary


def train_stages(pipeline: Pipeline, shards: ShardSet) -> list[Checkpoint | None]:
    """Train all stages, and return their ends; None for those that nothing needs any more."""
    checkpoints: list[Checkpoint | None] = [None]
    for stage in stages(pipeline.config):
        checkpoints.append(call(tasks.train, pipeline, shards, stage, checkpoints[-1]))
    return checkpoints
