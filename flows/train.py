"""The DAG: shard -> one task per resolution stage -> evaluate -> register -> gate."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows import artifacts, outage, tasks
from flows.attempts import call
from flows.beginning import begin, flow_name_of
from flows.killed_runs import FLOW_NAME, show_stopped
from stylegan.config.file import build, load
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.pipeline.steps import Pipeline, Summary
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint


def _checked(config: Config | dict[str, Any] | str, overrides: list[str]) -> Config:
    """Return the config with its overrides, checked by the same rules in whatever form it came."""
    if isinstance(config, str):
        return load(config, overrides)
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    return build(values, "config", overrides)


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


def run_steps(pipeline: Pipeline, shards: ShardSet) -> Summary:
    """Do all steps after sharding as tasks of the present flow run, and return their summary."""
    checkpoints: list[Checkpoint | None] = [None]
    for stage in stages(pipeline.config):
        checkpoints.append(call(tasks.train, pipeline, shards, stage, checkpoints[-1]))
    report = call(tasks.evaluate, pipeline, shards, checkpoints[-1])
    version = call(tasks.register, pipeline, shards, checkpoints[-1], report)
    verdict = call(tasks.gate, pipeline, shards, version, report)
    summary = pipeline.summarize(shards, checkpoints, report, version, verdict)
    outage.when_there("the artifacts of this run", lambda: artifacts.publish_run(summary))
    return summary
