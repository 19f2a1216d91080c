"""Open the MLflow run of a pipeline run, with its experiment, params, config and data set."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.file import dump, flatten
from stylegan.config.tree import Config
from stylegan.data.dataset_card import read_card, read_preview, read_rejected
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.tracking.connection import artifact_location, connect, explained, resolve_uri
from stylegan.tracking.runs import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("stylegan")
RUN_TAG = "stylegan.run_id"
MAX_PARAMS, MAX_VALUE, MAX_DIGEST = 100, 6000, 36  # MLflow's limits
MAX_REJECTED = 1000  # rows of the table of rejects: its page shows them all at once


def open_run(config: Config, run_id: str, shards: ShardSet | None, *, parent: str | None = None) -> TrackedRun:
    """Continue the MLflow run of `run_id`, or create it; log params, config.yaml and data set if it lacks them.

    Args:
        config: its flattened values become params, once.
        run_id: the pipeline run's id; name and tag of the MLflow run.
        shards: the run's input dataset, also as artifacts below data/; None for a run that only gathers others (a
            sweep).
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


def _experiment(client: MlflowClient, config: Config) -> str:
    """Return the id of the experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(config)))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another run created it in this moment
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        restore = shell_command(
            *("mlflow", "experiments", "restore", "--experiment-id", found.experiment_id),
            MLFLOW_TRACKING_URI=resolve_uri(config),
        )
        raise StepError(
            f"tracking.experiment={name}: this experiment was deleted in MLflow; restore it with `{restore}` or choose "
            "another name"
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
    """Log params that the run lacks; MLflow refuses to change one, so those of the first start stay."""
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
    """Log card, preview and rejects of the data set below data/; sets of older versions have no card."""
    card = read_card(shards.uri)
    if card is None or client.list_artifacts(mlflow_run_id, "data"):
        return
    preview = read_preview(shards.uri)  # a picture for people ends no run
    if preview is not None:
        client.log_image(mlflow_run_id, preview, artifact_file="data/preview.png")
    try:
        rows = read_rejected(shards.uri, MAX_REJECTED)
    except FileNotFoundError:  # somebody deleted the list
        rows = []
    if rows:
        columns = {name: [row.get(name) for row in rows] for name in ("kind", "path", "reason", "bytes")}
        client.log_table(mlflow_run_id, columns, "data/rejected.json")
    client.log_text(mlflow_run_id, card.model_dump_json(indent=1), "data/card.json")
