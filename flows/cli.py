"""The `stylegan` command. Results go to standard output, everything else to standard error.

Exit codes: 0 done (also when the gate says no), 1 a step failed, 2 bad usage or config.
Imports of heavy libraries wait until a command needs them.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from pydantic import BaseModel

from flows import console, reports
from stylegan.config import Config
from stylegan.config_file import load
from stylegan.errors import ConfigError, StepError, UserError

app = App(
    name="stylegan",
    version=lambda: version("stylegan-pipeline"),
    help="Train, evaluate and register StyleGAN as a workflow. CONFIG is a YAML file such as configs/quickstart.yaml.",
)

ConfigFile = Annotated[str, Parameter(help="YAML file of the run, such as configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, Parameter(name=["--set", "-s"], negative="", help="Override a value of the config: key.path=value. Repeatable.")
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the record as one JSON line on standard output.")]
Registry = Annotated[str | None, Parameter(name="--config", help="Config whose MLflow registry is meant; unset is MLFLOW_TRACKING_URI.")]


@app.command
def plan(config: ConfigFile, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what `run` would do: the steps, cached or not and why, images, time and memory. Touches nothing."""
    from stylegan.plan import make_plan

    found = make_plan(load(config, overrides or []))
    if as_json:
        _print_json(found)
    else:
        console.print_plan(found)


@app.command
def run(config: ConfigFile, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run the whole DAG: shard, train every stage, evaluate, register, gate. The same command again goes on where it stopped."""
    settings = load(config, overrides or [])
    _quiet_prefect()
    from flows.server import api

    with api():
        from flows.train import train_flow

        summary = train_flow(settings)
    if as_json:
        _print_json(summary)
    else:
        console.print_summary(settings, summary)


@app.command
def shard(config: str, /, *, verify: bool = False, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Only the first step: images to WebDataset shards, or the proof that finished ones are whole.

    Parameters
    ----------
    config
        YAML file of the run; with --verify also the URI of a set.
    verify
        Make nothing: read every byte of a finished set again and name what is damaged.
    """
    from flows import datasets

    if verify:
        datasets.verify_shards(config, overrides or [], as_json=as_json)
        return
    done = datasets.make_shards(load(config, overrides or []))
    _print_json(done.record) if as_json else datasets.print_shards(done.record, cached=done.cached)


@app.command
def train(config: ConfigFile, /, *, until: int | None = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train the stages (sharding first if need be).

    Parameters
    ----------
    until
        Stop after the stage of this resolution.
    """
    from stylegan.steps import Pipeline

    settings = load(config, overrides or [])
    if until is not None and until not in settings.resolutions:
        raise ConfigError(f"--until {until}: no such stage; the stages are {', '.join(map(str, settings.resolutions))}")
    with Pipeline(settings) as pipeline:
        done = pipeline.train_until(until or settings.data.resolution)
    _print_done(done, as_json)


@app.command
def evaluate(
    model: str,
    /,
    *,
    metrics: str | None = None,
    config: Annotated[str | None, Parameter(help="Config that says what to compare a MODEL with, and how; unset is its own run's.")] = None,
    data: str | None = None,
    out: str | None = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure any model or images; with the YAML file of a run, do that run's own step of the pipeline.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, models:/name@alias (or name@alias, name/3), a folder, .zip or URL of images, or a YAML file.
    metrics
        Names of metrics, such as fid,ppl; unset are those of the config. ppl is all four ppl_*.
    data
        Images to compare with instead: a folder, .zip or URL, or `digits`.
    out
        Folder for a copy of the report, its page and its figures.
    """
    if is_config(model):
        _evaluate_run(model, {"--metrics": metrics, "--config": config, "--data": data, "--out": out}, overrides, as_json)
        return
    from stylegan.evaluating import Request, evaluate_model, parse_metrics

    names = parse_metrics(metrics) if metrics is not None else None
    found = evaluate_model(Request(model, names, config, data, tuple(overrides or ())), out)
    if as_json:
        _print_json(found)
    else:
        reports.print_evaluation(found)


def is_config(model: str) -> bool:
    """Whether the argument of `evaluate` is the YAML file of a run."""
    return model.endswith((".yaml", ".yml")) and not os.path.isdir(model)


def _evaluate_run(config: str, others: dict[str, str | None], overrides: list[str] | None, as_json: bool) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(f"{given[0]}: is for a MODEL; {config} says it itself: use --set, such as --set evaluation.metrics=[fid]")
    from stylegan.steps import Pipeline

    with Pipeline(load(config, overrides or [])) as pipeline:
        done, published, page = pipeline.evaluate_trained()
    if as_json:
        _print_json(done.record)
    else:
        reports.print_report(done.record, title=f"{config}{', taken from storage' if done.cached else ''}", published=published, page=page)


@app.command
def register(config: ConfigFile, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Register the evaluated model as challenger; the gate is left to `run`."""
    from stylegan.steps import Pipeline

    with Pipeline(load(config, overrides or [])) as pipeline:
        done = pipeline.register_evaluated()
    _print_done(done, as_json)


@app.command
def sample(
    model: str,
    /,
    *,
    seeds: str = "0-15",
    psi: float | None = None,
    label: str | None = None,
    out: Path = Path("grid.png"),
    config: Registry = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw a grid of images.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    seeds
        One image each: numbers and ranges, such as 0-15 or 1,5,9-12.
    psi
        Truncation: 1 or unset is off, smaller is more typical and less varied.
    label
        Class (name or number) of a class-conditional model; unset takes all in turn.
    out
        PNG file to write.
    """
    from stylegan import sampling

    settings = _registry_config(config, overrides)
    record = sampling.sample(settings, model, seeds=sampling.parse_seeds(seeds), psi=psi, label=label, out=str(out))
    _print_json(record) if as_json else print(f"{record.num_images} images of {record.checkpoint_uri} in {record.path}")


@app.command
def import_weights(official: str, /, *, out: str, as_json: AsJson = False) -> None:
    """Turn an official StyleGAN v1 pickle into a folder that every verb reads like a checkpoint.

    Parameters
    ----------
    official
        Path or URL of the .pkl file.
    out
        URI of the folder to write; new or empty.
    """
    from stylegan import exchange

    record = exchange.import_weights(official, out)
    _print_json(record) if as_json else print(f"{', '.join(record.files)} of {record.resolution}x{record.resolution} in {record.uri}")


@app.command
def export(model: str, /, *, out: str, config: Registry = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Write the averaged generator into one file for other programs.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    out
        File to write: .safetensors, or .onnx (inputs z, labels if conditional, and psi; needs the extra `onnx`).
    """
    from stylegan import exchange

    record = exchange.export(_registry_config(config, overrides), model, out)
    _print_json(record) if as_json else print(f"{record.checkpoint_uri} in {record.path}, {record.num_bytes:,} bytes")


@app.command
def promote(
    name: str, /, *, version: str | None = None, config: Registry = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Make a version champion (the old one becomes `previous`).

    Parameters
    ----------
    name
        Registered model.
    version
        Its version; unset is the challenger.
    """
    from stylegan.registry import store

    _print_version(store.promote(_tracking_uri(config, overrides), name, version=version), as_json)


@app.command
def rollback(name: str, /, *, config: Registry = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Make the previous champion champion again."""
    from stylegan.registry import store

    _print_version(store.rollback(_tracking_uri(config, overrides), name), as_json)


@app.command
def doctor(config: ConfigFile | None = None, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check storage, Ray, MLflow, Prefect and the metric's weights: what works, and what to do about the rest."""
    from flows.doctor import examine

    settings = load(config, overrides or []) if config else None
    examination = examine(settings)
    if as_json:
        _print_json(examination)
    else:
        console.print_examination(examination)
    if not examination.ok:
        raise StepError("doctor: not everything works; the lines above say what to do")


def _registry_config(config: str | None, overrides: list[str] | None) -> Config | None:
    if config is None and overrides:
        raise ConfigError("--set needs --config FILE here, the config whose values it changes")
    return load(config, overrides or []) if config else None


def _tracking_uri(config: str | None, overrides: list[str] | None) -> str:
    from stylegan import tracking

    settings = _registry_config(config, overrides)
    uri = tracking.resolve_uri(settings) if settings else os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError("no MLflow registry is named: give --config FILE or set MLFLOW_TRACKING_URI")
    tracking.check_server(uri)
    return uri


def _quiet_prefect() -> None:
    """The terminal shows our own log; Prefect's goes to its server only. Must come before prefect is imported."""
    settings = {
        "PREFECT_LOGGING_EXTRA_LOGGERS": "stylegan",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _print_json(record: BaseModel) -> None:
    print(json.dumps(record.model_dump(mode="json")), flush=True)


def _print_done(done: Any, as_json: bool) -> None:
    if as_json:
        _print_json(done.record)
    else:
        console.print_record(done.record, done.cached)


def _print_version(version: Any, as_json: bool) -> None:
    _print_json(version) if as_json else print(f"{version.name} version {version.version}: {', '.join(version.aliases) or 'no alias'}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        with console.logging_to_terminal():
            app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        console.print_error(f"{' '.join(str(error).split())} (see stylegan --help)")
        return 2
    except ConfigError as error:
        console.print_error(str(error))
        return 2
    except UserError as error:
        console.print_error(str(error))
        return 1
    except KeyboardInterrupt:
        console.print_error("interrupted; the same command goes on from the newest checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
