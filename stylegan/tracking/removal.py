"""List and delete runs and models of MLflow, with their files.

MLflow's own deletion only marks; its `mlflow gc` frees the bytes later. Behind a database this is done here at once. A
tracking server keeps it to itself, and to whoever runs `mlflow gc` beside it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from stylegan.config.tree import Config
from stylegan.records import Record
from stylegan.tracking.connection import artifact_location, connect, explained, is_empty, resolve_uri
from stylegan.tracking.open_run import PARENT_TAG
from stylegan.tracking.pages import all_pages
from stylegan.tracking.presentation import RUN_TAG


class LoggedRun(Record):
    """A run of MLflow that belongs to a run of the pipeline.

    `changed` is its newest time, in seconds since 1970; `running` says that MLflow shows it so; `parent` is MLflow's id of
    the run that it is shown below, empty without one.
    """

    mlflow_run_id: str
    run_id: str
    artifact_uri: str
    changed: float
    running: bool
    parent: str = ""


def list_runs(config: Config) -> tuple[LoggedRun, ...]:
    """Return the runs of the experiment of a config that this program has made. Writes nothing.

    Raises:
        ConfigError, StepError: as `connect`; MLflow refuses.
    """
    uri = resolve_uri(config)
    if is_empty(uri):
        return ()
    client = connect(uri)
    with explained(uri, "list the runs"):
        experiment = client.get_experiment_by_name(config.tracking.experiment)
        if experiment is None:
            return ()
        found = all_pages(partial(client.search_runs, [experiment.experiment_id]))
    return tuple(
        LoggedRun(
            mlflow_run_id=run.info.run_id,
            run_id=run.data.tags[RUN_TAG],
            artifact_uri=run.info.artifact_uri,
            changed=max(run.info.start_time or 0, run.info.end_time or 0) / 1000,
            running=run.info.status == "RUNNING",
            parent=run.data.tags.get(PARENT_TAG, ""),
        )
        for run in found
        if RUN_TAG in run.data.tags
    )


def frees_bytes(config: Config) -> bool:
    """Return whether what is deleted here is gone at once: behind a database, not behind a tracking server."""
    return not resolve_uri(config).startswith(("http://", "https://", "databricks"))


def delete_run(config: Config, mlflow_run_id: str) -> None:
    """Delete a run of MLflow with its files and its logged models; do nothing if it is gone.

    Raises:
        StepError: MLflow refuses.
    """
    uri = resolve_uri(config)
    client = connect(uri)
    with explained(uri, f"delete the run {mlflow_run_id}"):
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(mlflow_run_id)
            if run.info.lifecycle_stage == "active":
                client.delete_run(mlflow_run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        # A registration that was cut leaves a model without a version.
        of_run = f"source_run_id='{mlflow_run_id}'"
        models = all_pages(partial(client.search_logged_models, [run.info.experiment_id], of_run))
    for model in models:
        delete_model(config, model.model_id)
    with explained(uri, f"delete the run {mlflow_run_id}"):
        if store := _database(config):
            _delete_files(run.info.artifact_uri)
            store._hard_delete_run(mlflow_run_id)


def delete_model(config: Config, model_id: str) -> None:
    """Delete a logged model of MLflow with its files; do nothing if it is gone. Raises StepError if MLflow refuses."""
    uri = resolve_uri(config)
    client = connect(uri)
    with explained(uri, f"delete the model {model_id}"):
        from mlflow.exceptions import MlflowException

        try:
            location = client.get_logged_model(model_id).artifact_location
            client.delete_logged_model(model_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        if store := _database(config):
            _delete_files(location)
            store._hard_delete_logged_model(model_id)


def _database(config: Config) -> Any | None:
    """Return the store of a database, which can delete for good; None for a tracking server."""
    if not frees_bytes(config):
        return None
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(resolve_uri(config), artifact_location(config) or "")


def _delete_files(artifact_uri: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with suppress(FileNotFoundError):
        get_artifact_repository(artifact_uri).delete_artifacts()
