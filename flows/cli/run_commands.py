"""Commands on the config of a run: its plan, the whole DAG, single steps, and a check of its engines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flows.cli import console
from flows.cli.arguments import (
    AnyFile,
    AsJson,
    ConfigFile,
    Number,
    Overrides,
    Whole,
    is_config_file,
    load,
    parse_metrics,
    ray_cluster,
)
from flows.cli.console import print_json
from stylegan.errors import ConfigError, StepError

if TYPE_CHECKING:
    from stylegan.config.tree import Config
    from stylegan.pipeline.steps import Summary


def plan(
    config: ConfigFile,
    /,
    *,
    images: Whole | None = None,
    price_per_gpu_hour: Number | None = None,
    scheduled: bool = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what `run` would do: the steps, cached or not and why, images, time, GPU-hours and memory. Touches nothing.

    Parameters
    ----------
    images
        Assume so many images and that nothing is done yet, without looking: for data that cannot be reached from here.
    price_per_gpu_hour
        Price of an hour of one GPU, in any currency: what each step costs, and all of them.
    scheduled
        Predict what `retrain` would decide now, by which rule, from which weights it would start, and what it would do.

    Examples
    --------
    stylegan plan configs/quickstart.yaml
    stylegan plan faces.yaml --set data.resolution=64
    stylegan plan configs/ffhq-1024.yaml --images 70000 --price-per-gpu-hour 2.5
    stylegan plan faces.yaml --scheduled
    """
    settings = load(config, overrides)
    if scheduled and images is not None:
        raise ConfigError(
            f"--images {images} with --scheduled: the schedule looks at the images that are there; leave it out"
        )
    if images is not None and images < 1:
        raise ConfigError(f"--images {images}: must be at least 1")
    if price_per_gpu_hour is not None and not 0 <= price_per_gpu_hour <= 1e6:
        raise ConfigError(f"--price-per-gpu-hour {price_per_gpu_hour:g}: must be from 0 to 1,000,000")
    decision = None
    if scheduled:
        from flows import notify
        from stylegan.pipeline.retraining import predict

        notify.check_urls(settings)
        decision, settings = predict(settings)
        if not decision.train:
            console.print_result(decision, f"skip: {decision.reason}", as_json)
            return
    from stylegan.pipeline.plan import make_plan

    found = make_plan(settings, images=images).model_copy(update={"decision": decision})
    if price_per_gpu_hour is not None:
        found = found.priced(price_per_gpu_hour)
    if as_json:
        print_json(found)
    else:
        console.print_plan(found, settings)


def run(config: ConfigFile, /, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run the whole DAG: shard, train every stage, evaluate, register, gate. The same command again goes on where it stopped.

    Examples
    --------
    stylegan run configs/quickstart.yaml
    stylegan run faces.yaml --set data.source=/data/faces --set ray.workers=2
    """
    settings = load(config, overrides)
    quiet_prefect()
    from flows.prefect_server import api

    summary = _repeat(settings)
    if summary is None:
        with api(meanwhile=import_engines):
            from flows.train import train_flow

            summary = train_flow(settings)
    if as_json:
        print_json(summary)
    else:
        console.print_summary(settings, summary)


def shard(config: AnyFile, /, *, verify: bool = False, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run the first step alone: write images as WebDataset shards, or verify finished ones.

    Parameters
    ----------
    config
        YAML file of the run; with --verify also the URI of a set.
    verify
        Write nothing: read every byte of a finished set again and name what is damaged.

    Examples
    --------
    stylegan shard configs/quickstart.yaml
    stylegan shard configs/quickstart.yaml --verify
    """
    settings = None if verify else load(config, overrides)
    from flows.cli import datasets

    if settings is None:
        datasets.verify_shards(config, overrides or [], as_json=as_json)
        return
    done = datasets.make_shards(settings)
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

    Examples
    --------
    stylegan train configs/quickstart.yaml --until 8
    """
    settings = load(config, overrides)
    if until is not None and until not in settings.resolutions:
        raise ConfigError(f"--until {until}: no such stage; the stages are {', '.join(map(str, settings.resolutions))}")
    from stylegan.pipeline.steps import Pipeline
    from stylegan.retry import insist

    with Pipeline(settings) as pipeline:
        done = insist(lambda: pipeline.train_until(settings.data.resolution if until is None else until))
    console.print_done(done, as_json)


def evaluate(
    model: AnyFile,
    /,
    *,
    metrics: str | None = None,
    config: AnyFile | None = None,
    data: AnyFile | None = None,
    out: AnyFile | None = None,
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
    config
        Config that says what to compare a MODEL with, and how; unset: that of its own run.
    data
        Images to compare with instead: a folder, .zip or URL, or `digits`.
    out
        Folder for a copy of the report, its page, its figures and the directions of attributes: a path or any fsspec URL.

    Examples
    --------
    stylegan evaluate configs/quickstart.yaml
    stylegan evaluate faces@champion --config faces.yaml --metrics fid,pr
    stylegan evaluate /data/drawn --data /data/faces
    """
    if is_config_file(model):
        _evaluate_run(
            model, {"--metrics": metrics, "--config": config, "--data": data, "--out": out}, overrides, as_json
        )
        return
    names = parse_metrics(metrics) if metrics is not None else None
    from flows.cli import reports
    from stylegan.verbs.evaluate import Request, evaluate_model

    found = evaluate_model(Request(model, names, config, data, tuple(overrides or ())), out)
    if as_json:
        print_json(found)
    else:
        reports.print_evaluation(found)


def _evaluate_run(config: str, others: dict[str, str | None], overrides: list[str] | None, as_json: bool) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(
            f"{given[0]}: is for a MODEL; {config} says it itself: use --set, such as --set evaluation.metrics=fid"
        )
    settings = load(config, overrides)
    from flows.cli import reports
    from stylegan.pipeline.steps import Pipeline
    from stylegan.retry import insist

    with Pipeline(settings) as pipeline:
        done, published, page = insist(pipeline.evaluate_trained)
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
    """Register the evaluated model as challenger; the gate is left to `run`.

    Examples
    --------
    stylegan register configs/quickstart.yaml
    """
    settings = load(config, overrides)
    from stylegan.pipeline.steps import Pipeline
    from stylegan.retry import insist

    with Pipeline(settings) as pipeline:
        done = insist(pipeline.register_evaluated)
    console.print_done(done, as_json)


def doctor(
    config: ConfigFile | None = None,
    /,
    *,
    address: str | None = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> int:
    """Check storage, Ray and its nodes, MLflow, Prefect and the metrics' weights: what works, and what to do about the rest.

    Parameters
    ----------
    address
        Ray cluster whose nodes are looked at, instead of that of ray.address: host:port of its head, or auto. From a
        machine that is no node of it: the URL of its dashboard, where this command then runs as a job.

    Examples
    --------
    stylegan doctor
    stylegan doctor configs/quickstart.yaml
    stylegan doctor configs/quickstart.yaml --address HEAD:6379
    stylegan doctor configs/quickstart.yaml --address http://HEAD:8265
    """
    if address is not None and address.startswith(("http://", "https://")):
        from flows.cli.job_commands import examine as examine_there

        return examine_there(load(config, overrides) if config else None, config or "", address, as_json=as_json)
    cluster = ray_cluster(address) if address is not None else None
    there = [f"ray.address='{cluster.address}'"] if cluster and cluster.address else []
    settings = load(config, [*(overrides or []), *there]) if config is not None else None
    from flows.cli.doctor import examine

    examination = examine(settings, cluster)
    if as_json:
        print_json(examination)
    else:
        console.print_examination(examination)
    if not examination.ok:
        raise StepError("doctor: not everything works; the lines above say what to do")
    return 0


def _repeat(settings: Config) -> Summary | None:
    """Return the summary of a finished run without a flow run of its own; None if that is to be run.

    A flow run in the embedded Prefect would take longer to start than everything else, and would show what the last one
    shows. Whoever has set up a Prefect server wants to see each run there.
    """
    from flows.killed_runs import FLOW_NAME, has_unfinished
    from flows.prefect_server import own_history

    history = own_history()
    if history is None or has_unfinished(FLOW_NAME, settings.name, history):
        return None
    from stylegan.pipeline.steps import Pipeline

    with Pipeline(settings) as pipeline:
        return pipeline.repeat()


def import_engines() -> None:
    """Import all that a run needs, while something else is waited for: it takes half as long as Prefect's server."""
    import flows.train  # noqa: F401
    from stylegan.cluster.session import import_ray
    from stylegan.tracking.connection import import_mlflow

    import_mlflow()
    import_ray(train=True)


def quiet_prefect() -> None:
    """Keep Prefect's log off the terminal, which shows our own. Must be called before prefect is imported."""
    settings = {
        "PREFECT_LOGGING_EXTRA_LOGGERS": "stylegan",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "DO_NOT_TRACK": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
