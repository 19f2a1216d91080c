"""Find a trained generator, or a style transfer, by what people call it: a run, a checkpoint, or a version in the registry."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from stylegan import storage
from stylegan.config.addresses import refuse_secret
from stylegan.config.file import read
from stylegan.config.sections import StorageConfig
from stylegan.config.tree import Config
from stylegan.data.sharding.write_shards import find_content
from stylegan.errors import ConfigError, DamagedError, StepError, one_line
from stylegan.evaluation.page.write_page import read_report
from stylegan.networks.style_transfer import FILE as TRANSFER
from stylegan.pipeline.run import Run, find_run
from stylegan.registry.versions import load_version
from stylegan.tracking.connection import resolve_uri
from stylegan.training.identity import place_below
from stylegan.training.state import MARKER, read_checkpoint

SHORT_VERSION = r"([A-Za-z0-9][A-Za-z0-9 _-]*)(@[^/@]+|/\d+)"


@dataclass(frozen=True)
class Model:
    """A trained generator: its name, the folder of its checkpoint, and the folder of its run if storage still has it."""

    name: str
    kind: Literal["run", "checkpoint", "version"]
    checkpoint_uri: str
    run_uri: str | None


def find_model(config: Config | None, model: str, *, root: str | None = None) -> Model:
    """Return the generator that a text names.

    Args:
        config: names storage.root and registry; None means the default storage.root and MLFLOW_TRACKING_URI.
        model: a run id, a run's folder, the URI of a checkpoint, or a version: `models:/name@alias` or name@alias,
            `models:/name/3` or name/3.
        root: another storage.root.

    Raises:
        ConfigError, StepError: there is no such model, or it has no checkpoint.
    """
    found = look_up(config, model, root=root)
    if found is None:
        raise no_such_model(config, model, root=root)
    return found


def no_such_model(config: Config | None, model: str, *, root: str | None = None, also: str = "") -> ConfigError:
    """Return the error for a text that names no model: where it was searched, and the run that was meant.

    Args:
        config, model, root: as for `find_model`.
        also: what else the text does not name.
    """
    runs = _runs_folder(config, root)
    meant = _meant_run(runs, model)
    if meant is not None:
        return ConfigError(f"{model}: no such run in {runs}; did you mean {meant}?", instead=(model, meant))
    place = (
        ""
        if config or root
        else ", the default storage.root (--config FILE names another; or give the folder of the run)"
    )
    return ConfigError(
        f"{model}: no such model: no run in {runs}{place}, no checkpoint (a folder with generator.safetensors), "
        f"no version (models:/name@alias or models:/name/3){also}"
    )


def _meant_run(runs: str, model: str) -> str | None:
    """Return the run that is called so in another root below the working folder, else one that is called much like it."""
    if "/" in model:
        return None
    elsewhere = glob.glob(os.path.join("*", "runs", glob.escape(model), "config.yaml"))
    if elsewhere:
        return os.path.dirname(min(elsewhere))
    with suppress(StepError):
        return next(iter(difflib.get_close_matches(model, storage.names(runs), n=1, cutoff=0.8)), None)
    return None


def look_up(config: Config | None, model: str, *, root: str | None = None) -> Model | None:
    """Return the generator as `find_model` does, or None if the text names no model at all."""
    try:
        refuse_secret("MODEL", model)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not model:
        raise ConfigError("MODEL is empty; give a run id, the URI of a checkpoint, or models:/name@alias")
    if model.startswith("models:/"):
        return _version(config, model, root)
    uri = storage.absolute(model)
    if _has_weights(uri):
        return Model(model, "checkpoint", uri, _run_of(uri))
    if run_uri := run_folder(config, model, root=root):
        return _run(run_uri)
    short = re.fullmatch(SHORT_VERSION, model) and not storage.exists(uri)
    if short and ("@" in model or _registry(config)):  # without a registry name/3 is a folder that does not exist
        return _version(config, f"models:/{model}", root)
    return None


def run_folder(config: Config | None, name: str, *, root: str | None = None) -> str | None:
    """Return the folder of the run that a text names, a run id or that folder itself; None if it names no run."""
    uri = storage.absolute(name)
    if storage.exists(storage.join(uri, "config.yaml")) and storage.name(os.path.dirname(uri)) == "runs":
        return uri
    below = storage.join(_runs_folder(config, root), name)
    return below if "/" not in name and storage.exists(storage.join(below, "config.yaml")) else None


def _runs_folder(config: Config | None, root: str | None = None) -> str:
    """Return the folder of all runs, of a config or by default."""
    return storage.join(_root(config, root), "runs")


def _root(config: Config | None, root: str | None) -> str:
    return storage.absolute(root or (config.storage if config else StorageConfig()).root)


def run_of(model: Model) -> Run | None:
    """Return the run of a model, on the images that it was measured on; None if storage has no such run any more.

    Raises:
        DamagedError: a file of the run is not what was written there.
    """
    if model.run_uri is None:
        return None
    config, report = run_config(model.run_uri), read_report(model.run_uri)
    shards = find_content(report.dataset_fingerprint, config.storage.root) if report else None
    if shards is not None:
        return Run(config, shards)
    with suppress(ConfigError, StepError):
        return find_run(config)
    return None


def run_config(run_uri: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config in a run's folder; its storage.root is where the folder is now, unless that is overridden.

    Raises:
        ConfigError: the overrides are wrong.
        DamagedError: the file is not what the run wrote there.
    """
    uri = storage.join(run_uri, "config.yaml")
    text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    try:
        if not text.endswith("\n"):  # half of a config is often a valid one
            raise ConfigError("it is cut: its last line has no end")
        read(text, uri)
    except ConfigError as error:
        raise DamagedError(
            f"{uri}: is damaged ({one_line(error)}); run the config of this run again, which writes this file"
        ) from error
    return read(text, uri, [f"storage.root={root_of(run_uri)}", *overrides])


def root_of(run_uri: str) -> str:
    """Return the storage.root of a run's folder."""
    return os.path.dirname(os.path.dirname(run_uri))


def _registry(config: Config | None) -> str | None:
    return resolve_uri(config) if config else os.environ.get("MLFLOW_TRACKING_URI")


def _version(config: Config | None, model: str, root: str | None) -> Model:
    uri = _registry(config)
    if not uri:
        raise ConfigError(f"{model}: no MLflow registry is named: give --config FILE or set MLFLOW_TRACKING_URI")
    checkpoint_uri, run_id, number = load_version(uri, model)
    checkpoint_uri = place_below(_root(config, root), checkpoint_uri)
    _require_weights(model, checkpoint_uri)
    name = re.split("[@/]", model.removeprefix("models:/"))[0]
    return Model(f"{name} version {number}", "version", checkpoint_uri, _run_of(checkpoint_uri, run_id))


def _run_of(checkpoint_uri: str, run_id: str | None = None) -> str | None:
    """Return the folder of the run that wrote a checkpoint below a storage.root, None if it does not exist."""
    if not run_id:
        if not storage.exists(storage.join(checkpoint_uri, MARKER)):  # imported weights
            return None
        run_id = read_checkpoint(checkpoint_uri).run_id
    stages_uri = os.path.dirname(os.path.dirname(checkpoint_uri))
    run_uri = storage.join(os.path.dirname(stages_uri), "runs", str(run_id))
    return run_uri if storage.exists(storage.join(run_uri, "config.yaml")) else None


def _run(run_uri: str) -> Model:
    name = storage.name(run_uri)
    report = read_report(run_uri)
    if report:
        checkpoint_uri = place_below(root_of(run_uri), report.checkpoint_uri)
    else:
        checkpoint_uri = _last_checkpoint(name, run_config(run_uri))
    _require_weights(name, checkpoint_uri)
    return Model(name, "run", checkpoint_uri, run_uri)


def _last_checkpoint(name: str, config: Config) -> str:
    """Return the end of the last stage of a run that is not evaluated yet."""
    run = find_run(config)
    found = run.find_stage(run.stages[-1])
    if found is None:
        raise StepError(
            f"{name}: this run has no checkpoint of its last stage, {run.stages[-1].name}, yet; run its config again, which goes "
            f"on, or give the URI of a checkpoint-... folder below {storage.join(run.root, 'stages')}"
        )
    return found.uri


def _has_weights(checkpoint_uri: str) -> bool:
    """Return whether a folder has the weights of a generator or of a style transfer."""
    return any(storage.exists(storage.join(checkpoint_uri, file)) for file in ("generator.safetensors", TRANSFER))


def _require_weights(name: str, checkpoint_uri: str) -> None:
    if not _has_weights(checkpoint_uri):
        raise StepError(
            f"{name}: its checkpoint {checkpoint_uri} is gone; run its config again, which trains it anew, or name another model"
        )
