"""Open the MLflow run of a pipeline run, with its experiment, params, config and data set."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.file import dump, flatten
from stylegan.config.tree import Config
from stylegan.data.dataset_card import DatasetCard, read_card, read_preview, read_rejected
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError, shown
from stylegan.tracking.connection import artifact_location, check_server, connect, explained, is_empty, resolve_uri
from stylegan.tracking.metric_names import constant_names
from stylegan.tracking.presentation import RUN_TAG, describe_difference, first_tags
from stylegan.tracking.runs import TrackedRun
from stylegan.tracking.views import prepare_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

logger = logging.getLogger("stylegan")
PARENT_TAG = "mlflow.parentRunId"
CARD_FILE = "data/card.json"
MAX_PARAMS, MAX_VALUE, MAX_DIGEST = 100, 6000, 36  # MLflow's limits
MAX_REJECTED = 1000  # rows of the table of rejects: its page shows them all at once
MAX_NAMES = 1000  # of classes in the description of the data set


def open_run(config: Config, run_id: str, shards: ShardSet | None, *, parent: str | None = None) -> TrackedRun:
    """Continue the MLflow run of `run_id`, or create it; log params, config.yaml and data set if it lacks them.

    A finished run that lacks nothing is only read: it stays finished until something new is logged. A run that cannot be
    opened ends as FAILED.

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
        experiment = _experiment(client, config)
        prepare_experiment(client, experiment)
        experiment_id = str(experiment.experiment_id)
        found = _find_run(client, experiment_id, run_id)
        mlflow_run_id = str(found.info.run_id) if found else _create_run(client, experiment_id, run_id)
        with _ended_if_it_fails(client, mlflow_run_id):
            if parent and not (found and found.data.tags.get(PARENT_TAG) == parent):
                client.set_tag(mlflow_run_id, PARENT_TAG, parent)
            describe = partial(_describe, client, mlflow_run_id, config, shards)
            run = TrackedRun(client, uri, mlflow_run_id, describe, constant=constant_names(config))
            finished = found is not None and found.info.status == "FINISHED"
            if not finished or (shards and _lacks_card(client, mlflow_run_id, shards)):
                run.start()
    return run


@contextmanager
def _ended_if_it_fails(client: MlflowClient, mlflow_run_id: str) -> Iterator[None]:
    """End a run that the block began to run and then failed to open; without this it would show as running for ever."""
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # the error of the block is the one to report
            if client.get_run(mlflow_run_id).info.status == "RUNNING":
                client.set_terminated(mlflow_run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise


def _describe(client: MlflowClient, mlflow_run_id: str, config: Config, shards: ShardSet | None) -> None:
    """Log params, config.yaml and data set, as far as the run lacks them."""
    _log_params(client, mlflow_run_id, flatten(config))
    if shards:
        describe_difference(client, mlflow_run_id)
    client.log_text(mlflow_run_id, dump(config), "config.yaml")
    if shards:
        _log_dataset(client, mlflow_run_id, config, shards)
        if _lacks_card(client, mlflow_run_id, shards):
            _log_card(client, mlflow_run_id, shards)


def check_experiment(config: Config) -> None:
    """Check that runs can be logged to the experiment: it does not exist yet, or was not deleted. Writes nothing.

    Raises:
        ConfigError, StepError: tracking.uri cannot work, MLflow does not answer, or the experiment was deleted.
    """
    uri = resolve_uri(config)
    if is_empty(uri):
        check_server(uri)
        return
    client = connect(uri)
    with explained(uri, "look up the experiment"):
        _require_active(client.get_experiment_by_name(config.tracking.experiment), uri)


def _experiment(client: MlflowClient, config: Config) -> Experiment:
    """Return the experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name, artifact_location=artifact_location(config)))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another run created it in this moment
            if found is None:
                raise error
    _require_active(found, resolve_uri(config))
    return found


def _require_active(found: Experiment | None, uri: str) -> None:
    """Raise StepError if an experiment was deleted."""
    if found is not None and found.lifecycle_stage != "active":
        restore = shell_command(
            "mlflow", "experiments", "restore", "--experiment-id", found.experiment_id, MLFLOW_TRACKING_URI=uri
        )
        raise StepError(
            f"tracking.experiment={found.name}: this experiment was deleted in MLflow; restore it with `{restore}` or "
            "choose another name"
        )


def _find_run(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
    found = client.search_runs(
        [experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    return found[0] if found else None


def _create_run(client: MlflowClient, experiment_id: str, run_id: str) -> str:
    from mlflow.tracking.context.registry import resolve_tags

    return str(
        client.create_run(
            experiment_id, run_name=run_id, tags=resolve_tags({RUN_TAG: run_id} | first_tags(run_id))
        ).info.run_id
    )


def _log_params(client: MlflowClient, mlflow_run_id: str, params: dict[str, str]) -> None:
    """Log params that the run lacks; MLflow refuses to change one, so those of the first start stay."""
    from mlflow.entities import Param

    there = client.get_run(mlflow_run_id).data.params
    new = [Param(key, value[:MAX_VALUE]) for key, value in params.items() if key not in there]
    for i in range(math.ceil(len(new) / MAX_PARAMS)):
        client.log_batch(mlflow_run_id, params=new[i * MAX_PARAMS : (i + 1) * MAX_PARAMS])


def _log_dataset(client: MlflowClient, mlflow_run_id: str, config: Config, shards: ShardSet) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    there = client.get_run(mlflow_run_id).inputs
    digest = shards.fingerprint[:MAX_DIGEST]
    if there and any(item.dataset.digest == digest for item in there.dataset_inputs):
        return
    facts = shards.model_dump(mode="json", include={"num_images", "resolutions", "num_rejected"})
    facts["label_names"] = [shown(name) for name in shards.label_names[:MAX_NAMES]]
    dataset = Dataset(
        name=config.data.source[-500:],
        digest=digest,
        source_type="local" if storage.is_local(shards.uri) else shards.uri.partition("://")[0],
        source=json.dumps({"uri": shards.uri}),
        schema=json.dumps(_schema(config, shards)),
        profile=json.dumps(facts),
    )
    client.log_inputs(mlflow_run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _schema(config: Config, shards: ShardSet) -> dict[str, Any]:
    """Return what a sample is, in the form of which MLflow's page makes a table."""
    side = config.data.resolution
    columns = [{"name": "image", "type": f"uint8 [{config.data.channels}, {side}, {side}]"}]
    if shards.label_names:
        columns.append({"name": "label", "type": f"int64, one of {len(shards.label_names):,} classes"})
    if shards.attribute_names:
        columns.append({"name": "attributes", "type": f"bool [{len(shards.attribute_names)}]"})
    return {"mlflow_colspec": columns}


def _lacks_card(client: MlflowClient, mlflow_run_id: str, shards: ShardSet) -> bool:
    """Return whether the data set has a card and the run has not all of it: the card is logged last of data/."""
    card = read_card(shards.uri)
    if card is None:  # sets of older versions have none
        return False
    sizes = {file.path: file.file_size for file in client.list_artifacts(mlflow_run_id, "data")}
    num_bytes = len(_card_text(card).encode())
    return sizes.get(CARD_FILE, -1) not in (num_bytes, None)  # None: a store that does not tell


def _log_card(client: MlflowClient, mlflow_run_id: str, shards: ShardSet) -> None:
    """Log preview, rejects and card of the data set below data/, in place of what an interrupted run left there."""
    preview = read_preview(shards.uri)  # a picture for people ends no run
    if preview is not None:
        client.log_image(mlflow_run_id, preview, artifact_file="data/preview.png")
    try:
        rows = read_rejected(shards.uri, MAX_REJECTED)
    except FileNotFoundError:  # somebody deleted the list
        rows = []
    if rows:
        _log_table(client, mlflow_run_id, rows, "data/rejected.json")
    card = read_card(shards.uri)
    if card is not None:
        client.log_text(mlflow_run_id, _card_text(card), CARD_FILE)


def _card_text(card: DatasetCard) -> str:
    return card.model_dump_json(indent=1)


def _log_table(client: MlflowClient, mlflow_run_id: str, rows: Sequence[Mapping[str, Any]], file: str) -> None:
    """Log rejects as a table that MLflow's page shows. MLflow's own `log_table` would append to a table that is there."""
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

    columns = ("kind", "path", "reason", "bytes")
    table = {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
    client.log_text(mlflow_run_id, json.dumps(table), file)
    logged = json.loads(client.get_run(mlflow_run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    if (entry := {"path": file, "type": "table"}) not in logged:
        client.set_tag(mlflow_run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*logged, entry]))
