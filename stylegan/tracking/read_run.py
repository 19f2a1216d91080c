"""Read a run back from MLflow: its params, curves, report and sample grids, whoever logged it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stylegan.errors import ConfigError, DamagedError
from stylegan.evaluation.report import Report
from stylegan.records import parse
from stylegan.tracking.connection import connect, explained, is_empty
from stylegan.tracking.presentation import RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from stylegan.training.curves import Row

ID = r"[0-9a-f]{32}"  # of an MLflow run
REPORT = "report.json"
NO_CURVES = ("system/", "eval/", "events/")  # metrics of a machine, of the finished model, of what happened
GRID = re.compile(r"images/samples\+step\+(\d+)\+.*\.png$")


@dataclass(frozen=True)
class LoggedRun:
    """A run in MLflow. What takes many requests is read when it is asked for; then StepError means that MLflow refuses.

    Attributes:
        uri, mlflow_run_id: where it is.
        name: as its page says.
        run_id: of the pipeline run; None for a run of another program.
        params: as they were logged.
        metrics: the last value of each.
    """

    uri: str
    mlflow_run_id: str
    name: str
    run_id: str | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @cached_property
    def rows(self) -> list[Row]:
        """The points of its curves, by image count; the step of a metric is taken for kimg, and its last value counts."""
        client = connect(self.uri)
        points: dict[int, dict[str, float]] = {}
        with explained(self.uri, f"read the curves of the run {self.mlflow_run_id}"):
            for name in self.metrics:
                if name.startswith(NO_CURVES):
                    continue
                for point in client.get_metric_history(self.mlflow_run_id, name):
                    points.setdefault(point.step, {})[name] = point.value
        rows: list[Row] = []
        for step, metrics in sorted(points.items()):
            kimg = metrics.get("progress/kimg", step)
            resolution = int(metrics.get("progress/resolution", 0))
            rows.append({"nimg": round(kimg * 1000), "resolution": resolution, "metrics": metrics})
        return rows

    @cached_property
    def report(self) -> Report | None:
        """That of its evaluation; None without one that this program wrote."""
        client = connect(self.uri)
        with explained(self.uri, f"read the report of the run {self.mlflow_run_id}"):
            if not any(file.path == REPORT for file in client.list_artifacts(self.mlflow_run_id)):
                return None
            text = self._artifact(client, REPORT).decode(errors="replace")
        try:
            return parse(text, Report, origin=f"{REPORT} of MLflow run {self.mlflow_run_id}", cure="log it again")
        except DamagedError:  # that of another program
            return None

    @cached_property
    def grids(self) -> Mapping[int, str]:
        """The artifact paths of its sample grids, by kimg."""
        client = connect(self.uri)
        with explained(self.uri, f"list the images of the run {self.mlflow_run_id}"):
            images = sorted(file.path for file in client.list_artifacts(self.mlflow_run_id, "images"))
        return dict(sorted((int(found[1]), path) for path in images if (found := GRID.match(path))))

    def grid(self, kimg: int) -> bytes:
        """Return the bytes of a sample grid, a PNG file. Raises StepError if MLflow does not have it any more."""
        client = connect(self.uri)
        with explained(self.uri, "read a sample grid"):
            return self._artifact(client, self.grids[kimg])

    def _artifact(self, client: MlflowClient, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return Path(client.download_artifacts(self.mlflow_run_id, path, folder)).read_bytes()


def read_logged(uri: str, mlflow_run_id: str) -> LoggedRun:
    """Find a run in MLflow.

    Raises:
        ConfigError: there is no such run.
        StepError: MLflow does not answer.
    """
    if is_empty(uri):  # a look must not make a database
        raise _no_such_run(uri, mlflow_run_id)
    client = connect(uri)
    with explained(uri, f"read the run {mlflow_run_id}"):
        run = _get(client, uri, mlflow_run_id)
    return LoggedRun(
        uri=uri,
        mlflow_run_id=mlflow_run_id,
        name=run.info.run_name or mlflow_run_id,
        run_id=run.data.tags.get(RUN_TAG),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )


def _get(client: MlflowClient, uri: str, mlflow_run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(mlflow_run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise _no_such_run(uri, mlflow_run_id) from None
        raise


def _no_such_run(uri: str, mlflow_run_id: str) -> ConfigError:
    return ConfigError(f"{mlflow_run_id}: MLflow at {uri} has no such run")
