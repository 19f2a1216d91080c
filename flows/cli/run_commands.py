"""Commands on the config of a run: its plan, the whole DAG, single steps, and a check of its engines."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter

from flows.cli import console, reports
from flows.cli.arguments import AsJson, ConfigFile, Overrides, Whole, is_config_file
from flows.cli.console import print_json
from stylegan.config.file import load
from stylegan.errors import ConfigError, StepError


def plan(config: ConfigFile, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what `run` would do: the steps, cached or not and why, images, time and memory. Touches nothing."""
    from stylegan.pipeline.plan import make_plan

    settings = load(config, overrides or [])
    found = make_plan(settings)
    if as_json:
        print_json(found)
    else:
        console.print_plan(found, settings)


def run(config: ConfigFile, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run the whole DAG: shard, train every stage, evaluate, register, gate. The same command again goes on where it stopped."""
    settings = load(config, overrides or [])
    _quiet_prefect()
    from flows.prefect_server import api

    with api():
        from flows.train import train_flow

        summary = train_flow(settings)
    if as_json:
        print_json(summary)
    else:
        console.print_summary(settings, summary)


def shard(config: str, /, *, verify: bool = False, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run the first step alone: write images as WebDataset shards, or verify finished ones.

    Parameters
    ----------
    config
        YAML file of the run; with --verify also the URI of a set.
    verify
        Write nothing: read every byte of a finished set again and name what is damaged.
    """
    from flows.cli import datasets

    if verify:
        datasets.verify_shards(config, overrides or [], as_json=as_json)
        return
    done = datasets.make_shards(load(config, overrides or []))
    if as_json:
        print_json(done.record)
    else:
        datasets.print_shards(done.record, cached=done.cached)


def train(
    config: ConfigFile, /, *, until: Whole | None = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Train the stages, after sharding if that is not done yet.

    Parameters
    ----------
    until
        Stop after the stage of this resolution.
    """
    from stylegan.pipeline.steps import Pipeline

    settings = load(config, overrides or [])
    if until is not None and until not in settings.resolutions:
        raise ConfigError(f"--until {until}: no such stage; the stages are {', '.join(map(str, settings.resolutions))}")
    with Pipeline(settings) as pipeline:
        done = pipeline.train_until(settings.data.resolution if until is None else until)
    console.print_done(done, as_json)


def evaluate(
    model: str,
    /,
    *,
    metrics: str | None = None,
    config: Annotated[
        str | None,
        Parameter(help="Config that says what to compare a MODEL with, and how; unset: that of its own run."),
    ] = None,
    data: str | None = None,
    out: str | None = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure any model or images; with the YAML file of a run, run that step of its pipeline.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, models:/name@alias (or name@alias, name/3), a folder, .zip or URL of images,
        or a YAML file.
    metrics
        Names of metrics, such as fid,ppl; unset are those of the config. ppl is all four ppl_*.
    data
        Images to compare with instead: a folder, .zip or URL, or `digits`.
    out
        Folder for a copy of the report, its page and its figures: a path or any fsspec URL.
    """
    if is_config_file(model):
        _evaluate_run(
            model, {"--metrics": metrics, "--config": config, "--data": data, "--out": out}, overrides, as_json
        )
        return
    from stylegan.verbs.evaluate import Request, evaluate_model, parse_metrics

    names = parse_metrics(metrics) if metrics is not None else None
    found = evaluate_model(Request(model, names, config, data, tuple(overrides or ())), out)
    if as_json:
        print_json(found)
    else:
        reports.print_evaluation(found)


def _evaluate_run(config: str, others: dict[str, str | None], overrides: list[str] | None, as_json: bool) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(
            f"{given[0]}: is for a MODEL; {config} says it itself: use --set, such as --set evaluation.metrics=[fid]"
        )
    from stylegan.pipeline.steps import Pipeline

    with Pipeline(load(config, overrides or [])) as pipeline:
        done, published, page = pipeline.evaluate_trained()
    if as_json:
        print_json(done.record)
    else:
        reports.print_report(
            done.record,
            title=f"{config}{', taken from storage' if done.cached else ''}",
            published=published,
            page=page,
        )


def register(config: ConfigFile, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Register the evaluated model as challenger; the gate is left to `run`."""
    from stylegan.pipeline.steps import Pipeline

    with Pipeline(load(config, overrides or [])) as pipeline:
        done = pipeline.register_evaluated()
    console.print_done(done, as_json)


def doctor(config: ConfigFile | None = None, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check storage, Ray, MLflow, Prefect and the metrics' weights: what works, and what to do about the rest."""
    from flows.cli.doctor import examine

    settings = load(config, overrides or []) if config is not None else None
    examination = examine(settings)
    if as_json:
        print_json(examination)
    else:
        console.print_examination(examination)
    if not examination.ok:
        raise StepError("doctor: not everything works; the lines above say what to do")


def _quiet_prefect() -> None:
    """Keep Prefect's log off the terminal, which shows our own. Must be called before prefect is imported."""
    settings = {
        "PREFECT_LOGGING_EXTRA_LOGGERS": "stylegan",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
