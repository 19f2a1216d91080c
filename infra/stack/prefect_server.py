"""Prefect's server, and the worker that carries out scheduled runs on this machine."""

from __future__ import annotations

import signal
import sys
from datetime import datetime

from infra.stack import databases
from infra.stack.postgres import database_uri
from infra.stack.service import Service, Values, client_environment, folder, get, pid_file, version_of
from stylegan.errors import StepError
from stylegan.records import digest

POOL = "stylegan"  # work pool of scheduled runs


def prefect_database(values: Values) -> str:
    """Return the SQLAlchemy URI of Prefect's database, with its password."""
    driver = "sqlite+aiosqlite" if values["STACK_DATABASE"] == "sqlite" else "postgresql+asyncpg"
    return database_uri(values, "prefect", driver)


def _prefect_prepare(values: Values) -> None:
    folder(values, "prefect").mkdir(parents=True, exist_ok=True)
    databases.before_start(values, "prefect")  # Prefect's server upgrades its database by itself


def _prefect_command(values: Values) -> list[str]:
    host, port = values["STACK_HOST"], values["STACK_PREFECT_PORT"]
    return [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", host, "--port", port]


def prefect_environment(values: Values) -> dict[str, str]:
    """Return the settings of the Prefect server."""
    return {
        "PREFECT_HOME": str(folder(values, "prefect")),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": prefect_database(values),
        "PREFECT_SERVER_API_AUTH_STRING": values["PREFECT_API_AUTH_STRING"],
        # In memory, as is its default, a restart would end every run of a deployment with a limit.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }


def _prefect_login(values: Values) -> tuple[str, str]:
    user, _, password = values["PREFECT_API_AUTH_STRING"].partition(":")
    return user, password


def _prefect_check(values: Values) -> str:
    api, login = values["PREFECT_API_URL"], _prefect_login(values)
    get(f"{api}/ready", login)  # asks the database
    return str(get(f"{api}/admin/version", login).json())


def _worker_prepare(values: Values) -> None:
    folder(values, "worker").mkdir(parents=True, exist_ok=True)


def _worker_command(values: Values) -> list[str]:
    program = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    return [*program, "--name", _worker_name(values)]


def _worker_name(values: Values) -> str:
    return f"stack-{digest(values['STACK_DATA'])[:8]}"


def _worker_environment(values: Values) -> dict[str, str]:
    return client_environment(values) | {"PREFECT_HOME": str(folder(values, "worker")), "DO_NOT_TRACK": "1"}


def _worker_check(values: Values) -> str:
    """Ask the server for the worker, which sends it a sign of life every 30 s."""
    url = f"{values['PREFECT_API_URL']}/work_pools/{POOL}/workers/filter"
    found = get(url, _prefect_login(values), {}).json()
    heard = [worker["last_heartbeat_time"] for worker in found if worker["name"] == _worker_name(values)]
    started = float(pid_file(values, "worker").read_text().split()[1])
    if not heard or datetime.fromisoformat(heard[0]).timestamp() < started:
        raise StepError("the Prefect server has not heard from it since its start")
    if not any(worker["status"] == "ONLINE" for worker in found if worker["name"] == _worker_name(values)):
        raise StepError(f"the Prefect server has not heard from it since {heard[0]}")
    return version_of("prefect")


PREFECT = Service(
    "prefect",
    ("postgres",),
    _prefect_command,
    prefect_environment,
    _prefect_check,
    lambda values: values["PREFECT_API_URL"].removesuffix("/api"),
    ("STACK_PREFECT_PORT",),
    prepare=_prefect_prepare,
    finish=lambda values: databases.note_version(values, "prefect"),
    stop_signal=signal.SIGINT,
    to_all=True,
)


WORKER = Service(
    "worker",
    ("prefect",),
    _worker_command,
    _worker_environment,
    _worker_check,
    lambda values: f"pool {POOL}",
    (),
    prepare=_worker_prepare,
    stop_seconds=60,  # its runs write a checkpoint
    to_all=True,
)
