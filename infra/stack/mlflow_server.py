"""MLflow's server: its database, its logins, artifacts through it to S3."""

from __future__ import annotations

import sys

from infra.stack import databases
from infra.stack.environment import BUCKETS, LOOPBACK
from infra.stack.postgres import database_uri
from infra.stack.service import Service, Values, folder, get, write_private


def mlflow_database(values: Values) -> str:
    """Return the SQLAlchemy URI of MLflow's database, with its password."""
    return database_uri(values, "mlflow", "sqlite" if values["STACK_DATABASE"] == "sqlite" else "postgresql+psycopg")


def _mlflow_prepare(values: Values) -> None:
    """Write the settings of MLflow's logins, and upgrade the database of an older MLflow."""
    lines = [
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = {mlflow_database(values)}",
        f"admin_username = {values['MLFLOW_TRACKING_USERNAME']}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds = 60",  # a password is hashed once a minute, not at every request of a run
    ]
    folder(values, "mlflow").mkdir(parents=True, exist_ok=True)
    write_private(folder(values, "mlflow") / "auth.ini", "\n".join(lines) + "\n")
    if databases.before_start(values, "mlflow"):
        from stylegan.tracking.upgrade import upgrade_database  # imports MLflow, which takes seconds

        upgrade_database(mlflow_database(values))


def _mlflow_command(values: Values) -> list[str]:
    host, port = values["STACK_HOST"], values["STACK_MLFLOW_PORT"]
    return [
        *(sys.executable, "-P", "-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "2"),
        # Names by which it is reached; any other is refused, which keeps web pages from asking it behind one's back.
        *("--app-name", "basic-auth", "--allowed-hosts", f"localhost:{port},{LOOPBACK}:{port},{host}:{port}"),
        *("--serve-artifacts", "--artifacts-destination", f"s3://{BUCKETS[1]}"),
    ]


def _mlflow_environment(values: Values) -> dict[str, str]:
    return {
        **{name: values[name] for name in values if name.startswith("AWS_")},
        "MLFLOW_BACKEND_STORE_URI": mlflow_database(values),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder(values, "mlflow") / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": values["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": values["STACK_MLFLOW_SECRET_KEY"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # six more processes and a SQLite file, for what is not used here
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _mlflow_check(values: Values) -> str:
    base, login = (
        values["MLFLOW_TRACKING_URI"],
        (values["MLFLOW_TRACKING_USERNAME"], values["MLFLOW_TRACKING_PASSWORD"]),
    )
    get(f"{base}/api/2.0/mlflow/experiments/search?max_results=1", login)  # asks the database
    return str(get(f"{base}/version", login).text.strip())


MLFLOW = Service(
    "mlflow",
    ("s3", "postgres"),
    _mlflow_command,
    _mlflow_environment,
    _mlflow_check,
    lambda values: values["MLFLOW_TRACKING_URI"],
    ("STACK_MLFLOW_PORT",),
    prepare=_mlflow_prepare,
    finish=lambda values: databases.note_version(values, "mlflow"),
    to_all=True,
)
