"""The DAG: shard -> one task per resolution stage -> evaluate -> register -> gate."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows import artifacts, killed_runs, tasks
from stylegan.config.file import load
from stylegan.config.tree import Config
from stylegan.pipeline.steps import Pipeline, Summary
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint

FLOW_NAME = "stylegan-train"


def _run_name() -> str:
    config = flow_run.parameters.get("config")
    return config.name if isinstance(config, Config) else Path(str(config)).stem


@flow(name=FLOW_NAME, flow_run_name=_run_name, persist_result=False)
def train_flow(config: Config | str, overrides: list[str] | None = None) -> Summary:
    """Turn images into a registered, judged model; go on where an earlier run of the same config stopped.

    Args:
        config: the config, or the path of its YAML file (as in a deployment).
        overrides: `key.path=value` strings on top of a YAML file.
    """
    logging.getLogger("stylegan").setLevel(logging.INFO)
    killed_runs.tag_process()  # first, so that a run killed at any moment can be recognised
    killed_runs.end_killed_runs(FLOW_NAME)
    if isinstance(config, str):
        config = load(config, overrides or [])
    with Pipeline(config) as pipeline:
        shards = tasks.call(tasks.shard, pipeline)
        checkpoints: list[Checkpoint | None] = [None]
        for stage in stages(config):
            checkpoints.append(tasks.call(tasks.train, pipeline, shards, stage, checkpoints[-1]))
        report = tasks.call(tasks.evaluate, pipeline, shards, checkpoints[-1])
        version = tasks.call(tasks.register, pipeline, shards, checkpoints[-1], report)
        verdict = tasks.call(tasks.gate, pipeline, shards, version, report)
        summary = pipeline.summarize(shards, checkpoints, report, version, verdict)
    artifacts.publish_run(summary)
    return summary
