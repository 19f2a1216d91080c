"""The DAG: shard -> one task per resolution stage -> evaluate -> register -> gate."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from flows import hooks, tasks
from stylegan.config import Config
from stylegan.config_file import load
from stylegan.data.shards import ShardSet
from stylegan.evaluation.report import Report
from stylegan.registry.gate import Verdict
from stylegan.registry.store import ModelVersion
from stylegan.steps import Pipeline
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint

FLOW_NAME = "stylegan-train"


class Summary(BaseModel):
    """What a run has made; `grid` and `page` are the URIs of the last sample grid and of the report to read."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    mlflow_run_id: str
    shards: ShardSet
    checkpoints: tuple[Checkpoint, ...]
    stages: tuple[dict[str, float], ...]  # the last point of each stage's curves
    report: Report
    version: ModelVersion
    verdict: Verdict
    grid: str
    page: str


def _run_name() -> str:
    config = flow_run.parameters.get("config")
    return config.name if isinstance(config, Config) else Path(str(config)).stem


@flow(name=FLOW_NAME, flow_run_name=_run_name, persist_result=False)
def train_flow(config: Config | str, overrides: list[str] | None = None) -> Summary:
    """From images to a registered, judged model; goes on where an earlier run of the same config stopped.

    Args:
        config: the config, or the path of its YAML file (as a deployment gives it).
        overrides: `key.path=value` strings on top of a YAML file.
    """
    logging.getLogger("stylegan").setLevel(logging.INFO)
    hooks.tag_process()  # first, so that this run can be told to be killed whenever that happens
    hooks.end_killed_runs(FLOW_NAME)
    if isinstance(config, str):
        config = load(config, overrides or [])
    with Pipeline(config) as pipeline:
        shards = tasks.call(tasks.shard, pipeline)
        checkpoints: list[Checkpoint] = []
        for stage in stages(config):
            checkpoints.append(tasks.call(tasks.train, pipeline, shards, stage, checkpoints[-1] if checkpoints else None))
        report = tasks.call(tasks.evaluate, pipeline, shards, checkpoints[-1])
        version = tasks.call(tasks.register, pipeline, shards, checkpoints[-1], report)
        verdict = tasks.call(tasks.gate, pipeline, shards, version, report)
        facts = pipeline.summarize(shards, version)
    summary = Summary(**facts, shards=shards, checkpoints=tuple(checkpoints), report=report, verdict=verdict)
    hooks.publish_artifacts(summary)
    return summary
