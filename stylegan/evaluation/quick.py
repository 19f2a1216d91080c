"""Quick metrics: the averaged generator of a stage on few images, measured beside its training.

    {stage_uri}/metrics-{key}.jsonl   rows {"nimg", "resolution", "metrics"} of the measured checkpoints, oldest first
    {stage_uri}/measuring/            a copy of the generator that is being measured; its checkpoint may be deleted

A stage is measured at its own resolution: against its own reals, by a feature network of that resolution where the
network is trained on the shards, and during a fade-in with the weight of that moment. Numbers of two resolutions do not
compare. Only numbers of the last resolution are therefore named like the metrics of a report (`quick/fid_classifier`);
the others carry their resolution (`quick/fid_classifier_8x8`).
"""

from __future__ import annotations

import contextvars
import json
import logging
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol

import torch

from stylegan import storage
from stylegan.config.resolutions import at_resolution
from stylegan.config.sections import EvaluationConfig, WeightsConfig
from stylegan.config.tree import Config
from stylegan.data.loading.loader import LoaderSettings
from stylegan.data.shardset import ShardSet
from stylegan.errors import DamagedError, StepError, one_line
from stylegan.evaluation.engine import evaluate
from stylegan.evaluation.metric_table import METRICS
from stylegan.evaluation.protocol import network_settings, newer_versions
from stylegan.evaluation.report import EVALUATION_VERSION, Report
from stylegan.records import digest
from stylegan.training.curves import Row, read_rows
from stylegan.training.job import StageJob
from stylegan.training.schedule import crossed
from stylegan.training.state import Checkpoint, newest_checkpoint

logger = logging.getLogger("stylegan")
POLL_SECONDS = 10.0  # between two searches for a new checkpoint, each of which lists the stage
# The end of a stage waits for its last metrics: LEAST_SECONDS, or this share of the stage's time if that is longer.
LEAST_SECONDS = 180.0
SHARE = 0.1


class Worker(Protocol):
    """A process that measures without slowing the training down (`cluster.spare_worker.SpareWorker`)."""

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Return function(item)."""

    def close(self) -> None:
        """End the process; a call that is still running raises."""


def quick_evaluation(config: Config, resolution: int) -> EvaluationConfig:
    """Return the settings of the quick metrics in the stage of a resolution.

    These are the metrics of `config.snapshots` (none where they are off) in the feature space of `config.evaluation`,
    on few images. On a CPU they are measured in single precision, whatever the evaluation on GPUs has.
    """
    snapshots = config.snapshots
    metrics = snapshots.metrics if at_resolution(snapshots.metrics_kimg, resolution) else ()
    changes: dict[str, Any] = {
        "metrics": metrics,
        "num_images": snapshots.metrics_images,
        "num_reals": snapshots.metrics_images,
    }
    if snapshots.metrics_device == "cpu":
        changes["precision"] = "fp32"
    return config.evaluation.model_copy(update=changes)


def with_quick(config: Config) -> EvaluationConfig:
    """Return `config.evaluation` with the quick metrics of all stages added: a run needs the networks of all."""
    quick = {metric for resolution in config.resolutions for metric in quick_evaluation(config, resolution).metrics}
    return config.evaluation.model_copy(update={"metrics": (*config.evaluation.metrics, *sorted(quick))})


def rows_name(config: Config, resolution: int, shards: ShardSet | None = None) -> str | None:
    """Return the name of the file of rows in a stage's folder, or None if quick metrics are off.

    Other settings have another file. So have other labels, where the stage itself does not depend on them: the networks
    that measure may be trained on labels.
    """
    evaluation = quick_evaluation(config, resolution)
    if not evaluation.metrics:
        return None
    values = evaluation.identity()
    settings = {
        metric: {name: values[name] for name in METRICS[metric].settings if name in values}
        for metric in evaluation.metrics
    }
    networks = network_settings(evaluation)
    more: list[Any] = [] if networks["weights"] == WeightsConfig() else [networks["weights"]]
    more += newer_versions(evaluation)
    if shards and not config.model.conditional and shards.images_fingerprint not in (None, shards.fingerprint):
        more.append(shards.fingerprint)
    return f"metrics-{digest([EVALUATION_VERSION, settings, networks['features'], evaluation.seed, *more])}.jsonl"


def lacks_end(job: StageJob) -> bool:
    """Return whether the end of a stage is still to be measured. Raises StepError if storage does not answer."""
    name = rows_name(job.config, job.stage.resolution, job.shards)
    return name is not None and all(row["nimg"] < job.stage.end_nimg for row in read_rows(storage.join(job.uri, name)))


@dataclass(frozen=True)
class QuickRequest:
    """A request to the worker: measure the generator in the folder `uri`. The other fields are as for `evaluate`.

    `device` is `snapshots.metrics_device`.
    """

    uri: str
    shards: ShardSet
    evaluation: EvaluationConfig
    root: str
    alpha: float
    loading: LoaderSettings
    device: str = "cpu"


def measure_quickly(request: QuickRequest) -> Report:
    """Measure in this process, and return the report without figures, and without the intervals that take time.

    Raises:
        StepError: it is to be measured on a GPU, and there is none; or as `evaluate`.
    """
    if request.device == "cuda":
        if not torch.cuda.is_available():
            raise StepError(
                f"snapshots.metrics_device=cuda: torch can use no GPU on {platform.node()}, where quick metrics are "
                "measured; set snapshots.metrics_device=cpu"
            )
        torch.cuda.set_device(torch.cuda.device_count() - 1)  # Ray gives the first ones to training
    return evaluate(
        request.uri,
        request.shards,
        request.evaluation,
        root=request.root,
        device=request.device,
        alpha=request.alpha,
        loading=request.loading,
        intervals=False,
    )


class QuickMetrics:
    """A block that measures the newest checkpoint of a stage at its marks during training, and once more at its end.

        with QuickMetrics(job, worker, root=root):
            train(job)

    Marks are the multiples of `snapshots.metrics_kimg`. One checkpoint is measured at a time. Of the checkpoints that
    are written meanwhile, only the newest is measured next.

    When the stage ends, the block waits for the running measurement and for the end of the stage, but no longer than a
    tenth of its own time (or three minutes, if that is longer). Then it drops an unfinished measurement. If training
    fails, it drops the measurement at once.

    No failure leaves this class: the first one is logged as a warning.
    """

    def __init__(self, job: StageJob, worker: Worker, *, root: str, poll_seconds: float = POLL_SECONDS) -> None:
        self.job, self.worker, self.root, self.poll_seconds = job, worker, root, poll_seconds
        self.interval = at_resolution(job.config.snapshots.metrics_kimg, job.stage.resolution)
        self.evaluation = quick_evaluation(job.config, job.stage.resolution)
        self.rows: list[Row] | None = None  # None: not read yet
        self._last = job.stage.start_nimg  # the image count of the last checkpoint that was due
        self._stop = threading.Event()
        self._dropped = self._warned = False
        # The thread logs in the context of the flow run that started it, if any.
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

        # Let the thread measure the end of the stage, unless training has failed.
        self._dropped = error is not None
        self._stop.set()
        if not self._dropped:
            self._thread.join(max(LEAST_SECONDS, SHARE * (time.monotonic() - self._start)))
            self._dropped = self._thread.is_alive()

        # Closing the worker ends a measurement that is still running, so the thread ends too.
        self.worker.close()
        self._thread.join()

    def measure_if_due(self) -> None:
        """Measure the newest checkpoint if it is due. Raises nothing."""
        try:
            checkpoint = self._next()
            if checkpoint:
                self._measure(checkpoint)
        except Exception as error:  # no failure of a quick metric may stop the training
            if self._dropped:
                logger.info("%s: the quick metrics under way are dropped", self._name)
            else:
                self._warn(f"quick metrics failed, training goes on: {one_line(error)}")

    def _watch(self) -> None:
        """Measure until the block ends, and once more then."""
        while not self._stop.wait(self.poll_seconds):
            self.measure_if_due()
        if not self._dropped:
            self.measure_if_due()

    def _next(self) -> Checkpoint | None:
        """Return the newest checkpoint if it is due, else None.

        It is due if a mark, or the end of the stage, is between the last due checkpoint and this one.
        """
        try:
            if self.rows is None:
                self.rows = read_rows(self._uri)
                self._last = max([self._last, *(row["nimg"] for row in self.rows)])
            newest = newest_checkpoint(self.job.uri)
        except DamagedError as error:
            self._warn(f"no quick metrics: {error}")
            return None
        except StepError:
            return None  # the checkpoint was just deleted, or storage does not answer: the next poll tries again
        if newest is None or newest.nimg <= self._last:
            return None
        if newest.nimg < self.job.stage.end_nimg and not crossed(self.interval, self._last, newest.nimg):
            return None
        self._last = newest.nimg
        return newest

    def _measure(self, checkpoint: Checkpoint) -> None:
        """Let the worker measure a checkpoint, and add its row."""
        # Copy the generator, because training may delete the checkpoint.
        job, folder = self.job, storage.join(self.job.uri, "measuring")
        try:
            generator = storage.read_bytes(storage.join(checkpoint.uri, "generator.safetensors"))
        except FileNotFoundError:
            logger.info("%s: no quick metrics of %s, which is not kept any more", self._name, _kimg(checkpoint))
            return
        storage.write_bytes(storage.join(folder, "generator.safetensors"), generator)

        # Measure the copy, with the reals and the fade-in of its stage.
        shards, alpha = job.shards.up_to(job.stage.resolution), job.stage.alpha(checkpoint.nimg)
        loading = LoaderSettings.of(job.config)
        try:
            device = job.config.snapshots.metrics_device
            request = QuickRequest(folder, shards, self.evaluation, self.root, alpha, loading, device)
            report = self.worker.call(measure_quickly, request)
        finally:
            storage.delete(folder)
        self._keep(checkpoint, report)

    def _keep(self, checkpoint: Checkpoint, report: Report) -> None:
        """Add a row for the checkpoint. The file is written whole, so that a reader never sees half a row."""
        for key, reason in report.skipped.items():
            self._warn(f"quick metric {key} is skipped: {reason}")

        # Values with a protocol are metrics; the others are facts about the feature network.
        resolution, keys = checkpoint.resolution, [key for key in report.metrics if key in report.protocols]
        if not keys:
            return
        suffix = "" if resolution == self.job.config.data.resolution else f"_{resolution}x{resolution}"
        metrics = {f"quick/{key}{suffix}": report.metrics[key] for key in keys}

        self.rows = [*(self.rows or []), {"nimg": checkpoint.nimg, "resolution": resolution, "metrics": metrics}]
        storage.write_bytes(self._uri, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        shown = ", ".join(f"{key} {report.metrics[key]:.4g}" for key in keys)
        logger.info("%s: quick metrics of %s: %s", self._name, _kimg(checkpoint), shown)

    @cached_property
    def _uri(self) -> str:
        """The file of rows."""
        return storage.join(self.job.uri, rows_name(self.job.config, self.job.stage.resolution, self.job.shards) or "")

    @property
    def _name(self) -> str:
        """The start of log lines."""
        return f"train {self.job.stage.name}"

    def _warn(self, message: str) -> None:
        """Log a warning, but only the first of this object."""
        if not self._warned:
            logger.warning("%s: %s", self._name, message)
        self._warned = True


def _kimg(checkpoint: Checkpoint) -> str:
    """Return the name of a checkpoint in log lines."""
    return f"the checkpoint at {checkpoint.nimg / 1000:g} kimg"
