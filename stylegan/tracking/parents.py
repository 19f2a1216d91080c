"""The runs above others in MLflow: those of sweeps, which gather runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stylegan.tracking.connection import connect, explained, is_empty
from stylegan.tracking.open_run import PARENT_TAG, RUN_TAG
from stylegan.tracking.pages import all_pages


def common_parent(uri: str, run_ids: Sequence[str]) -> str | None:
    """Return MLflow's id of the run that all these pipeline runs are below; None if there is no such run.

    Raises:
        StepError: MLflow does not answer.
    """
    if is_empty(uri):
        return None
    client = connect(uri)
    common: set[str] | None = None
    with explained(uri, "look up the runs above these"):
        experiments = [experiment.experiment_id for experiment in all_pages(client.search_experiments)]
        for run_id in run_ids:
            found = all_pages(partial(client.search_runs, experiments, f"tags.`{RUN_TAG}` = '{run_id}'"))
            parents = {run.data.tags[PARENT_TAG] for run in found if PARENT_TAG in run.data.tags}
            common = parents if common is None else common & parents
    return min(common) if common else None


def log_page(uri: str, mlflow_run_id: str, html: str, name: str) -> None:
    """Log a page as an artifact of a run, in place of one of the same name. Raises StepError if MLflow refuses."""
    client = connect(uri)
    with explained(uri, f"log {name}"):
        client.log_text(mlflow_run_id, html, name)
