"""Run a web app on a socket until the process is interrupted, then let the requests under way end."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import threading
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from stylegan.errors import ConfigError, StepError, one_line

DRAIN_SECONDS = 5.0  # for the requests under way; the supervisor ends what is left after eight
MOST_CONNECTIONS = 512
TOKEN = r"[A-Za-z0-9._~+/=-]{8,200}"  # fits into a header, a cookie and a URL


def check_access(host: str, token: str | None) -> None:
    """Check that whoever can reach the server may use it.

    Raises:
        ConfigError: the token is no good, or another machine can reach the server and there is none.
    """
    if token is not None and not re.fullmatch(TOKEN, token):
        raise ConfigError("--token: must be 8 to 200 letters, digits and ._~+/=-; `openssl rand -hex 16` makes one")
    if token is None and not _is_loopback(host):
        raise ConfigError(
            f"--host {host}: other machines can reach it, which needs a token: set STYLEGAN_SERVE_TOKEN (or --token), or "
            "leave --host out"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and does not listen yet.

    Args:
        host: name or address of an interface of this machine.
        port: 0 takes any that is free.

    Raises:
        ConfigError: the port is in use or not allowed, or this machine has no such address.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: must be from 0 (any that is free) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(0)  # two sockets may be bound to a port of which none listens
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"--port {port}: is in use on {host}; give another --port, or 0 for any that is free"
            ) from None
        option = f"--port {port}" if error.errno == errno.EACCES else f"--host {host}"
        raise ConfigError(f"{option}: cannot be used ({one_line(error)}); give another one") from None
    return sock


def url_of(sock: socket.socket, host: str) -> str:
    """Return the URL of a server on a socket, by the host that was asked for."""
    named = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://{f'[{named}]' if ':' in named else named}:{sock.getsockname()[1]}/"


def run(app: ASGIApp, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Answer requests until this thread is interrupted, then end those under way within DRAIN_SECONDS.

    uvicorn runs on a thread of its own: it would replace the signal handlers of the process.

    Args:
        app: answers.
        sock: from `bind`.
        ready: is called when the first request can come.

    Raises:
        KeyboardInterrupt: the process was interrupted.
        StepError: the server has ended by itself.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # it would write down the token of an address
            ws="none",
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=20,
            timeout_graceful_shutdown=int(DRAIN_SECONDS),
        )
    )
    ended = threading.Event()  # a join that a signal interrupts takes the thread for ended (Python 3.11)

    def answer() -> None:
        try:
            server.run(sockets=[sock])
        finally:
            ended.set()

    threading.Thread(target=answer, name="web", daemon=True).start()
    try:
        while not (server.started or ended.wait(0.02)):
            pass
        if server.started:
            ready()
        while not ended.wait(60):
            pass
    finally:
        server.should_exit = True
        ended.wait(DRAIN_SECONDS + 1)
    raise StepError("the web server has ended by itself; STYLEGAN_LOG=FILE keeps its messages")
