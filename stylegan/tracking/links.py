"""The addresses of MLflow's pages: that of a run, and that of the prepared view of its experiment."""

from __future__ import annotations

from stylegan.commands import shell_command
from stylegan.config.tree import Config
from stylegan.errors import StepError
from stylegan.tracking.connection import connect, explained, from_here, is_empty, resolve_uri
from stylegan.tracking.views import view_path
from stylegan.uris import redact

PORT = 5000
LOCAL = f"http://127.0.0.1:{PORT}"  # where `server_command` shows an embedded store


def server_command(config: Config) -> str | None:
    """Return the command that shows the store of a config at LOCAL; None where a server of MLflow runs already."""
    uri = resolve_uri(config)
    if uri.startswith(("http://", "https://", "databricks")):
        return None
    return shell_command("mlflow", "ui", "--backend-store-uri", redact(from_here(uri)), "--port", str(PORT))


def run_url(config: Config, mlflow_run_id: str) -> str | None:
    """Return the address of a run's page; None if there is no such page, or MLflow does not answer.

    For an embedded store it is right while `server_command` runs.
    """
    base, experiment = _base(config), experiment_id(config)
    return f"{base}/#/experiments/{experiment}/runs/{mlflow_run_id}" if base and experiment else None


def comparison_url(config: Config, *, charts: bool = True) -> str | None:
    """Return the address of the prepared view of a config's experiment, as charts or as a table; None as `run_url`."""
    base, experiment = _base(config), experiment_id(config)
    return f"{base}/{view_path(experiment, charts=charts)}" if base and experiment else None


def experiment_id(config: Config) -> str | None:
    """Return MLflow's id of the config's experiment; None if there is none, or MLflow does not answer. Writes nothing."""
    uri = resolve_uri(config)
    try:
        if is_empty(uri):
            return None
        client = connect(uri)
        with explained(uri, "look up the experiment"):
            found = client.get_experiment_by_name(config.tracking.experiment)
    except StepError:  # a link is for people, and worth no run
        return None
    return str(found.experiment_id) if found else None


def _base(config: Config) -> str | None:
    """Return the address of the server, without a slash at its end; None for Databricks, whose pages are its own."""
    uri = resolve_uri(config)
    if uri.startswith("databricks"):
        return None
    return redact(uri).rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL
