"""PostgreSQL, with a database for MLflow and one for Prefect; both use SQLite where it is not installed."""

from __future__ import annotations

import os
import shutil
import signal
from typing import Any

from infra.stack.environment import LOOPBACK, data_folder, postgres_obstacle, postgres_programs, postgres_user
from infra.stack.service import ANSWER_SECONDS, Service, Values, folder, run_quietly, write_private
from stylegan.errors import StepError

DATABASES = ("mlflow", "prefect")
SUPERUSER = "stylegan"


def _postgres_prepare(values: Values) -> None:
    """Make the database cluster, for one user with a password, anew if that was cut off before."""
    home, programs = folder(values, "postgres"), postgres_programs()
    obstacle = postgres_obstacle(data_folder(values))
    if obstacle or programs is None:
        raise StepError(f"{obstacle}; mend that, move STACK_DATA, or set STACK_DATABASE=sqlite before the first start")
    if (home / "PG_VERSION").exists():
        made, installed = (home / "PG_VERSION").read_text().strip(), programs.parent.name
        if installed.isdigit() and made != installed:
            raise StepError(
                f"{home} is of PostgreSQL {made}, and {installed} is installed; start with {made}, `infra/stack.sh backup`, "
                "and restore into an empty stack"
            )
        return
    partial = home.with_name(f"{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    user = postgres_user()
    password = home.with_name("postgres.password")
    write_private(password, values["STACK_POSTGRES_PASSWORD"])
    if user:
        os.chown(partial, user.pw_uid, user.pw_gid)
        os.chown(password, user.pw_uid, user.pw_gid)
    command = [str(programs / "initdb"), "-D", str(partial), "-U", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8"]
    run_quietly([*command, "--no-locale", "--data-checksums", f"--pwfile={password}"], user)
    password.unlink()
    os.rename(partial, home)


def _postgres_command(values: Values) -> list[str]:
    home, port = folder(values, "postgres"), values["STACK_POSTGRES_PORT"]
    programs = postgres_programs()
    assert programs is not None  # prepare has seen to it
    # No socket in a folder: its path may be too long for one. Only services of this machine use it.
    settings = [f"listen_addresses={LOOPBACK}", f"port={port}", "unix_socket_directories=", "max_connections=200"]
    return [str(programs / "postgres"), "-D", str(home), *(part for one in settings for part in ("-c", one))]


def postgres_connect(values: Values, database: str = "postgres") -> Any:
    """Return a connection to a database of the stack's PostgreSQL, which commits every statement."""
    import psycopg

    return psycopg.connect(
        host=LOOPBACK,
        port=int(values["STACK_POSTGRES_PORT"]),
        user=SUPERUSER,
        password=values["STACK_POSTGRES_PASSWORD"],
        dbname=database,
        connect_timeout=int(ANSWER_SECONDS),
        autocommit=True,
    )


def _postgres_check(values: Values) -> str:
    with postgres_connect(values) as connection:
        return str(connection.execute("SHOW server_version").fetchone()[0]).split()[0]


def _postgres_finish(values: Values) -> None:
    with postgres_connect(values) as connection:
        there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in DATABASES:
            if name not in there:
                connection.execute(f"CREATE DATABASE {name}")


def database_uri(values: Values, name: str, driver: str) -> str:
    """Return the SQLAlchemy URI of a service's database, with its password.

    Args:
        values: of the env file.
        name: of the service.
        driver: for PostgreSQL, or for SQLite (`sqlite`, `sqlite+aiosqlite`).
    """
    if values["STACK_DATABASE"] == "sqlite":
        return f"{driver}:///{folder(values, name) / f'{name}.db'}"
    login = f"{SUPERUSER}:{values['STACK_POSTGRES_PASSWORD']}"
    return f"{driver}://{login}@{LOOPBACK}:{values['STACK_POSTGRES_PORT']}/{name}"


POSTGRES = Service(
    "postgres",
    (),
    _postgres_command,
    lambda _: {},
    _postgres_check,
    lambda values: f"postgresql://{LOOPBACK}:{values['STACK_POSTGRES_PORT']}",
    ("STACK_POSTGRES_PORT",),
    prepare=_postgres_prepare,
    finish=_postgres_finish,
    stop_signal=signal.SIGINT,  # PostgreSQL's fast way; SIGTERM waits for all clients
    is_there=lambda values: values["STACK_DATABASE"] == "postgresql",
)
