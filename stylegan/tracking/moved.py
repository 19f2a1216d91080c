"""Let a SQLite store of MLflow follow its folder: it holds the places of its artifacts as absolute URLs.

The embedded store is {root}/mlflow.db with {root}/mlartifacts beside it. If a storage root is moved or copied, its
database still names the old folder: models would be gone, or read from where something else may be by now.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote

from stylegan.uris import file_url, local_path

logger = logging.getLogger("stylegan")

ARTIFACTS = "mlartifacts"  # name of the folder beside the database
# Columns of MLflow 3.17 that hold such URLs.
PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def follow(database: Path) -> None:
    """Rewrite the places of the artifacts of a database that was moved with them; do nothing otherwise.

    That is the case if an experiment has its artifacts in a folder of this name elsewhere, and those of one of its runs or
    models are in the one beside the database. A database may serve several roots: the experiments of the others stay. So
    does a place that is another path to this very folder. All places change in one transaction. A database that cannot be
    read or written now is left as it is: MLflow says what is wrong with it.
    """
    here = database.absolute().parent / ARTIFACTS
    if not (database.exists() and here.is_dir()):
        return
    with suppress(sqlite3.Error):
        for old in sorted(_elsewhere(database, here)):
            if number := _replace(database, old, file_url(str(here))):  # else another process was faster
                logger.info("MLflow at %s: its folder was moved; %d places of artifacts follow it", database, number)


def _elsewhere(database: Path, here: Path) -> set[str]:
    """Return the URLs of other folders of artifacts, of which some are beside the database now."""
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        experiments, runs, models = (
            {url.rstrip("/") for (url,) in connection.execute(f"SELECT {PLACES[table][0]} FROM {table}") if url}
            for table in ("experiments", "runs", "logged_models")
        )

    def is_moved(url: str) -> bool:
        old = local_path(url)
        if os.path.basename(old) != ARTIFACTS or (os.path.exists(old) and os.path.samefile(old, here)):
            return False
        return any(
            os.path.exists(here / unquote(one[len(url) + 1 :])) for one in runs | models if one.startswith(f"{url}/")
        )

    return {url for url in experiments if url.startswith("file://") and is_moved(url)}


def _replace(database: Path, old: str, new: str) -> int:
    """Replace the beginning of all places; return how many."""
    number = 0
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for table, columns in PLACES.items():
            for column in columns:
                # The name of the folder ends there, or a part of a path follows.
                begins = f"substr({column}, 1, ?) = ? AND substr({column}, ?, 1) IN ('', '/')"
                changed = connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {begins}",
                    (new, len(old) + 1, len(old), old, len(old) + 1),
                )
                number += changed.rowcount
    return number
