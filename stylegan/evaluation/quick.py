"""Quick metrics: the averaged generator of a stage on few images, measured beside its training.

{stage_uri}/metrics-{key}.jsonl   a row for every checkpoint that was measured, oldest first: {"nimg", "resolution", "metrics"}
{stage_uri}/measuring/            a copy of the generator that is being measured: its checkpoint may be removed meanwhile

A stage is measured at its own resolution: against its own reals, by a feature network of that resolution where the network is
trained on the shards, and in a fade with the weight of that moment. Numbers of two resolutions do not compare, so only those of
the last one are called like the metrics of a report (`quick/fid_classifier`); the others say which they are
(`quick/fid_classifier_8x8`).
"""

from __future__ import annotations

import contextvars
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from stylegan import storage
from stylegan.config.resolutions import at_resolution
from stylegan.config.sections import EvaluationConfig
from stylegan.config.tree import Config
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError, one_line
from stylegan.evaluation.engine import evaluate
from stylegan.evaluation.protocol import SETTINGS
from stylegan.evaluation.report import EVALUATION_VERSION, Report
from stylegan.records import digest
from stylegan.training.curves import read_rows
from stylegan.training.job import StageJob
from stylegan.training.schedule import crossed
from stylegan.training.state import Checkpoint, newest_checkpoint

logger = logging.getLogger("stylegan")
POLL_SECONDS = 2.0  # between two looks for a new checkpoint
LEAST_SECONDS, SHARE = (
    180.0,
    0.1,
)  # how long the end of a stage waits for its last metrics: this, or this share of its time


class Worker(Protocol):
    """Who measures: a process that training does not notice (`spare.SpareWorker`)."""

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        """function(item)."""

    def close(self) -> None:
        """End it; a call under way raises."""


def quick_evaluation(config: Config, resolution: int) -> EvaluationConfig:
    """What is measured in the stage of a resolution: the metrics of `config.snapshots` (none where they are off) in the feature
    space of `config.evaluation`, on few images and without bootstrap."""
    snapshots = config.snapshots
    metrics = snapshots.metrics if at_resolution(snapshots.metrics_kimg, resolution) else ()
    changes = {
        "metrics": metrics,
        "num_images": snapshots.metrics_images,
        "num_reals": snapshots.metrics_images,
        "bootstrap": 0,
    }
    return config.evaluation.model_copy(update=changes)


def with_quick(config: Config) -> EvaluationConfig:
    """`config.evaluation` with the quick metrics of all stages among its own: what feature networks are needed for."""
    quick = {metric for resolution in config.resolutions for metric in quick_evaluation(config, resolution).metrics}
    return config.evaluation.model_copy(update={"metrics": (*config.evaluation.metrics, *sorted(quick))})


def rows_name(config: Config, resolution: int) -> str | None:
    """The file of the rows in a stage's folder, another one for other settings; None where quick metrics are off."""
    evaluation = quick_evaluation(config, resolution)
    if not evaluation.metrics:
        return None
    settings = {metric: {name: getattr(evaluation, name) for name in SETTINGS[metric]} for metric in evaluation.metrics}
    return f"metrics-{digest([EVALUATION_VERSION, settings, evaluation.features, evaluation.seed])}.jsonl"


def lacks_end(job: StageJob) -> bool:
    """Whether the end of a stage is still to be measured. Raises StepError if storage does not answer."""
    name = rows_name(job.config, job.stage.resolution)
    return name is not None and all(row["nimg"] < job.stage.end_nimg for row in read_rows(storage.join(job.uri, name)))


@dataclass(frozen=True)
class QuickRequest:
    """What the worker needs: `uri` is a folder with the generator, `alpha` the weight of its newest resolution."""

    uri: str
    shards: ShardSet
    evaluation: EvaluationConfig
    root: str
    alpha: float


def measure_quickly(request: QuickRequest) -> Report:
    """The report without intervals and figures, in this process."""
    return evaluate(request.uri, request.shards, request.evaluation, root=request.root, alpha=request.alpha)


class QuickMetrics:
    """Measures the newest checkpoint of a stage at its marks while the stage trains, and once more at its end.

        with QuickMetrics(job, worker, root=root):
            train(job)

    One at a time: of the checkpoints that come while one is measured, the newest is next and the others are left out. When the
    stage ends, the block waits for what is under way and for the end of the stage, but no longer than a tenth of its own time (or
    three minutes, if that is longer); what is not there by then is dropped, as it is at once if training fails. No failure goes out of
    here: it is logged, once, as a warning.
    """

    def __init__(self, job: StageJob, worker: Worker, *, root: str, poll_seconds: float = POLL_SECONDS) -> None:
        self.job, self.worker, self.root, self.poll_seconds = job, worker, root, poll_seconds
        self.interval = at_resolution(job.config.snapshots.metrics_kimg, job.stage.resolution)
        self.evaluation = quick_evaluation(job.config, job.stage.resolution)
        self.rows: list[dict] | None = None  # None: to be read
        self._last = job.stage.start_nimg  # the image count of the last checkpoint that was due
        self._stop = threading.Event()
        self._dropped = self._warned = False
        # The thread logs in the context of the flow run that started it, if there is one.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._watch,), name="quick-metrics", daemon=True
        )

    def __enter__(self) -> QuickMetrics:
        self._start = time.monotonic()
        if self.evaluation.metrics:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.evaluation.metrics:
            return
        self._dropped = error is not None
        self._stop.set()
        if not self._dropped:
            self._thread.join(max(LEAST_SECONDS, SHARE * (time.monotonic() - self._start)))
            self._dropped = self._thread.is_alive()
        self.worker.close()
        self._thread.join()

    def look(self) -> None:
        """Measure the newest checkpoint if it is due. Raises nothing."""
        try:
            checkpoint = self._next()
            if checkpoint:
                self._measure(checkpoint)
        except Exception as error:  # whatever it is, training is none the worse for it
            if self._dropped:
                logger.info("%s: the quick metrics under way are dropped", self._name)
            else:
                self._warn(f"quick metrics failed, training goes on: {one_line(error)}")

    def _watch(self) -> None:
        while not self._stop.wait(self.poll_seconds):
            self.look()
        if not self._dropped:
            self.look()

    def _next(self) -> Checkpoint | None:
        """The newest checkpoint if a mark, or the end of the stage, lies between the last one that was due and this one."""
        try:
            if self.rows is None:
                self.rows = read_rows(self._uri)
                self._last = max([self._last, *(row["nimg"] for row in self.rows)])
            newest = newest_checkpoint(self.job.uri)
        except StepError:
            return None  # removed in this moment, or storage is away; there is another look
        if newest is None or newest.nimg <= self._last:
            return None
        if newest.nimg < self.job.stage.end_nimg and not crossed(self.interval, self._last, newest.nimg):
            return None
        self._last = newest.nimg
        return newest

    def _measure(self, checkpoint: Checkpoint) -> None:
        job, folder = self.job, storage.join(self.job.uri, "measuring")
        try:
            generator = storage.read_bytes(storage.join(checkpoint.uri, "generator.safetensors"))
        except FileNotFoundError:
            logger.info("%s: no quick metrics of %s, which is not kept any more", self._name, _kimg(checkpoint))
            return
        storage.write_bytes(storage.join(folder, "generator.safetensors"), generator)
        shards, alpha = job.shards.up_to(job.stage.resolution), job.stage.alpha(checkpoint.nimg)
        try:
            report = self.worker.call(measure_quickly, QuickRequest(folder, shards, self.evaluation, self.root, alpha))
        finally:
            storage.delete(folder)
        self._keep(checkpoint, report)

    def _keep(self, checkpoint: Checkpoint, report: Report) -> None:
        """Add a row, so that it is there as a whole or not at all."""
        for key, reason in report.skipped.items():
            self._warn(f"quick metric {key} is skipped: {reason}")
        resolution, keys = checkpoint.resolution, [key for key in report.metrics if key in report.protocols]
        if not keys:
            return
        suffix = "" if resolution == self.job.config.data.resolution else f"_{resolution}x{resolution}"
        metrics = {f"quick/{key}{suffix}": report.metrics[key] for key in keys}
        self.rows = [*(self.rows or []), {"nimg": checkpoint.nimg, "resolution": resolution, "metrics": metrics}]
        storage.write_bytes(self._uri, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        logger.info(
            "%s: quick metrics of %s: %s",
            self._name,
            _kimg(checkpoint),
            ", ".join(f"{k} {report.metrics[k]:.4g}" for k in keys),
        )

    @property
    def _uri(self) -> str:
        return storage.join(self.job.uri, rows_name(self.job.config, self.job.stage.resolution) or "")

    @property
    def _name(self) -> str:
        return f"train {self.job.stage.name}"

    def _warn(self, what: str) -> None:
        if not self._warned:
            logger.warning("%s: %s", self._name, what)
        self._warned = True


def _kimg(checkpoint: Checkpoint) -> str:
    return f"the checkpoint at {checkpoint.nimg / 1000:g} kimg"
