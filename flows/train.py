"""The DAG: shard -> one task per resolution stage -> evaluate -> register -> gate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows import artifacts, killed_runs, tasks
from flows.killed_runs import FLOW_NAME
from stylegan.config.file import build, load
from stylegan.config.tree import Config
from stylegan.pipeline.steps import Pipeline, Summary
from stylegan.training.schedule import stages
from stylegan.training.state import Checkpoint
from stylegan.uris import redact

_FORMATTER = logging.Formatter()


def _run_name() -> str:
    config = flow_run.parameters.get("config")
    if isinstance(config, dict):
        return str(config.get("name"))
    return config.name if isinstance(config, Config) else Path(str(config)).stem


def _redacted(record: logging.LogRecord) -> bool:
    """Redact the secrets of URLs in a log record before Prefect stores it, also in the traceback of another library."""
    record.msg, record.args = redact(record.getMessage()), ()
    if record.exc_info:
        record.exc_text, record.exc_info = redact(_FORMATTER.formatException(record.exc_info)), None
    return True


def _checked(config: Config | dict[str, Any] | str, overrides: list[str]) -> Config:
    """Return the config with its overrides, checked by the same rules in whatever form it came."""
    if isinstance(config, str):
        return load(config, overrides)
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    return build(values, "config", overrides)


@flow(name=FLOW_NAME, flow_run_name=_run_name, persist_result=False, on_crashed=[killed_runs.show_stopped])
def train_flow(config: Config | dict[str, Any] | str, overrides: list[str] | None = None) -> Summary:
    """Turn images into a registered, judged model; go on where an earlier run of the same config stopped.

    Args:
        config: the config, its values as JSON has them, or the path of its YAML file; the last two in deployments.
        overrides: `key.path=value` strings on top of it.

    Raises:
        ConfigError: the config is not valid; nothing was started.
    """
    logging.getLogger("stylegan").setLevel(logging.INFO)
    for name in ("stylegan", "prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_redacted)
    killed_runs.tag_process()  # first, so that a run killed at any moment can be recognised
    killed_runs.end_killed_runs(FLOW_NAME)
    config = _checked(config, overrides or [])
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
