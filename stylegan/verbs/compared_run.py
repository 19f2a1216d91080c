"""Read the runs of a comparison: from storage where it has them, else from MLflow."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from stylegan import storage
from stylegan.config.file import flatten, load
from stylegan.config.sections import StorageConfig
from stylegan.config.tree import Config
from stylegan.data.sharding.write_shards import find_content
from stylegan.errors import ConfigError, DamagedError, StepError
from stylegan.evaluation.page.write_page import read_report
from stylegan.evaluation.report import Report
from stylegan.pipeline.run import VERDICT, Run, find_run
from stylegan.registry.gate import StoredVerdict
from stylegan.tracking.connection import resolve_uri, sqlite_uri
from stylegan.tracking.read_run import ID, LoggedRun, read_logged
from stylegan.training.curves import Row, clock
from stylegan.training.samples import sample_grids
from stylegan.training.state import checkpoints
from stylegan.verbs.find_model import look_up, no_such_model, root_of, run_config, run_folder

if TYPE_CHECKING:
    from stylegan.data.shardset import ShardSet


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison, read completely but for its pictures.

    Attributes:
        label: what it is called in the comparison.
        run_id: its name in storage, or MLflow's id of a run of another program.
        uri: its folder, or the MLflow run.
        settings: its config, by dotted key; the params of a run of another program.
        data: facts about its images by name: what they are, how many, their classes and fingerprint.
        latents: what decides the latents of its sample grids; None if that is not known.
        start_nimg: the image count at which it began; not 0 after a warm start.
        rows: the points of its curves, by image count.
        seconds, gpu_hours: since it began to train, by point; the former is empty where no speed is known, the latter
            where it trained on no GPU.
        grids: its sample grids by kimg; a function reads one, a PNG file.
        report: of its evaluation; None if it has none.
        verdict: the gate's decision with its reasons.
        config: None for a run of another program.
        tracker: tracking URI of the MLflow that has it.
        mlflow_run_id: of a run of another program; those of this program are found there by their `run_id`.
    """

    label: str
    run_id: str
    uri: str
    settings: Mapping[str, str]
    data: Mapping[str, str]
    latents: tuple[str, ...] | None
    start_nimg: int
    rows: list[Row]
    seconds: list[float]
    gpu_hours: list[float]
    grids: Mapping[int, Callable[[], bytes]] = field(repr=False)
    report: Report | None = None
    verdict: str | None = None
    config: Config | None = None
    tracker: str | None = None
    mlflow_run_id: str | None = None

    @property
    def kimg(self) -> float:
        """The last image count of its curves, in thousands."""
        return self.rows[-1]["nimg"] / 1000 if self.rows else 0.0

    @property
    def speed(self) -> float | None:
        """Mean images per second of its training; None without curves that have a time."""
        images = self.rows[-1]["nimg"] - self.start_nimg if self.rows else 0
        return images / self.seconds[-1] if self.seconds and self.seconds[-1] else None


def read_run(config: Config | None, name: str, *, root: str | None = None) -> ComparedRun:
    """Read the run that a text names.

    Args:
        config: names storage.root and registry for ids and versions; None means the defaults, as for `find_model`.
        name: a run id, the folder of a run, name@alias or name/3, the YAML file of a run, the id of an MLflow run or
            `runs:/ID`.
        root: another storage.root.

    Raises:
        ConfigError, StepError: there is no such run.
        DamagedError: a file of it is not what the run wrote.
    """
    if re.fullmatch(rf"(runs:/)?{ID}", name):
        return _logged(config, name.removeprefix("runs:/"))
    if name.endswith((".yaml", ".yml")):
        settings = load(name, [])
        return _stored(find_run(settings), name)
    if folder := run_folder(config, name, root=root):
        return _of_folder(folder, storage.name(folder))
    model = look_up(config, name, root=root)
    if model is None:
        raise no_such_model(config, name, root=root, also=", no MLflow run (an id of 32 letters, or runs:/ID)")
    if model.run_uri is None:
        raise ConfigError(
            f"{name}: the run that trained this model is not in storage, so there is nothing to compare; name a run"
        )
    return _of_folder(model.run_uri, name)


def _of_folder(run_uri: str, label: str) -> ComparedRun:
    """Read the run of a folder, without a look at its source, which may be gone."""
    config, report = run_config(run_uri), read_report(run_uri)
    shards = find_content(report.dataset_fingerprint, root_of(run_uri)) if report else None
    run = Run(config, shards) if shards else find_run(config)
    if run.run_id != storage.name(run_uri):
        raise DamagedError(
            f"{run_uri}: its config.yaml is that of {run.run_id}; run the config of this run again, which writes this file"
        )
    return _stored(run, label)


def _stored(run: Run, label: str) -> ComparedRun:
    """Read a run from storage."""
    config, rows = run.config, run.curves()
    if not rows and not any(checkpoints(run.stage_uri(stage)) for stage in run.stages):
        raise StepError(f"{label}: this run has trained nothing yet; run its config, or leave it out")
    grids: dict[int, Callable[[], bytes]] = {}
    for stage in run.stages:
        for kimg, uri in sample_grids(run.stage_uri(stage)).items():
            grids[kimg] = partial(storage.read_bytes, uri)
    start = run.stages[0].start_nimg
    seconds = clock(rows, start_nimg=start)
    return ComparedRun(
        label=label,
        run_id=run.run_id,
        uri=run.uri,
        settings=flatten(config),
        data=_data(config, run.shards),
        latents=_latents(config, run.shards.label_names),
        start_nimg=start,
        rows=rows,
        seconds=seconds,
        gpu_hours=_gpu_hours(config, rows, seconds),
        grids=grids,
        report=run.find_report(),
        verdict=_verdict(run),
        config=config,
        tracker=resolve_uri(config),
    )


def _verdict(run: Run) -> str | None:
    try:
        found = storage.read_json(storage.join(run.uri, VERDICT), StoredVerdict, cure="run its config again")
    except FileNotFoundError:
        return None
    return f"{'promoted' if found.verdict.promote else 'not promoted'}: {' '.join(found.verdict.reasons)}"


def _logged(config: Config | None, mlflow_run_id: str) -> ComparedRun:
    """Read a run that MLflow knows: from storage if that is in reach, else what was logged."""
    embedded = f"{storage.absolute(StorageConfig().root)}/mlflow.db"
    uri = resolve_uri(config) if config else os.environ.get("MLFLOW_TRACKING_URI")
    if not uri and not os.path.exists(embedded):
        raise ConfigError(f"{mlflow_run_id}: no MLflow is named: give --config FILE or set MLFLOW_TRACKING_URI")
    uri = uri or sqlite_uri(embedded)
    logged = read_logged(uri, mlflow_run_id)
    roots = [config.storage.root if config else "", logged.params.get("storage.root", "")]
    for root in filter(None, roots if logged.run_id else ()):
        folder = storage.join(storage.absolute(root), "runs", logged.run_id or "")
        if _is_there(folder):
            return replace(_of_folder(folder, logged.run_id or ""), tracker=uri)
    return _as_logged(logged)


def _is_there(folder: str) -> bool:
    try:
        return storage.exists(storage.join(folder, "config.yaml"))
    except (StepError, ConfigError, OSError):  # out of reach from here
        return False


def _as_logged(run: LoggedRun) -> ComparedRun:
    data = {"source": run.params["data.source"]} if "data.source" in run.params else {}
    if run.report:
        data["fingerprint"] = run.report.dataset_fingerprint
    seconds = clock(run.rows)
    return ComparedRun(
        label=run.run_id or run.name,
        run_id=run.run_id or run.mlflow_run_id,
        uri=f"runs:/{run.mlflow_run_id}",
        settings=run.params,
        data=data,
        latents=None,
        start_nimg=0,
        rows=run.rows,
        seconds=seconds if any(seconds) else [],
        gpu_hours=[],
        grids={kimg: partial(run.grid, kimg) for kimg in run.grids},
        report=run.report,
        tracker=run.uri,
        mlflow_run_id=run.mlflow_run_id,
    )


def _data(config: Config, shards: ShardSet) -> dict[str, str]:
    return {
        "source": config.data.source,
        "images": f"{shards.num_images:,}",
        "classes": str(len(shards.label_names)) if shards.label_names else "none",
        "resolution": f"{config.data.resolution}x{config.data.resolution}",
        "fingerprint": shards.fingerprint,
    }


def _latents(config: Config, label_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return what `samples.sample_latents` draws from."""
    classes = label_names if config.model.conditional else ()
    return str(config.seed), str(config.snapshots.grid), str(config.model.latent_size), *classes


def _gpu_hours(config: Config, rows: list[Row], seconds: list[float]) -> list[float]:
    """Return the hours of GPUs until each point, with the most workers of its stage; empty if no stage has a GPU."""
    per_second = {
        resolution: (config.workers_at(resolution).gpus_per_worker or 0) * config.most_workers_at(resolution) / 3600
        for resolution in config.resolutions
    }
    if not any(per_second.values()):
        return []
    steps = [after - before for before, after in zip([0.0, *seconds], seconds, strict=False)]
    return list(
        itertools.accumulate(
            step * per_second.get(row["resolution"], 0.0) for row, step in zip(rows, steps, strict=True)
        )
    )
