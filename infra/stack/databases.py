"""Copies of the databases of MLflow and Prefect, and the copy before another version of them starts on its database."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from infra.stack.environment import LOOPBACK, data_folder, postgres_programs
from infra.stack.postgres import DATABASES, SUPERUSER, postgres_connect
from infra.stack.service import Values, folder, run_quietly, version_of
from stylegan import storage
from stylegan.errors import StepError

# Of each table of MLflow's and Prefect's databases that says of which version it is.
REVISIONS = "alembic_version"


def stamp() -> str:
    """Return the time as a part of a file name."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


def dump(values: Values, name: str, path: Path) -> None:
    """Copy a database as it is at one moment, while it is in use.

    Args:
        values: of the env file.
        name: one of `DATABASES`.
        path: of the copy, which appears whole or not at all; only its owner can read it.
    """
    with storage.replacing(path) as partial:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        if values["STACK_DATABASE"] == "sqlite":
            with closing(_sqlite(values, name)) as source, closing(sqlite3.connect(partial)) as target:
                source.backup(target)
        else:
            _postgres_tool(values, "pg_dump", "--format=custom", f"--file={partial}", f"--dbname={name}")


def load(values: Values, name: str, path: Path) -> None:
    """Fill an empty database from a copy of `dump`, all of it or nothing."""
    if values["STACK_DATABASE"] == "sqlite":
        _file(values, name).parent.mkdir(parents=True, exist_ok=True)
        with storage.replacing(_file(values, name)) as partial:
            shutil.copyfile(path, partial)
        return
    _postgres_tool(values, "pg_restore", "--exit-on-error", "--single-transaction", f"--dbname={name}", str(path))


def set_mlflow_password(values: Values) -> None:
    """Let MLflow's administrator have the password of the env file, in a database that comes from another stack."""
    if not _has_table(values, "mlflow", "users"):  # MLflow never ran there
        return
    from werkzeug.security import generate_password_hash

    new = (generate_password_hash(values["MLFLOW_TRACKING_PASSWORD"]), values["MLFLOW_TRACKING_USERNAME"])
    if values["STACK_DATABASE"] == "sqlite":
        with closing(_sqlite(values, "mlflow")) as database, database:
            database.execute("UPDATE users SET password_hash = ? WHERE username = ?", new)
        return
    with postgres_connect(values, "mlflow") as connection:
        connection.execute("UPDATE users SET password_hash = %s WHERE username = %s", new)


def before_start(values: Values, name: str) -> bool:
    """Copy a database if its service had another version when it was up last; return whether that is so.

    Raises:
        StepError: it had a newer one, which nothing undoes.
    """
    noted = _version_file(values, name)
    here, there = version_of(name), noted.read_text().strip() if noted.exists() else ""
    if there == here or not _has_table(values, name, REVISIONS):
        return False
    if is_newer(there, here):
        raise StepError(
            f"{name}: {there} has used this database, and {here} is installed here, which is older; install {there}, or "
            "restore a backup of before"
        )
    copies = data_folder(values) / "before-upgrades"
    copies.mkdir(mode=0o700, exist_ok=True)
    dump(values, name, copies / f"{name}-{there or 'unknown'}-{stamp()}.dump")
    return True


def note_version(values: Values, name: str) -> None:
    """Note that the installed version of a service has used its database."""
    if _version_file(values, name).parent.is_dir():
        storage.write_local(_version_file(values, name), version_of(name).encode())


def set_version(values: Values, name: str, version: str) -> None:
    """Note the version of a service that has used its database elsewhere."""
    _version_file(values, name).parent.mkdir(parents=True, exist_ok=True)
    storage.write_local(_version_file(values, name), version.encode())


def is_newer(there: str, here: str) -> bool:
    """Return whether a version is newer than another, patches aside: those leave databases as they are."""
    first, second = ([int(number) for number in re.findall(r"\d+", version)[:2]] for version in (there, here))
    return bool(first and second) and first > second


def _has_table(values: Values, name: str, table: str) -> bool:
    if values["STACK_DATABASE"] == "sqlite":
        with closing(_sqlite(values, name)) as database:
            query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
            return bool(database.execute(query, (table,)).fetchone()[0])
    with postgres_connect(values, name) as connection:
        return connection.execute("SELECT to_regclass(%s)", (table,)).fetchone()[0] is not None


def _sqlite(values: Values, name: str) -> sqlite3.Connection:
    _file(values, name).parent.mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(_file(values, name))


def _file(values: Values, name: str) -> Path:
    return folder(values, name) / f"{name}.db"


def _version_file(values: Values, name: str) -> Path:
    assert name in DATABASES
    return folder(values, name) / "version"


def _postgres_tool(values: Values, tool: str, *arguments: str) -> None:
    programs = postgres_programs()
    if programs is None:
        raise StepError(f"{tool} is missing; install PostgreSQL")
    server = [f"--host={LOOPBACK}", f"--port={values['STACK_POSTGRES_PORT']}", f"--username={SUPERUSER}"]
    command = [str(programs / tool), "--no-owner", "--no-privileges", "--no-password", *server, *arguments]
    run_quietly(command, environment={"PGPASSWORD": values["STACK_POSTGRES_PASSWORD"]})
