"""The runs above others in MLflow: those of sweeps, which gather runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from stylegan.tracking.connection import connect, explained, is_empty
from stylegan.tracking.open_run import PARENT_TAG
from stylegan.tracking.pages import all_pages
from stylegan.tracking.presentation import RUN_TAG

if TYPE_CHECKING:
    from PIL import Image


def common_parent(uri: str, run_ids: Sequence[str], mlflow_run_ids: Sequence[str] = ()) -> str | None:
    """Return MLflow's id of the run that all these runs are below; None if there is no such run.

    Args:
        uri: of the tracking server.
        run_ids: of pipeline runs. One that several sweeps share is below each of them.
        mlflow_run_ids: of other runs in MLflow.

    Raises:
        StepError: MLflow does not answer.
    """
    if is_empty(uri):
        return None
    client = connect(uri)
    above: list[set[str]] = []
    with explained(uri, "look up the runs above these"):
        for mlflow_run_id in mlflow_run_ids:
            parent = client.get_run(mlflow_run_id).data.tags.get(PARENT_TAG)
            above.append({parent} if parent else set())
        experiments = [one.experiment_id for one in all_pages(client.search_experiments)] if run_ids else []
        for run_id in run_ids:
            found = all_pages(partial(client.search_runs, experiments, f"tags.`{RUN_TAG}` = '{run_id}'"))
            above.append({run.data.tags[PARENT_TAG] for run in found if PARENT_TAG in run.data.tags})
    return min(set.intersection(*above), default=None) if above else None


def log_page(uri: str, mlflow_run_id: str, html: str, name: str) -> None:
    """Log a page as an artifact of a run, in place of one of the same name. Raises StepError if MLflow refuses."""
    client = connect(uri)
    with explained(uri, f"log {name}"):
        client.log_text(mlflow_run_id, html, name)


def log_picture(uri: str, mlflow_run_id: str, picture: Image.Image, name: str) -> None:
    """Log a picture as an artifact of a run, in place of one of the same name. Raises StepError if MLflow refuses."""
    client = connect(uri)
    with explained(uri, f"log {name}"):
        client.log_image(mlflow_run_id, picture, artifact_file=name)
