"""One pipeline run in MLflow: found again by its run id, written to without gaps or doubles, however often it is interrupted.

The step of every metric and image is kimg, counted over all stages. Nothing here uses MLflow's active run: calls name the run
they mean, so threads do not disturb each other.
"""

from __future__ import annotations

import contextvars
import io
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from stylegan import storage
from stylegan.config import Config
from stylegan.config_file import dump, flatten
from stylegan.data.card import PREVIEW, read_card, read_rejected
from stylegan.data.shards import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.report import Report
from stylegan.registry.server import artifact_location, check_server, connect, explained, quiet, resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

__all__ = ["StageRelay", "TrackedRun", "check_server", "open_run", "resolve_uri"]

logger = logging.getLogger("stylegan")

RUN_TAG = "stylegan.run_id"
CLOCK = "progress/kimg"  # in every row, so its last step is the last step of the run
MAX_METRICS, MAX_PARAMS, MAX_VALUE, MAX_DIGEST = 1000, 100, 6000, 36  # MLflow's limits
MAX_REJECTED = 1000  # rows of the table of rejects: its page shows them all at once
POLL_SECONDS = 2.0
Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackedRun:
    """The MLflow run of one pipeline run; made by `open_run`. Its methods may be called from any thread."""

    def __init__(self, client: MlflowClient, uri: str, mlflow_run_id: str) -> None:
        self.client, self.uri, self.mlflow_run_id = client, uri, mlflow_run_id
        self._last_step: int | None = None  # None: to be asked
        self._quick_steps: dict[str, set[int]] = {}  # by metric; one that is not in it is to be asked
        self.sample_steps = set(_image_steps(client, mlflow_run_id))
        self._lock = threading.RLock()
        self._monitor: Any = None

    @property
    def last_step(self) -> int:
        """The last kimg that has metrics in MLflow, -1 before the first."""
        if self._last_step is None:
            history = self.client.get_metric_history(self.mlflow_run_id, CLOCK)
            self._last_step = max((point.step for point in history), default=-1)
        return self._last_step

    def log_rows(self, rows: Iterable[dict]) -> int:
        """Log rows of a `stats.jsonl` ({"nimg": int, "metrics": {name: value}}), oldest first; the number that was new.

        Only rows beyond the last step in MLflow are logged, one per step: a repeated row changes nothing.
        """
        with self._lock, explained(self.uri, "log metrics"):
            new, step = [], self.last_step
            for row in rows:
                if row["nimg"] // 1000 > step:
                    step = row["nimg"] // 1000
                    new.append((step, row["metrics"] | {CLOCK: row["nimg"] / 1000}))
            for batch in _batches(new):
                self._last_step = None  # asked again if this fails: the batch may be in the store all the same
                self.client.log_batch(self.mlflow_run_id, metrics=batch)
                self._last_step = batch[-1].step
            return len(new)

    def log_quick(self, rows: Iterable[dict]) -> None:
        """Log rows of quick metrics, which come later than the points of the curves: each value whose step has none yet."""
        with self._lock, explained(self.uri, "log quick metrics"):
            for row in rows:
                step = row["nimg"] // 1000
                new = {name: value for name, value in row["metrics"].items() if step not in self._steps_of(name)}
                for name in new:
                    del self._quick_steps[name]  # asked again: the batch may be in the store even if logging it fails
                for batch in _batches([(step, new)] if new else []):
                    self.client.log_batch(self.mlflow_run_id, metrics=batch)

    def _steps_of(self, name: str) -> set[int]:
        if name not in self._quick_steps:
            self._quick_steps[name] = {point.step for point in self.client.get_metric_history(self.mlflow_run_id, name)}
        return self._quick_steps[name]

    def log_sample(self, kimg: int, png: bytes) -> None:
        """Log a grid of samples, the bytes of a PNG. The first grid of a kimg stays: another one of the same kimg is not logged."""
        with self._lock, explained(self.uri, "log a sample grid"):
            if kimg not in self.sample_steps:
                image = Image.open(io.BytesIO(png))
                self.client.log_image(self.mlflow_run_id, image, key="samples", step=kimg, synchronous=True)
                self.sample_steps.add(kimg)

    def log_report(self, report: Report, page_uri: str | None = None) -> None:
        """Log metrics as eval/<name> at the checkpoint's kimg; report.json, its page and the figures still there as artifacts.

        What the run has already is not logged again.
        """
        found = re.search(r"checkpoint-(\d+)/*$", report.checkpoint_uri)
        step = int(found[1]) // 1000 if found else max(self.last_step, 0)
        with self._lock, explained(self.uri, "log the report"):
            there = self.client.get_run(self.mlflow_run_id).data.metrics
            new = {f"eval/{name}": value for name, value in report.metrics.items() if f"eval/{name}" not in there}
            for batch in _batches([(step, new)] if new else []):
                self.client.log_batch(self.mlflow_run_id, metrics=batch)
            files = {
                file.path
                for folder in ("", "figures")
                for file in self.client.list_artifacts(self.mlflow_run_id, folder)
            }
            if "report.json" not in files:
                self.client.log_text(self.mlflow_run_id, report.model_dump_json(indent=1), "report.json")
            if page_uri and "report.html" not in files:
                self.client.log_text(self.mlflow_run_id, storage.read_bytes(page_uri).decode(), "report.html")
            for name, uri in report.figures.items():
                if f"figures/{name}.png" not in files:
                    self._log_figure(name, uri)

    def finish(self, status: Status) -> None:
        """Stop the system metrics and close the run."""
        with self._lock, explained(self.uri, f"close the run as {status}"):
            self.stop_system_metrics()
            self.client.set_terminated(self.mlflow_run_id, status)

    def start_system_metrics(self) -> None:
        """Log CPU, memory, disk, network and GPU of this machine until the run is finished."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with quiet():
            self._monitor = SystemMetricsMonitor(self.mlflow_run_id, resume_logging=True, tracking_uri=self.uri)
            self._monitor.start()

    def stop_system_metrics(self) -> None:
        """Stop what `start_system_metrics` started."""
        if self._monitor is not None:
            with quiet():
                self._monitor.finish()
            self._monitor = None

    def _log_figure(self, name: str, uri: str) -> None:
        try:
            image = Image.open(io.BytesIO(storage.read_bytes(uri)))
        except FileNotFoundError:
            logger.warning("evaluate: figure %s is gone (%s); MLflow keeps what it has of it", name, uri)
            return
        self.client.log_image(self.mlflow_run_id, image, artifact_file=f"figures/{name}.png")


def open_run(config: Config, run_id: str, shards: ShardSet | None, *, parent: str | None = None) -> TrackedRun:
    """Continue the MLflow run of `run_id`, or create it; params, config.yaml and dataset are there afterwards.

    Args:
        config: its flattened values become params, once.
        run_id: the pipeline run's id; name and tag of the MLflow run.
        shards: the run's input dataset, also as artifacts below data/; None for a run that only gathers others (a sweep).
        parent: MLflow's id of the run that this one is shown below.

    Raises:
        ConfigError, StepError: tracking.uri cannot work, or MLflow does not answer or refuses.
    """
    uri = resolve_uri(config)
    client = connect(uri)
    with explained(uri, f"open the run {run_id}"):
        experiment_id = _experiment(client, config)
        mlflow_run_id = _find_run(client, experiment_id, run_id) or _create_run(client, experiment_id, run_id)
        client.update_run(mlflow_run_id, status="RUNNING")
        if parent:
            client.set_tag(mlflow_run_id, "mlflow.parentRunId", parent)
        _log_params(client, mlflow_run_id, flatten(config))
        client.log_text(mlflow_run_id, dump(config), "config.yaml")
        if shards:
            _log_dataset(client, mlflow_run_id, config.data.source, shards)
            _log_card(client, mlflow_run_id, shards)
        run = TrackedRun(client, uri, mlflow_run_id)
        run.start_system_metrics()
    return run


class StageRelay:
    """Carries a stage's curves, quick metrics and sample grids from storage into MLflow, while it trains and once more at the end.

    Around a stage that is already finished it carries everything over at once: the last sweep sees all of it.

        with StageRelay(run, stage_uri):
            train(...)
    """

    def __init__(
        self,
        run: TrackedRun,
        stage_uri: str,
        *,
        quick: str | None = None,
        poll_seconds: float = POLL_SECONDS,
        on_rows: Callable[[list[dict]], None] | None = None,
    ) -> None:
        self.run, self.stage_uri, self.poll_seconds = run, stage_uri, poll_seconds
        self.quick = quick  # name of the file of quick metrics in the stage's folder, if there are any
        self.on_rows = on_rows or (lambda rows: None)  # is shown all rows of the stage at every sweep
        self._stop = threading.Event()
        # The thread logs in the context of the flow run that started it, if there is one.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._poll,), name="stage-relay", daemon=True
        )

    def __enter__(self) -> StageRelay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.sweep()
        except StepError:
            if error is None:  # otherwise the stage's own failure is the one to report
                raise

    def sweep(self) -> None:
        """Carry over what is new by now. Raises StepError if storage or MLflow refuses."""
        rows = _read_rows(storage.join(self.stage_uri, "stats.jsonl"))
        self.on_rows(rows)
        self.run.log_rows(rows)
        if self.quick:
            self.run.log_quick(_read_rows(storage.join(self.stage_uri, self.quick)))
        folder = storage.join(self.stage_uri, "samples")
        for name in storage.names(folder):
            kimg, _, kind = name.partition(".")
            if kind == "png" and kimg.isdigit() and int(kimg) not in self.run.sample_steps:
                self.run.log_sample(int(kimg), storage.read_bytes(storage.join(folder, name)))

    def _poll(self) -> None:
        while not self._stop.wait(self.poll_seconds):
            try:
                self.sweep()
            except (StepError, OSError):
                continue  # storage or MLflow is away for a moment; the next poll, at the latest the last sweep, carries it over


def _read_rows(uri: str) -> list[dict]:
    """The complete rows of a file of them that may still grow."""
    try:
        *lines, _ = storage.read_bytes(uri).split(b"\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _batches(rows: list[tuple[int, dict[str, float]]]) -> Iterator[list[Metric]]:
    """Whole rows together, up to MLflow's limit: a row is in the store or not, never half."""
    from mlflow.entities import Metric

    now, batch = int(time.time() * 1000), list[Any]()
    for step, metrics in rows:
        if batch and len(batch) + len(metrics) > MAX_METRICS:
            yield batch
            batch = []
        batch += [Metric(name, float(value), now, step) for name, value in metrics.items()]
    if batch:
        yield batch


def _image_steps(client: MlflowClient, mlflow_run_id: str) -> Iterator[int]:
    """Steps that have a sample grid. The .webp is the last of its files."""
    for file in client.list_artifacts(mlflow_run_id, "images"):
        found = re.match(r"images/samples\+step\+(\d+)\+.*\.webp$", file.path)
        if found:
            yield int(found[1])


def _experiment(client: MlflowClient, config: Config) -> str:
    """The experiment's id; made if it is not there."""
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(config)))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another run made it in this moment
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise StepError(
            f"tracking.experiment={name}: this experiment was deleted in MLflow; restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)


def _find_run(client: MlflowClient, experiment_id: str, run_id: str) -> str | None:
    found = client.search_runs(
        [experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    return str(found[0].info.run_id) if found else None


def _create_run(client: MlflowClient, experiment_id: str, run_id: str) -> str:
    from mlflow.tracking.context.registry import resolve_tags

    return str(client.create_run(experiment_id, run_name=run_id, tags=resolve_tags({RUN_TAG: run_id})).info.run_id)


def _log_params(client: MlflowClient, mlflow_run_id: str, params: dict[str, str]) -> None:
    """Params cannot be changed in MLflow: those of the first start stay."""
    from mlflow.entities import Param

    there = client.get_run(mlflow_run_id).data.params
    new = [Param(key, value[:MAX_VALUE]) for key, value in params.items() if key not in there]
    for i in range(math.ceil(len(new) / MAX_PARAMS)):
        client.log_batch(mlflow_run_id, params=new[i * MAX_PARAMS : (i + 1) * MAX_PARAMS])


def _log_dataset(client: MlflowClient, mlflow_run_id: str, source: str, shards: ShardSet) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    there = client.get_run(mlflow_run_id).inputs
    digest = shards.fingerprint[:MAX_DIGEST]
    if there and any(item.dataset.digest == digest for item in there.dataset_inputs):
        return
    facts = shards.model_dump(mode="json", include={"num_images", "resolutions", "label_names", "num_rejected"})
    dataset = Dataset(
        name=source[-500:],
        digest=digest,
        source_type="local" if storage.is_local(shards.uri) else shards.uri.partition("://")[0],
        source=json.dumps({"uri": shards.uri}),
        profile=json.dumps(facts),
    )
    client.log_inputs(mlflow_run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _log_card(client: MlflowClient, mlflow_run_id: str, shards: ShardSet) -> None:
    """What the data set holds, below data/; a set without a card, of an older version, has none."""
    card = read_card(shards.uri)
    if card is None or client.list_artifacts(mlflow_run_id, "data"):
        return
    preview = Image.open(io.BytesIO(storage.read_bytes(storage.join(shards.uri, PREVIEW))))
    client.log_image(mlflow_run_id, preview, artifact_file="data/preview.png")
    if rows := read_rejected(shards.uri, MAX_REJECTED):
        columns = {name: [row.get(name) for row in rows] for name in ("kind", "path", "reason", "bytes")}
        client.log_table(mlflow_run_id, columns, "data/rejected.json")
    client.log_text(mlflow_run_id, card.model_dump_json(indent=1), "data/card.json")
