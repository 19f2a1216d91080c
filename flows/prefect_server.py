"""The embedded Prefect server, which runs when PREFECT_API_URL is not set.

Prefect's own temporary server outlives a flow that is killed. This one watches its parent and ends with it. The history
of its flow runs stays in PREFECT_HOME, where `prefect server start` shows it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout

from stylegan.commands import shell_command
from stylegan.errors import ConfigError, StepError
from stylegan.places import check_place

if TYPE_CHECKING:
    from httpx import Response

# Files in which Prefect finds settings, besides its environment variables, and a word that is in them if it does.
SETTINGS_FILES = {"prefect.toml": "", "pyproject.toml": "[tool.prefect", ".env": "PREFECT_"}
# Variables that say where Prefect keeps flow runs.
ELSEWHERE = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "DATABASE")
LOCK = "stylegan-start.lock"  # beside the database
DATABASE = "prefect.db"  # of the embedded server, in PREFECT_HOME
ANSWER_SECONDS = 10.0
START_SECONDS = 600  # ends only what hangs: the very first start migrates the database, on a busy machine for minutes


@contextlib.contextmanager
def api(meanwhile: Callable[[], object] = lambda: None) -> Iterator[str]:
    """Yield the URL of the Prefect API: the configured one, else a server that runs as long as this context.

    Args:
        meanwhile: called while the server starts, which takes another core 10 to 25 seconds.

    Raises:
        StepError: the configured server does not answer, or PREFECT_HOME cannot be written.
    """
    if not os.environ.get("PREFECT_API_URL"):  # checked before the import, which reads and writes there
        check_place("PREFECT_HOME", _home())
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        _check(configured)
        yield configured
        return
    with _one_start() as started:
        process, url = _launch()
        try:
            meanwhile()
            _wait(process, url)
            started()
            with temporary_settings({PREFECT_API_URL: url, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}):
                try:
                    yield url
                finally:
                    APILogWorker.drain_all(timeout=5)  # log lines that are still on their way need the server
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _one_start() -> Iterator[Callable[[], None]]:
    """Let one server start at a time; yield what ends that. Two that make or migrate one database at once both end."""
    os.makedirs(_home(), exist_ok=True)
    lock = FileLock(_home() / LOCK, timeout=START_SECONDS)
    with contextlib.suppress(Timeout, OSError):  # a file system without locks: as before
        lock.acquire()
    try:
        yield lock.release
    finally:
        lock.release()


def require_server() -> str:
    """Return the URL of the configured server.

    Raises:
        ConfigError: none is configured; the embedded one runs only as long as a command.
        StepError: it does not answer.
    """
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError(
            "PREFECT_API_URL: is not set, and a schedule needs a Prefect server that stays: start one with "
            f"`{shell_command('prefect', 'server', 'start')}`, then `export PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    _check(url)
    return url


def own_history() -> Path | None:
    """Return the SQLite file in which the embedded server keeps flow runs; None if any setting of Prefect is in reach.

    Prefect is not imported, which takes seconds.
    """
    home = _home()
    given = [name for name, value in os.environ.items() if name.startswith("PREFECT_") and value]
    if any(part in name for name in given for part in ELSEWHERE):
        return None
    files = {Path(name): word for name, word in SETTINGS_FILES.items()} | {home / "profiles.toml": "PREFECT_"}
    for path, word in files.items():
        with contextlib.suppress(OSError):  # most are not there
            if word in path.read_text(errors="replace"):
                return None
    return home / DATABASE


def ask(url: str, path: Literal["/health", "/admin/version"], seconds: float) -> Response:
    """Ask Prefect's API once, as Prefect's own client does: with the login, the headers and the certificates of its settings.

    Args:
        url: that of the API.
        path: below it.
        seconds: how long to wait for the answer.

    Raises:
        httpx.HTTPError: no answer, or one that is an error.
    """
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_KEY,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    login = {"auth_string": PREFECT_API_AUTH_STRING.value(), "api_key": PREFECT_API_KEY.value()}
    client = SyncPrefectClient(url, **login, httpx_settings={"timeout": seconds})
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), client:
        return client.request("GET", path)


def server_version(url: str) -> str | None:
    """Return the version of Prefect behind the URL of an API; None if it does not tell, as Prefect Cloud."""
    import httpx

    try:
        answer = ask(url, "/admin/version", ANSWER_SECONDS).json()
    except (httpx.HTTPError, ValueError):
        return None
    return answer if isinstance(answer, str) else None


def _check(url: str) -> None:
    """Check that a server answers, and takes the login. Raises StepError if not."""
    import httpx

    try:
        ask(url, "/health", ANSWER_SECONDS)
        ask(url, "/admin/version", ANSWER_SECONDS)  # unlike its health, this is not for everyone
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code == 404:  # Prefect Cloud
            return
        if code == 401:
            raise StepError(
                f"PREFECT_API_URL={url}: this Prefect server wants another login; set PREFECT_API_AUTH_STRING to its "
                "user:password (for Prefect Cloud: PREFECT_API_KEY)"
            ) from None
        raise _no_answer(url, f"{code} {error.response.reason_phrase}") from None
    except httpx.HTTPError as error:
        raise _no_answer(url, type(error).__name__) from None


def _no_answer(url: str, reason: str) -> StepError:
    return StepError(
        f"PREFECT_API_URL={url}: no Prefect server answers there ({reason}); start one with "
        f"`{shell_command('prefect', 'server', 'start')}`, or unset PREFECT_API_URL to run without"
    )


def _launch() -> tuple[subprocess.Popen[bytes], str]:
    """Start the server and return its process and its URL, where it does not answer yet."""
    # Choose a free port.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    # Start the server in a process of its own.
    quiet = {"PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "1"}
    env = os.environ | quiet | {"PREFECT__SERVER_EPHEMERAL": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.prefect_server", str(port), str(os.getpid())], env=env, stdout=subprocess.DEVNULL
    )
    return process, f"http://127.0.0.1:{port}/api"


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    """Wait until the server answers. Raises StepError if it does not."""
    import httpx

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    code = process.poll()
    start = shell_command("prefect", "server", "start")
    if code is not None:
        raise StepError(
            f"the embedded Prefect server ended while it started (exit code {code}); `{start}` says why; if "
            f"{_home() / DATABASE} is damaged or of a newer Prefect than {version('prefect')}, move it away (it has only "
            "the history of flow runs) or set PREFECT_HOME to another folder"
        )
    raise StepError(
        f"the embedded Prefect server did not start within {START_SECONDS} s; look at PREFECT_HOME and its free space, or "
        f"start `{start}` yourself and set PREFECT_API_URL"
    )


def _home() -> Path:
    return Path(os.path.expanduser(os.environ.get("PREFECT_HOME") or "~/.prefect"))


def _end_with(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def main() -> None:
    """Serve on 127.0.0.1 until stopped or until the parent is gone: `python -m flows.prefect_server PORT PARENT_PID`.

    SIGINT stops it. SIGTERM does not: whoever stops a run may send that to all its processes at once, as Ray does with a
    job, and the run needs this server to show that it was stopped.
    """
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, self.handle_exit)
            yield

    port, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="critical",
        lifespan="on",
    )
    Server(config).run()


if __name__ == "__main__":
    main()
