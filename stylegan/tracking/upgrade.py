"""SQLite files of an older MLflow: a copy of them, and their upgrade to the version that is installed here.

MLflow by itself upgrades some of them as it opens them, and refuses others. No way leads back from an upgrade.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from stylegan import storage
from stylegan.errors import StepError, one_line

logger = logging.getLogger("stylegan")


@contextmanager
def alone_if_made(path: Path, uri: str) -> Iterator[None]:
    """Let one process at a time make or upgrade a SQLite file of MLflow inside the block; others wait for its end.

    MLflow makes its tables step by step: another process that saw them half made would take them for those of an older
    version. A file that an older MLflow has written is upgraded at the beginning; a copy stays beside it.

    Args:
        path: the file, or where it will be.
        uri: its tracking URI.

    Raises:
        StepError: the copy or the upgrade fails.
    """
    known = known_revisions()
    if _revision(path) == known[0]:
        yield
        return
    lock = Path(f"{path}.lock")
    with FileLock(lock):
        try:
            if _revision(path) in known[1:]:  # no other process has done it meanwhile
                _copy_and_upgrade(path, uri)
            yield
        finally:
            lock.unlink(missing_ok=True)


def _copy_and_upgrade(path: Path, uri: str) -> None:
    from mlflow.version import VERSION

    copy = Path(f"{path}.before-{VERSION}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    _copy(path, copy)
    message = "%s: an older MLflow has written it; it is upgraded to MLflow %s, and %s keeps it as it was"
    logger.warning(message, path, VERSION, copy)
    try:
        upgrade_database(uri)
    except Exception as error:
        copies = ", ".join(map(str, sorted(path.parent.glob(f"{path.name}.before-*"))))
        raise StepError(
            f"MLflow at {uri}: cannot upgrade this database of an older MLflow: {one_line(error)}; put back a copy of "
            f"before ({copies}), or set tracking.uri to another place"
        ) from error


def upgrade_database(uri: str) -> None:
    """Upgrade a database to the installed MLflow, as `mlflow db upgrade`, which shows the password in the list of processes."""
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(uri)
    try:
        _upgrade_db(engine)
    finally:
        engine.dispose()


def known_revisions() -> tuple[str, ...]:
    """Return the revisions of a database's schema that the installed MLflow knows, its own first."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return tuple(script.revision for script in ScriptDirectory.from_config(_get_alembic_config("")).walk_revisions())


def _revision(path: Path) -> str | None:
    """Return the revision of a file's schema; None if it has none, as before it is made."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:  # none of MLflow's, or one that MLflow itself will say more of
        return None
    return str(found[0]) if found else None


def _copy(path: Path, copy: Path) -> None:
    """Copy a database that others may be writing to; the copy is whole or not there. Raises StepError."""
    try:
        with (
            storage.replacing(copy) as partial,
            closing(sqlite3.connect(path)) as source,
            closing(sqlite3.connect(partial)) as target,
        ):
            source.backup(target)
    except (OSError, sqlite3.Error) as error:
        raise StepError(
            f"{path}: an older MLflow has written it, and it cannot be copied before its upgrade ({one_line(error)}); make "
            "room there; nothing was changed"
        ) from error
