"""The connection to MLflow: its URI, a check that it answers, a client, and its failures as one line.

Every call names its tracking URI and its run. There is no global URI and no active run, so threads and flows do not
disturb each other.
"""

from __future__ import annotations

import gc
import http.client
import logging
import os
import re
import socket
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.tree import Config
from stylegan.errors import ConfigError, StepError, UnavailableError, one_line
from stylegan.places import may, nearest
from stylegan.tracking.moved import follow
from stylegan.tracking.upgrade import alone_if_made, known_revisions
from stylegan.uris import file_url, without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANSWER_SECONDS = 8.0  # a name with an IPv4 and an IPv6 address is tried twice
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "PERMISSION_DENIED")
# What SQLAlchemy hands to SQLite from behind the `?` of a URI.
SQLITE_OPTIONS = ("uri", "mode", "cache", "timeout", "check_same_thread", "isolation_level", "detect_types", "nolock")
# What MLflow says of a database of another version, of a newer one, too; and the revision of its schema.
OTHER_SCHEMA = re.compile(r"out-of-date database schema \(found version (\w+)")
REMOTE = {"botocore", "boto3", "requests", "urllib3"}  # packages whose errors come from a store on the network

_quiet_lock = threading.Lock()
_quiet_levels: list[int] = []


def resolve_uri(config: Config) -> str:
    """Return the tracking URI: `tracking.uri`, else SQLite below a local `storage.root`, else below the working folder."""
    return config.tracking.uri or sqlite_uri(f"{_embedded_folder(config)}/mlflow.db")


def artifact_location(config: Config) -> str | None:
    """Return where a new experiment keeps its artifacts, as a URL; None leaves it to the server."""
    uri = resolve_uri(config)
    if uri.startswith(("http://", "https://", "databricks")):
        return None
    if _is_sqlite(uri) or storage.is_local(config.storage.root):
        return file_url(f"{_embedded_folder(config)}/mlartifacts")  # MLflow takes a path for a URL, too
    return storage.join(storage.absolute(config.storage.root), "mlartifacts")


def sqlite_uri(path: str) -> str:
    """Return the tracking URI of a SQLite file.

    For SQLAlchemy a path ends at the first `?`. Such a path is written as a URL of SQLite's own, with the name of the
    driver, since MLflow makes a folder `file:` of `sqlite:///file:`.
    """
    return f"sqlite+pysqlite:///file:{quote(path)}?uri=true" if "?" in path else f"sqlite:///{path}"


def from_here(uri: str) -> str:
    """Return the URI as one types it: a SQLite file below the working folder by its path from there."""
    file, here = uri.removeprefix("sqlite:///"), os.path.join(os.getcwd(), "")
    return f"sqlite:///{file.removeprefix(here)}" if uri.startswith("sqlite:///") and "?" not in file else uri


def check_server(uri: str) -> None:
    """Check that MLflow can be expected behind this URI. Its login is that of the environment, or in the URI.

    Raises:
        ConfigError: MLflow 3 does not work with such a URI.
        StepError: the SQLite file cannot be written.
        UnavailableError: nothing answers there (within 20 s).
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"tracking.uri={uri}: {one_line(error)}; correct it") from None
    kind = "databricks" if uri == "databricks" else parts.scheme.split("+")[0]
    if kind in ("http", "https"):
        _check_http(uri.rstrip("/"))
    elif kind in DATABASE_PORTS:
        _check_port(uri, parts.hostname or "localhost", port or DATABASE_PORTS[kind])
    elif re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise ConfigError(f"tracking.uri={uri}: is no URL; did you mean http://{uri}?")
    elif kind in ("", "file"):
        path = storage.absolute(uri)
        raise ConfigError(
            f"tracking.uri={uri}: MLflow 3 does not write to plain folders; use {sqlite_uri(f'{path}/mlflow.db')}"
        )
    elif kind == "sqlite":
        _check_sqlite(uri)
    elif kind != "databricks":
        raise ConfigError(
            f"tracking.uri={uri}: must start with http://, https://, sqlite:///, postgresql://, mysql:// or mssql://"
        )


def server_version(uri: str) -> str | None:
    """Return the version of the MLflow server behind this URI, asked with the login; None if it is none or does not tell."""
    if not uri.startswith(("http://", "https://")):
        return None
    import_mlflow()
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=ANSWER_SECONDS)
    except Exception as error:
        if _kind_of(error) is None:
            raise
        return None
    return str(answer.text).strip() if answer.status_code == 200 else None


def connect(uri: str) -> MlflowClient:
    """Return a client for tracking and registry at `uri`; a SQLite file of an older MLflow is upgraded before.

    Raises as `check_server`, `alone_if_made` and `explained`.
    """
    check_server(uri)
    if _is_sqlite(uri):
        file = Path(_sqlite_path(uri))
        os.makedirs(file.absolute().parent, exist_ok=True)
        follow(file)
    import_mlflow()
    from mlflow import MlflowClient

    try:
        with quiet(), alone_if_made(file, uri) if _is_sqlite(uri) else nullcontext(), explained(uri, "open the store"):
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except ImportError as error:  # a database needs a driver, which MLflow does not bring
        raise ConfigError(f"tracking.uri={uri}: {error}; install that package, or use another store") from error


def import_mlflow() -> None:
    """Import MLflow with its settings, which takes seconds; it sets its log level, so `quiet` comes after it."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output belongs to records
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault(
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"
    )  # it would appear wherever tqdm happens to be installed
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # half a minute; MLflow's own 7 take four minutes
    import mlflow  # noqa: F401


def is_empty(uri: str) -> bool:
    """Return whether the URI is a SQLite file that does not exist yet: a query would create it."""
    return _is_sqlite(uri) and not os.path.exists(_sqlite_path(uri))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep MLflow's greetings and hints off the terminal inside the block, for any number of threads at once."""
    logger = logging.getLogger("mlflow")
    with _quiet_lock:
        _quiet_levels.append(logger.level)
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        with _quiet_lock:
            before = _quiet_levels.pop()  # the last thread to leave restores the level of before the first
            logger.setLevel(before)


@contextmanager
def explained(uri: str, action: str) -> Iterator[None]:
    """Turn a failure of MLflow, its database or its artifact store into one line: the `action`, the place, the reason.

    Raises:
        StepError: MLflow refused what was asked, or files or the database do not work.
        UnavailableError: MLflow, its database or its artifact store failed; a later try may work.
    """
    try:
        with quiet():
            yield
    except BaseException as error:
        stop = _find_stop(error)
        if stop is not None:
            _let_go(error)
            raise stop from None
        kind = _kind_of(error)
        if kind is None:
            raise
        if found := OTHER_SCHEMA.search(str(error)):
            raise _other_version(uri, found[1]) from error
        reason = one_line(getattr(error, "orig", None) or error)
        raise kind(
            f"MLflow at {uri}: cannot {action}: {reason}; check that store, then run the same command again"
        ) from error


def _other_version(uri: str, revision: str) -> StepError:
    """Return the error of a database that another version of MLflow has written: what to do with an older or a newer one."""
    from mlflow.version import VERSION

    if revision not in known_revisions():
        return StepError(
            f"MLflow at {uri}: a newer MLflow than {VERSION} has written this database; install that, or set tracking.uri "
            "to another place"
        )
    upgrade = shell_command("mlflow", "db", "upgrade", uri)
    return StepError(
        f"MLflow at {uri}: an older MLflow than {VERSION} has written this database; no way leads back from an upgrade, so "
        f"copy it, then run `{upgrade}`"
    )


def _find_stop(error: BaseException | None) -> BaseException | None:
    """Return the KeyboardInterrupt or the like behind an error: what SQLAlchemy raises while it tidies up hides it."""
    while isinstance(error, Exception):
        error = error.__cause__ or error.__context__
    return error


def _let_go(error: BaseException | None) -> None:
    """Give back what the calls hold that an interruption has cut off, such as a lock on the database.

    SQLAlchemy cannot close a session that was interrupted within a commit. Its connection is rolled back only when
    nothing refers to it any more, and the traceback does; until then every write would wait for it.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


def _kind_of(error: BaseException) -> type[StepError] | None:
    """Return the class of error that the user gets; None for a defect of the program and for an error already explained."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    if isinstance(error, MlflowException):
        return StepError if error.error_code in REFUSALS else UnavailableError
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    if packages & REMOTE or isinstance(error, (ConnectionError, TimeoutError, socket.gaierror, OperationalError)):
        return UnavailableError
    # Alembic's errors mean a database of another MLflow version; MLflow's own, a Databricks without its login.
    return StepError if packages & {"alembic", "mlflow"} or isinstance(error, (OSError, SQLAlchemyError)) else None


def _embedded_folder(config: Config) -> str:
    root = config.storage.root
    return storage.absolute(root) if storage.is_local(root) else os.path.join(os.getcwd(), storage.EMBEDDED)


def _is_sqlite(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] == "sqlite"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a tracking URI that is a SQLite file, else None."""
    return Path(_sqlite_path(uri)) if _is_sqlite(uri) else None


def _sqlite_path(uri: str) -> str:
    """Return the file of a `sqlite:///...` URI."""
    path = uri.partition(":///")[2].partition("?")[0]
    return unquote(path.removeprefix("file:")) if path.startswith("file:") else path


def _check_sqlite(uri: str) -> None:
    """Check the SQLite file. MLflow itself would retry for 100 s and then show a traceback of SQLAlchemy."""
    path = Path(_sqlite_path(uri))
    options = uri.partition("?")[2]
    if ":///" not in uri or path in (Path(), Path(":memory:")) or "mode=memory" in options.split("&"):
        raise ConfigError(
            f"tracking.uri={uri}: names no file, so that everything in it would be lost at the end; use "
            f"{sqlite_uri(os.path.abspath('mlflow.db'))}"
        )
    if options and not all(option.partition("=")[0] in SQLITE_OPTIONS for option in options.split("&")):
        whole = sqlite_uri(uri.partition(":///")[2])
        raise ConfigError(f"tracking.uri={uri}: a path in a URI ends at the first `?`; write it as {whole}")
    folder = nearest(path.absolute().parent)
    if os.path.isdir(path):
        cure = sqlite_uri(str(path / "mlflow.db"))
        raise ConfigError(f"tracking.uri={uri}: is a folder, not a SQLite file; use {cure}")
    if not os.path.isdir(folder):
        raise ConfigError(
            f"tracking.uri={uri}: {folder} is a file, not a folder; mend tracking.uri (or storage.root, if that is unset)"
        )
    places = [(folder, os.W_OK | os.X_OK)]
    if os.path.exists(path):
        places.append((str(path), os.R_OK | os.W_OK))
    for place, mode in places:
        if not may(place, mode):
            raise StepError(
                f"tracking.uri={uri}: no permission to write {place}; allow it, or set tracking.uri to another place"
            )
    if os.path.exists(path) and _first_bytes(path, 16) not in (b"", b"SQLite format 3\0"):
        raise ConfigError(
            f"tracking.uri={uri}: is a file of another kind, not SQLite; mend tracking.uri or move that file away"
        )


def _first_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def _check_http(uri: str) -> None:
    address = without_login(uri)  # the page asks for none
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in (
            401,
            404,
            405,
        ):  # a login or a proxy in front: something answers, the first real call will show what
            return
        reason = f"answers {error.code} {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last one: something else answers there
        reason = f"does not answer ({getattr(error, 'reason', None) or one_line(error)})"
    raise UnavailableError(
        f"tracking.uri={uri}: {reason}; start that server, mend tracking.uri, or unset it to use a local SQLite file"
    )


def _check_port(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise UnavailableError(
            f"tracking.uri={urlsplit(uri).scheme}://...: no database answers at {host}:{port} ({error}); start it or mend tracking.uri"
        ) from None
