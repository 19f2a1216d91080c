"""Read a run back from MLflow: its params, curves, report and sample grids, whoever logged it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stylegan.errors import ConfigError, DamagedError
from stylegan.evaluation.report import Report
from stylegan.records import parse
from stylegan.tracking.connection import connect, explained
from stylegan.tracking.open_run import PARENT_TAG, RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from stylegan.training.curves import Row

ID = r"[0-9a-f]{32}"  # of an MLflow run
GRID = re.compile(r"images/samples\+step\+(\d+)\+.*\.png$")


@dataclass(frozen=True)
class LoggedRun:
    """What MLflow has of a run.

    Attributes:
        uri, mlflow_run_id: where it is.
        name: as its page says.
        run_id: of the pipeline run; None for a run of another program.
        parent: MLflow's id of the run above it.
        params, tags: as they were logged.
        rows: the points of its curves, by image count; the step of a metric is taken for kimg.
        report: that of its evaluation.
        grids: artifact paths of its sample grids, by kimg.
    """

    uri: str
    mlflow_run_id: str
    name: str
    run_id: str | None
    parent: str | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    rows: list[Row] = field(default_factory=list)
    report: Report | None = None
    grids: Mapping[int, str] = field(default_factory=dict)

    def grid(self, kimg: int) -> bytes:
        """Return the bytes of a sample grid, a PNG file. Raises StepError if MLflow does not have it any more."""
        client = connect(self.uri)
        with explained(self.uri, "read a sample grid"), tempfile.TemporaryDirectory() as folder:
            return Path(client.download_artifacts(self.mlflow_run_id, self.grids[kimg], folder)).read_bytes()


def read_logged(uri: str, mlflow_run_id: str) -> LoggedRun:
    """Read a run from MLflow.

    Raises:
        ConfigError: there is no such run.
        StepError: MLflow does not answer.
    """
    client = connect(uri)
    with explained(uri, f"read the run {mlflow_run_id}"):
        run = _get(client, uri, mlflow_run_id)
        tags = dict(run.data.tags)
        images = {file.path for file in client.list_artifacts(mlflow_run_id, "images")}
        grids = {int(found[1]): path for path in sorted(images) if (found := GRID.match(path))}
        return LoggedRun(
            uri=uri,
            mlflow_run_id=mlflow_run_id,
            name=run.info.run_name or mlflow_run_id,
            run_id=tags.get(RUN_TAG),
            parent=tags.get(PARENT_TAG),
            params=dict(run.data.params),
            tags=tags,
            rows=_rows(client, run),
            report=_report(client, mlflow_run_id),
            grids=dict(sorted(grids.items())),
        )


def _get(client: MlflowClient, uri: str, mlflow_run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(mlflow_run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ConfigError(f"{mlflow_run_id}: MLflow at {uri} has no such run") from None
        raise


def _rows(client: MlflowClient, run: Run) -> list[Row]:
    """Return the points of all metrics that are curves, one for each step; the last value of a step counts."""
    points: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        if name.startswith(("system/", "eval/", "events/")):
            continue
        for point in client.get_metric_history(run.info.run_id, name):
            points.setdefault(point.step, {})[name] = point.value
    rows: list[Row] = []
    for step, metrics in sorted(points.items()):
        kimg = metrics.get("progress/kimg", step)
        resolution = int(metrics.get("progress/resolution", 0))
        rows.append({"nimg": round(kimg * 1000), "resolution": resolution, "metrics": metrics})
    return rows


def _report(client: MlflowClient, mlflow_run_id: str) -> Report | None:
    if not any(file.path == "report.json" for file in client.list_artifacts(mlflow_run_id)):
        return None
    with tempfile.TemporaryDirectory() as folder:
        text = Path(client.download_artifacts(mlflow_run_id, "report.json", folder)).read_text()
    try:
        return parse(text, Report, origin=f"report.json of MLflow run {mlflow_run_id}", cure="log it again")
    except DamagedError:  # that of another program
        return None
