"""`stylegan doctor`: try every engine that a run needs; say what works, and what to do about the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

from stylegan import storage
from stylegan.cluster.resources import check_resources, describe_cluster
from stylegan.cluster.session import check_address, connect, ray_session
from stylegan.config.sections import StorageConfig
from stylegan.config.tree import Config
from stylegan.errors import StepError, UserError
from stylegan.evaluation.features import public_weights as weights
from stylegan.pipeline.preflight import try_writing
from stylegan.records import Record
from stylegan.retry import storage_settings
from stylegan.tracking.connection import check_server, resolve_uri
from stylegan.tracking.open_run import check_experiment
from stylegan.uris import redact

# Returns what works, in words; raises UserError with what does not.
Check = Callable[[Config | None], str]


class Finding(Record):
    """The result of one check."""

    name: str
    ok: bool
    detail: str


class Examination(Record):
    """The results of all checks; `ok` if everything works."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything works."""
        return all(finding.ok for finding in self.findings)


def examine(config: Config | None) -> Examination:
    """Check what a run of this config needs; without a config, what the defaults need on this machine."""
    settings = config.storage if config else StorageConfig()
    checks: list[tuple[str, Check]] = [
        ("storage", _storage),
        ("data", _data),
        ("metrics", _metrics),
        *(weight_checks(config) if config else ()),
        ("mlflow", _mlflow),
        ("prefect", _prefect),
        ("ray", _ray),
    ]
    with storage_settings(settings.model_copy(update={"patience_s": 5.0})):  # a store that is away is not waited for
        return Examination(findings=tuple(_try(name, check, config) for name, check in checks))


def weight_checks(config: Config) -> list[tuple[str, Check]]:
    """Return a check for each file of the published networks that the metrics need."""
    return [("weights", partial(_weights, kind)) for kind in weights.needed(config.evaluation)]


def _try(name: str, check: Check, config: Config | None) -> Finding:
    try:
        return Finding(name=name, ok=True, detail=redact(check(config)))
    except UserError as error:
        return Finding(name=name, ok=False, detail=str(error))


def _storage(config: Config | None) -> str:
    root = storage.absolute(config.storage.root if config else "stylegan-data")
    existed = storage.exists(root)
    try_writing(root)
    if not storage.is_local(root):
        return f"{root} can be written and read"
    folder = root if existed else "."
    return f"{root} can be written and read, {shutil.disk_usage(folder).free / 2**30:.1f} GiB free"


def _data(config: Config | None) -> str:
    from stylegan.data.sources.open_source import open_source
    from stylegan.pipeline.check_data import check_data

    if config is None:
        return "give a CONFIG to look at its data"
    source = open_source(config.data, config.storage.root)
    check_data(config, len(source.images), source.label_names, source.attribute_names)
    if source.attribute_names:
        labels = f"{len(source.attribute_names)} attributes"
    else:
        labels = f"{len(source.label_names) or 'no'} classes"
    return f"{len(source.images)} images, {labels} in {config.data.source}"


def _metrics(config: Config | None) -> str:
    from stylegan.data.sources.open_source import open_source
    from stylegan.evaluation.features.spaces import check_features

    if config is None:
        return "the embedded classifier needs no weights"
    check_features(config.evaluation, labelled=bool(open_source(config.data, config.storage.root).label_names))
    features = config.evaluation.features
    what = "public networks, see below" if features == "inception" else "is there or trained on demand"
    return f"evaluation.features={features}: {what}"


def _weights(kind: weights.WeightName, config: Config | None) -> str:
    """Check one file of a published network; say where it is, or whence `run` would download it and to where."""
    assert config is not None
    place = weights.locate(kind, getattr(config.evaluation.weights, kind))
    size = weights.shown_size(place.num_bytes)
    if place.path:
        return f"{kind}: {place.path}, {size}"
    if not storage.exists(place.uri):
        raise StepError(
            f"{kind}: not on this machine, and no way to {place.uri}; get it by other means and put it at {place.target}"
        )
    return f"{kind}: not on this machine yet; a run downloads {place.uri} ({size}) to {place.target}"


def _mlflow(config: Config | None) -> str:
    if config is None:
        return "SQLite below storage.root unless tracking.uri is set"
    uri = resolve_uri(config)
    check_server(uri)
    check_experiment(config)
    return f"{uri} answers" if uri.startswith("http") else uri


def _prefect(config: Config | None) -> str:
    from flows.prefect_server import api

    with api() as url:
        return f"{url} answers"


def _ray(config: Config | None) -> str:
    from stylegan.config.sections import RayConfig
    from stylegan.training.schedule import stages

    with ray_session():
        if config is None:
            connect(RayConfig())
        else:
            check_address(config.ray)
            check_resources(config, stages(config))
        return f"{describe_cluster()}; every stage fits" if config else describe_cluster()
