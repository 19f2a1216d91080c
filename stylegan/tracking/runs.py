"""Log to the MLflow run of a pipeline run, without gaps or doubles, however often the run is interrupted.

The step of every metric and image is kimg, counted over all stages. Nothing here uses MLflow's active run: calls name
the run they mean, so threads do not disturb each other.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from stylegan import storage
from stylegan.errors import DamagedError, one_line
from stylegan.evaluation.directions import DIRECTIONS
from stylegan.evaluation.report import Report
from stylegan.images import as_gif, open_picture
from stylegan.tracking.connection import explained
from stylegan.tracking.metric_names import warn_of_unknown
from stylegan.tracking.presentation import STORY_TAG, EarlierRun, find_run_before, note_tags
from stylegan.tracking.system_metrics import ReadNodes, SystemMetrics, next_step

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from stylegan.training.curves import Row

logger = logging.getLogger("stylegan")

CLOCK = "progress/kimg"  # in every row, so its last step is the last step of the run
ANIMATION = "growth.gif"
MAX_METRICS = 1000  # of one request, MLflow's limit
Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackedRun:
    """The MLflow run of one pipeline run, as `open_run` returns it. Its methods may be called from any thread.

    A run that was finished stays so, to the end of its time, until there is something new to log.
    """

    def __init__(
        self,
        client: MlflowClient,
        uri: str,
        mlflow_run_id: str,
        describe: Callable[[], None] = lambda: None,
        *,
        constant: Collection[str] = (),
    ) -> None:
        self.client, self.uri, self.mlflow_run_id = client, uri, mlflow_run_id
        self._constant = frozenset(constant)  # metrics of the curves that are not logged
        self._describe = describe  # logs params, config and data set, as far as the run lacks them
        self._started = self._running = False  # whether `start` is done; whether this object shows the run as running
        self._last_step: int | None = None  # None: ask MLflow
        self._quick_steps: dict[str, set[int]] = {}  # by metric; ask MLflow for one that is missing
        self.sample_steps = set(_image_steps(client, mlflow_run_id))
        self._lock = threading.RLock()
        self._system: SystemMetrics | None = None
        self._read_nodes: ReadNodes = dict  # of other machines, in `with_nodes`

    def start(self) -> None:
        """Show the run as running from now on, with params, config, data set and system metrics; do nothing if it is."""
        with self._lock, explained(self.uri, "continue the run"):
            if self._started:
                return
            self._running = True
            self.client.update_run(self.mlflow_run_id, status="RUNNING")
            self._describe()
            self.start_system_metrics()
            self._started = True

    @property
    def last_step(self) -> int:
        """The last kimg that has metrics in MLflow, -1 before the first."""
        if self._last_step is None:
            history = self.client.get_metric_history(self.mlflow_run_id, CLOCK)
            self._last_step = max((point.step for point in history), default=-1)
        return self._last_step

    def log_rows(self, rows: Iterable[Row]) -> int:
        """Log rows of a `stats.jsonl` ({"nimg": int, "metrics": {name: value}}), oldest first; return how many were new.

        Only rows beyond the last step in MLflow are logged, one per step: a repeated row changes nothing.
        """
        with self._lock, explained(self.uri, "log metrics"):
            new, step = [], self.last_step
            for row in rows:
                if row["nimg"] // 1000 > step:
                    step = row["nimg"] // 1000
                    metrics = {name: value for name, value in row["metrics"].items() if name not in self._constant}
                    new.append((step, metrics | {CLOCK: row["nimg"] / 1000}))
            if new:
                self.start()
            for batch in _batches(new):
                self._last_step = None  # ask again if this fails: the batch may be in the store all the same
                self.client.log_batch(self.mlflow_run_id, metrics=batch)
                self._last_step = batch[-1].step
            return len(new)

    def log_quick(self, rows: Iterable[Row]) -> None:
        """Log each value of quick metrics whose step has none yet; they come later than the points of the curves."""
        self._log_missing(rows, first=self.start)

    def log_hours(self, rows: Iterable[Row]) -> None:
        """Log the hours of a run at the ends of its stages, as far as it lacks them.

        They are about what is done: a finished run stays so, to the end of its time.
        """
        self._log_missing(rows, first=lambda: None)

    def _log_missing(self, rows: Iterable[Row], first: Callable[[], None]) -> None:
        """Log each value whose step has none yet; `first` is called before something is logged."""
        with self._lock, explained(self.uri, "log metrics"):
            for row in rows:
                step = row["nimg"] // 1000
                new = {name: value for name, value in row["metrics"].items() if step not in self._steps_of(name)}
                if new:
                    first()
                for name in new:
                    del self._quick_steps[name]  # ask again: the batch may be in the store even if logging it fails
                for batch in _batches([(step, new)] if new else []):
                    self.client.log_batch(self.mlflow_run_id, metrics=batch)

    def _steps_of(self, name: str) -> set[int]:
        if name not in self._quick_steps:
            self._quick_steps[name] = {point.step for point in self.client.get_metric_history(self.mlflow_run_id, name)}
        return self._quick_steps[name]

    def log_event(self, name: str, value: float, *, nimg: int) -> None:
        """Log something that happened to the run as events/<name>; its step is the kimg of `nimg` images."""
        self.log_values({f"events/{name}": value}, nimg=nimg)

    def log_values(self, values: dict[str, float], *, nimg: int) -> None:
        """Log values that belong to no point of the curves, at the kimg of `nimg` images."""
        with self._lock, explained(self.uri, f"log {', '.join(values)}"):
            self.start()
            for batch in _batches([(nimg // 1000, values)]):
                self.client.log_batch(self.mlflow_run_id, metrics=batch)

    def log_sample(self, kimg: int, png: bytes, origin: str = "a sample grid") -> None:
        """Log a grid of samples, the bytes of the PNG file `origin`, unless the run has one of the same kimg."""
        with self._lock, explained(self.uri, "log a sample grid"):
            if kimg not in self.sample_steps:
                try:
                    image = open_picture(png, origin, cure="MLflow goes without it")
                except DamagedError as error:  # a picture is never worth a run
                    logger.warning("%s", error)
                else:
                    self.start()
                    self.client.log_image(self.mlflow_run_id, image, key="samples", step=kimg, synchronous=True)
                self.sample_steps.add(kimg)

    def log_report(
        self,
        report: Report,
        *,
        nimg: int,
        page_uri: str | None = None,
        growth_uri: str | None = None,
        directions_uri: str | None = None,
    ) -> None:
        """Log the metrics as eval/<name>; report.json, its page and the figures that still exist become artifacts.

        So do the animation `growth_uri`, as growth.gif because MLflow shows no WebP, and the directions of attributes.

        What the run has already is not logged again.

        Args:
            report: of the checkpoint at `nimg` images, whose kimg is the step.
        """
        step = nimg // 1000
        with self._lock, explained(self.uri, "log the report"):
            there = self.client.get_run(self.mlflow_run_id).data.metrics
            new = {f"eval/{name}": value for name, value in report.metrics.items() if f"eval/{name}" not in there}
            for batch in _batches([(step, new)] if new else []):
                self.start()
                self.client.log_batch(self.mlflow_run_id, metrics=batch)
            files = {
                file.path
                for folder in ("", "figures")
                for file in self.client.list_artifacts(self.mlflow_run_id, folder)
            }
            if "report.json" not in files:
                self.start()
                self.client.log_text(self.mlflow_run_id, report.model_dump_json(indent=1), "report.json")
            if page_uri and "report.html" not in files:
                self.start()
                self.client.log_text(self.mlflow_run_id, storage.read_bytes(page_uri).decode(), "report.html")
            if growth_uri and ANIMATION not in files and storage.exists(growth_uri):
                self._log_animation(ANIMATION, storage.read_bytes(growth_uri), growth_uri)
            if directions_uri and DIRECTIONS not in files and storage.exists(directions_uri):
                self._log_file(DIRECTIONS, storage.read_bytes(directions_uri))
            for name, uri in report.figures.items():
                if not {f"figures/{name}.png", f"figures/{name}.gif"} & files:
                    self._log_figure(name, uri)

    def finish(self, status: Status) -> None:
        """Stop the system metrics and close the run; do nothing to a run that was finished and got nothing new."""
        with self._lock, explained(self.uri, f"close the run as {status}"):
            if self._running:
                self.stop_system_metrics()
                self.client.set_terminated(self.mlflow_run_id, status)
                self._started = self._running = False  # not before: what MLflow has not heard is said again

    def run_before(self) -> EarlierRun | None:
        """Return the run of the same name that began last before this one. Raises StepError if MLflow does not answer."""
        with explained(self.uri, "look up the run before this one"):
            return find_run_before(self.client, self.mlflow_run_id)

    def tells(self, key: str) -> bool:
        """Return whether the run's page, note and tags tell the story of this key."""
        with explained(self.uri, "read the tags"):
            return self.client.get_run(self.mlflow_run_id).data.tags.get(STORY_TAG) == key

    def log_note(self, text: str) -> None:
        """Set the note of a run that is under way, which tells no verdict: not even one from before it trained again."""
        with self._lock, explained(self.uri, "log the note"):
            self._set_tags({STORY_TAG: "", **self._note_tags(text)})

    def log_story(self, key: str, note: str, tags: Mapping[str, str], page_uri: str) -> None:
        """Log the page, note and tags of a run that the gate has judged.

        Args:
            key: of the story, for `tells`; it is logged last.
            note: Markdown.
            tags: for the list of runs.
            page_uri: of the report's page in storage.
        """
        with self._lock, explained(self.uri, "log the story of the run"):
            self.client.log_text(self.mlflow_run_id, storage.read_bytes(page_uri).decode(), "report.html")
            self._set_tags({**self._note_tags(note), **tags, STORY_TAG: key})

    def _note_tags(self, text: str) -> dict[str, str]:
        return note_tags(self.client.get_run(self.mlflow_run_id).data.tags, text)

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.client.set_tag(self.mlflow_run_id, name, value)

    def start_system_metrics(self) -> None:
        """Log the load of this machine, and of those in `with_nodes`, until the run is finished, ever more rarely."""
        step = next_step(self.client.get_run(self.mlflow_run_id))
        self._system = SystemMetrics(self._log_system, step=step, read_nodes=lambda: self._read_nodes())
        self._system.start()

    def stop_system_metrics(self) -> None:
        """Stop what `start_system_metrics` started."""
        if self._system is not None:
            self._system.stop()
            self._system = None

    @contextmanager
    def with_nodes(self, read: ReadNodes) -> Iterator[None]:
        """Log the load of more machines inside the block.

        Args:
            read: returns it by the name of the machine; called on another thread, and may take seconds.
        """
        self._read_nodes = read
        try:
            yield
        finally:
            self._read_nodes = dict

    def _log_system(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        with explained(self.uri, "log system metrics"):  # not the lock: who stops the metrics has it, and waits
            for batch in _batches(rows):
                self.client.log_batch(self.mlflow_run_id, metrics=batch)

    def _log_animation(self, name: str, webp: bytes, uri: str) -> None:
        try:
            gif = as_gif(webp)
        except Exception as error:  # Pillow raises errors of many types for damaged files
            logger.warning("evaluate: %s: is not an animation (%s); MLflow goes without it", uri, one_line(error))
            return
        self._log_file(name, gif)

    def _log_file(self, name: str, content: bytes) -> None:
        self.start()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, os.path.basename(name))
            with open(path, "wb") as file:
                file.write(content)
            self.client.log_artifact(self.mlflow_run_id, path, os.path.dirname(name) or None)

    def _log_figure(self, name: str, uri: str) -> None:
        try:
            data = storage.read_bytes(uri)
            if uri.endswith(".webp"):
                self._log_animation(f"figures/{name}.gif", data, uri)
                return
            image = open_picture(data, uri, cure="MLflow goes without it")
        except FileNotFoundError:
            logger.warning("evaluate: figure %s is gone (%s); MLflow keeps what it has of it", name, uri)
            return
        except DamagedError as error:
            logger.warning("evaluate: figure %s: %s", name, error)
            return
        self.start()
        self.client.log_image(self.mlflow_run_id, image, artifact_file=f"figures/{name}.png")


def _batches(rows: list[tuple[int, dict[str, float]]]) -> Iterator[list[Metric]]:
    """Yield batches of whole rows, up to MLflow's limit, so that the store never holds half a row.

    All metrics go through here, so none is logged that the table of names lacks without a warning.
    """
    from mlflow.entities import Metric

    now, batch = int(time.time() * 1000), list[Any]()
    for step, metrics in rows:
        warn_of_unknown(metrics)
        if batch and len(batch) + len(metrics) > MAX_METRICS:
            yield batch
            batch = []
        batch += [Metric(name, float(value), now, step) for name, value in metrics.items()]
    if batch:
        yield batch


def _image_steps(client: MlflowClient, mlflow_run_id: str) -> Iterator[int]:
    """Yield the steps that have a sample grid; the .webp is the last of its files to be written."""
    for file in client.list_artifacts(mlflow_run_id, "images"):
        found = re.match(r"images/samples\+step\+(\d+)\+.*\.webp$", file.path)
        if found:
            yield int(found[1])
