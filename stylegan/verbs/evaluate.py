"""`stylegan evaluate MODEL`: measure any generator or set of images, outside the pipeline that made it.

Report, page and figures are written to {root}/evaluations/{key}. The same evaluation again is taken from there; the
evaluation of a whole run as its config has it is taken from the run's folder.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import computed_field, field_serializer

from stylegan import storage
from stylegan.cluster.parallel_map import evaluation_means, shard_in_parallel
from stylegan.cluster.session import ray_session
from stylegan.config.addresses import check_argument
from stylegan.config.file import build, load
from stylegan.config.resolutions import RESOLUTIONS
from stylegan.config.sections import RESNET_METRICS, STYLEGAN_METRICS, DataConfig, Metric
from stylegan.config.tree import Config
from stylegan.config.yaml_text import read_argument
from stylegan.data.dataset_card import read_card
from stylegan.data.decode import UnreadableImage
from stylegan.data.sharding.write_shards import complete_set, find_content, find_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.base import Source, explained
from stylegan.data.sources.open_source import open_source
from stylegan.data.sources.unaltered import measured, unaltered
from stylegan.errors import ConfigError, StepError, decoration
from stylegan.evaluation.directions import DIRECTIONS, lacks_directions
from stylegan.evaluation.engine import evaluate, evaluate_images, fit_directions, redraw
from stylegan.evaluation.features.spaces import check_features
from stylegan.evaluation.metric_table import METRICS, lacking
from stylegan.evaluation.page.metric_rows import warnings
from stylegan.evaluation.page.published import Comparison
from stylegan.evaluation.page.write_page import PAGE, compare_published, missing_figures, read_report, write_page
from stylegan.evaluation.protocol import deciding_settings
from stylegan.evaluation.report import EVALUATION_VERSION, Report, plain
from stylegan.outputs import output_folder, write_output
from stylegan.pipeline.preflight import use_places
from stylegan.pipeline.run import Run
from stylegan.pipeline.style_figures import redraw_figures
from stylegan.records import Record, digest
from stylegan.retry import storage_settings
from stylegan.training.identity import identity
from stylegan.training.state import load_model
from stylegan.verbs.find_model import Model, look_up, no_such_model, run_config

logger = logging.getLogger("stylegan")
Kind = Literal["run", "checkpoint", "version", "images"]


@dataclass(frozen=True)
class Request:
    """The arguments of the command. `config` (the path of a YAML file) and `data` (a source) name what to compare with."""

    model: str
    metrics: tuple[Metric, ...] | None = None
    config: str | None = None
    data: str | None = None
    overrides: tuple[str, ...] = ()


class Evaluation(Record):
    """A finished evaluation: model and data, report, published figures beside it, its page; `cached`: taken from storage."""

    model: str
    kind: Kind
    data: str
    report: Report
    published: tuple[Comparison, ...]
    page: str
    cached: bool

    @computed_field
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each value that means trouble."""
        return tuple(warnings(self.report))

    @field_serializer("published", when_used="json")
    def _to_json(self, published: tuple[Comparison, ...]) -> list[dict[str, Any]]:
        return [_row(comparison) for comparison in published]


def evaluate_model(request: Request, out: str | None = None) -> Evaluation:
    """Measure a generator or a set of images.

    A generator is compared with the images of its own run, by the settings of that run, unless the request names
    others.

    Args:
        request: its `model` is as for `find_model`, or a source of images.
        out: folder for a copy of the report, its page, its figures, and the directions of attributes.

    Raises:
        ConfigError, StepError: no such model or images, nothing to compare with, or a metric that cannot be had.
    """
    if request.data is not None:
        check_argument("--data", request.data)
    copy_to = output_folder(out) if out is not None else None
    given = load(request.config, request.overrides) if request.config is not None else None
    with ray_session(), storage_settings(given.storage if given else None):  # shared by sharding and measuring
        model = look_up(given, request.model, root=_given_root(request))
        subject = _open_images(request, given) if model is None else _open_generator(model, request, given)
        with storage_settings(subject.config.storage):
            return _evaluate(subject, copy_to)


def _evaluate(subject: _Subject, copy_to: str | None) -> Evaluation:
    """Take the report from storage or measure, and write its page."""
    config, shards = subject.config, subject.shards
    use_places(config)
    check_features(config.evaluation, labelled=bool(shards.label_names))
    folder = subject.folder or storage.join(config.storage.root, "evaluations", _key(subject))
    found = read_report(folder)
    report = found or _measure(subject, folder)
    if missing := missing_figures(report):
        with decoration(f"evaluate: the figures {', '.join(sorted(missing))}"):
            if subject.folder and isinstance(subject.measured, str):
                redraw_figures(Run(config, shards), subject.measured, missing)
            else:
                redraw(subject.measured, shards, config.evaluation, missing, out_uri=folder, **evaluation_means(config))
    # A report that was made before directions were kept.
    if found and isinstance(subject.measured, str) and lacks_directions(report, folder):
        with decoration("evaluate: the directions of attributes"):
            fit_directions(subject.measured, shards, config.evaluation, out_uri=folder, **evaluation_means(config))
    published = compare_published(report, config, shards.num_images)
    facts = {"Measured": subject.name, "Compared with": f"{config.data.source}, {shards.num_images:,} images"}
    page = write_page(
        report,
        folder,
        title=subject.name,
        published=published,
        facts=facts,
        data=read_card(shards.uri),
        anew=found is None,
    )
    if copy_to is not None:
        report, page = _copy(report, folder, copy_to)
    return Evaluation(
        model=subject.name,
        kind=subject.kind,
        data=config.data.source,
        report=report,
        published=tuple(published),
        page=page,
        cached=found is not None,
    )


@dataclass(frozen=True)
class _Subject:
    """The subject of an evaluation, and the reals that it is compared with; `folder`: that of its report, if known."""

    name: str
    kind: Kind
    identity: str  # digest of the content
    config: Config  # of this evaluation
    shards: ShardSet
    measured: str | ShardSet  # the checkpoint, or the images
    folder: str | None = None


def _key(subject: _Subject) -> str:
    return digest(
        [
            EVALUATION_VERSION,
            subject.identity,
            subject.shards.fingerprint,
            subject.shards.resolutions,
            *deciding_settings(subject.config.evaluation),
        ]
    )


def _open_generator(model: Model, request: Request, given: Config | None) -> _Subject:
    generator, _ = load_model(model.checkpoint_uri)
    own = run_config(model.run_uri, request.overrides) if model.run_uri else None
    config = (
        given
        or own
        or _bare_config(request, generator.resolution, generator.channels, is_resnet=generator.model.is_resnet)
    )
    config = _changed(config, request)
    for metric in request.metrics or ():
        if what := lacking(metric, generator.model):
            raise ConfigError(f"--metrics {metric}: the generator of {model.name} has {what}; take it out")
        if "attributes" in METRICS[metric].roles and config.evaluation.features == "rotation":
            raise ConfigError(
                f"--metrics {metric}: evaluation.features=rotation knows no attributes; take it out, or set another"
            )
    shards = _shards_of(model, config) or _shard(open_source(config.data, config.storage.root), config)
    shards = shards.up_to(max(generator.resolution, shards.resolutions[0]))  # a stage is measured at its own resolution
    weights = storage.read_bytes(storage.join(model.checkpoint_uri, "generator.safetensors"))
    return _Subject(
        name=model.name,
        kind=model.kind,
        identity=hashlib.sha256(weights).hexdigest(),
        config=config,
        shards=shards,
        measured=model.checkpoint_uri,
        folder=_own_folder(model, config, shards),
    )


def _own_folder(model: Model, config: Config, shards: ShardSet) -> str | None:
    """Return the folder of the model's run if it holds the very report that is asked for, else None."""
    if not model.run_uri or Run(config, shards).run_id != storage.name(model.run_uri):
        return None
    report = read_report(model.run_uri)
    same = report is not None and identity(report.checkpoint_uri) == identity(model.checkpoint_uri)
    return model.run_uri if same else None


def _shards_of(model: Model, config: Config) -> ShardSet | None:
    """Return the shards of the model's run, even if its source has changed or moved; None if other images are asked for."""
    if not model.run_uri:
        return None
    # Limits decide whether a set may be used, and `incremental` how it was made. The images are the same.
    limits = {"max_corrupt", "max_rejected", "incremental"}
    given, own = (data.model_dump(exclude=limits) for data in (config.data, run_config(model.run_uri).data))
    if given != own:
        return None
    report = read_report(model.run_uri)
    return find_content(report.dataset_fingerprint, config.storage.root) if report else None


def _open_images(request: Request, given: Config | None) -> _Subject:
    source = _open_source(request, given)
    of_images = [metric for metric, facts in METRICS.items() if facts.of_images]
    for metric in request.metrics or ():
        if metric not in of_images:
            raise ConfigError(
                f"--metrics {metric}: needs a generator, and {request.model} holds images; theirs are {', '.join(of_images)}"
            )
    config = _changed(given or _bare_config(request, *_shape(source)), request)
    as_they_are = {"labels": "none", "label_file": None, "crop": "center", "min_size": 0, "duplicates": "keep"}
    data = config.data.model_copy(
        update=as_they_are | {"source": request.model}
    )  # an image that was drawn twice counts twice
    images = _shard(unaltered(source, data), config.model_copy(update={"data": data}))
    shards = _shard(open_source(config.data, config.storage.root), config)
    return _Subject(request.model, "images", images.fingerprint, config, shards, images)


def _open_source(request: Request, given: Config | None) -> Source:
    try:
        root = given.storage.root if given else _given_root(request)
        return open_source(DataConfig(source=request.model, resolution=4, labels="none"), root)
    except ConfigError:
        images = ", and no images (a folder, an archive or a URL of either)"
        raise no_such_model(given, request.model, root=_given_root(request), also=images) from None


def _shape(source: Source) -> tuple[int, int]:
    """Return side and channels of the first image, which all others must have."""
    first = source.images[0]
    with source.open() as read, explained(source.uri):
        try:
            width, height, channels = measured(read(first.path))
        except UnreadableImage as error:
            raise StepError(f"{storage.join(source.uri, first.path)}: {error}; repair or remove it") from None
    if width != height or width not in RESOLUTIONS or channels not in (1, 3):
        raise StepError(
            f"{storage.join(source.uri, first.path)}: is {width}x{height} with {channels} channel(s); images are measured as they are: "
            "they must be square, 4 to 1024 pixels wide (a power of two), grey or RGB"
        )
    return width, channels


def _bare_config(request: Request, resolution: int, channels: int, *, is_resnet: bool = False) -> Config:
    """Return the config of an evaluation that has neither a run nor a config: all defaults for such a generator."""
    if request.data is None:
        raise ConfigError(f"{request.model}: what to compare it with is not known; give --data SOURCE or --config FILE")
    data = {"source": request.data, "resolution": resolution, "channels": channels}
    metrics = RESNET_METRICS if is_resnet else STYLEGAN_METRICS
    training = {"start_resolution": min(resolution, 8)}
    tree = {"name": "evaluation", "data": data, "training": training, "evaluation": {"metrics": metrics}}
    return build(tree, "--set", request.overrides)


def _changed(config: Config, request: Request) -> Config:
    """Return the config with the data and metrics of the request, and an absolute root."""
    data, evaluation = config.data, config.evaluation
    if request.data is not None:
        data = data.model_copy(update={"source": request.data})
    if request.metrics is not None:
        evaluation = evaluation.model_copy(update={"metrics": request.metrics})
    place = config.storage.model_copy(update={"root": storage.absolute(config.storage.root)})
    return config.model_copy(update={"data": data, "evaluation": evaluation, "storage": place})


def _given_root(request: Request) -> str | None:
    """Return the storage.root among the overrides, where a run is searched; None if there is none or a config is given."""
    given = [override for override in request.overrides if override.partition("=")[0].strip() == "storage.root"]
    if not given or request.config is not None:
        return None
    root = read_argument(given[-1].partition("=")[2], f"--set {given[-1]}")
    if not isinstance(root, str):
        raise ConfigError(f"--set {given[-1]}: must be text; put it in quotes")
    check_argument("--set storage.root", root)
    return root


def _shard(source: Source, config: Config) -> ShardSet:
    """Return the shards of a source; write them if they do not exist."""
    found = find_shards(source, config.data, config.storage.root)
    if found is None:
        return shard_in_parallel(source, config)
    complete_set(found, source, config.data, config.storage.root)
    return found


def _measure(subject: _Subject, folder: str) -> Report:
    """Measure on Ray, and write report and figures into the folder."""
    config, measured = subject.config, subject.measured
    means = evaluation_means(config)
    if isinstance(measured, str):
        report = evaluate(measured, subject.shards, config.evaluation, out_uri=folder, **means)
    else:
        report = evaluate_images(measured, subject.shards, config.evaluation, out_uri=folder, **means)
    storage.write_json(storage.join(folder, "report.json"), report.model_dump(mode="json"))
    return report


def _copy(report: Report, folder: str, out: str) -> tuple[Report, str]:
    """Copy report, page, figures and directions to another folder; the copied report names the figures there."""
    figures = {name: storage.join(out, storage.name(uri)) for name, uri in report.figures.items()}
    report = report.model_copy(update={"figures": figures})
    kept = [DIRECTIONS] if storage.exists(storage.join(folder, DIRECTIONS)) else []
    for name in (*map(storage.name, figures.values()), *kept, PAGE):
        write_output(storage.join(out, name), storage.read_bytes(storage.join(folder, name)))
    write_output(storage.join(out, "report.json"), storage.json_bytes(report.model_dump(mode="json")))
    return report, storage.join(out, PAGE)


def _row(comparison: Comparison) -> dict[str, Any]:
    figure = comparison.published
    return {
        "metric": figure.metric,
        "latents": figure.latents,
        "published": figure.value,
        "of": f"{figure.title}, {figure.dataset_title} {figure.resolution}x{figure.resolution}",
        "where": figure.where,
        "source": figure.url,
        "key": comparison.key,
        "value": plain(comparison.value),
        "interval": plain(comparison.interval),
        "comparable": comparison.comparable,
        "why_not": comparison.why_not,
    }
