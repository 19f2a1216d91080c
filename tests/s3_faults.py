"""A proxy on loopback before a real S3 server, which injects the faults that object stores have: throttling, resets, silence, outages.

Which request meets which fault is a pure function of the seed, the request without its bucket, and how often it came before, so that
a run meets the same ones in any order of its threads. Nothing else is changed on the way, signatures stay valid.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HOST = "127.0.0.1"
KINDS = ("slowdown", "reset", "slow", "truncated")
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)


@dataclass
class Faults:
    """What is to be injected into the requests to `upstream` (host:port), and what has been.

    Args:
        rate: share of requests that meet a fault.
        kinds: `slowdown` is a 503, `reset` breaks the connection in the middle of an answer, `slow` waits `slow_s` before its first
            byte, `truncated` closes the connection before all promised bytes are sent.
        in_a_row: after so many faults the same request passes.
    """

    upstream: str
    seed: int = 0
    rate: float = 0.25
    kinds: Sequence[str] = KINDS
    slow_s: float = 0.1
    in_a_row: int = 3
    injected: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)  # "PUT /bucket/key" -> answers that arrived whole
    _attempts: Counter[str] = field(default_factory=Counter)
    _row: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _down_until: float = 0.0

    def down_for(self, seconds: float) -> None:
        """From now on refuse every connection, and break those that are open, for so long."""
        self._down_until = time.monotonic() + seconds

    @property
    def down(self) -> bool:
        return time.monotonic() < self._down_until

    def draw(self, method: str, target: str, byte_range: str) -> str | None:
        """The fault of this request, or None."""
        parts = urlsplit(target)
        query = sorted(
            pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "uploadId"
        )  # drawn by the server
        request = f"{method} {parts.path.lstrip('/').partition('/')[2]} {query} {byte_range}"
        with self._lock:
            self._attempts[request] += 1
            generator = random.Random(f"{self.seed} {request} {self._attempts[request]}")
            if self._row[request] >= self.in_a_row or generator.random() >= self.rate:
                self._row[request] = 0
                return None
            self._row[request] += 1
            return generator.choice(self.kinds)

    def count(self, counter: Counter[str], what: str) -> None:
        """Handlers run in threads of their own."""
        with self._lock:
            counter[what] += 1


class Handler(BaseHTTPRequestHandler):
    """One connection of a client; every request of it goes to the server behind on a connection of its own."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one_request(self) -> None:
        """As the base class, for every method alike."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self._answer()
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _answer(self) -> None:
        faults, body = self.server.faults, self._body()
        fault = faults.draw(self.command, self.path, self.headers.get("Range", ""))
        if fault == "slowdown":
            faults.count(faults.injected, fault)
            self._send(503, "Slow Down", [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        if fault == "slow":
            faults.count(faults.injected, fault)
            time.sleep(faults.slow_s)
        status, reason, headers, content = self._forward(body)
        if fault == "truncated" and not content:
            fault = "reset"  # there is nothing to cut off
        if fault in ("reset", "truncated"):
            faults.count(faults.injected, fault)
            self._send(status, reason, headers, content, sent=len(content) // 2)
            if fault == "reset":  # closing a socket that does not linger is a reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        self._send(status, reason, headers, content)
        faults.count(faults.passed, f"{self.command} {urlsplit(self.path).path}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _forward(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.faults.upstream)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP | {"content-length", "expect"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP]
            return response.status, response.reason, headers, response.read()
        finally:
            connection.close()

    def _send(
        self, status: int, reason: str, headers: list[tuple[str, str]], content: bytes, *, sent: int | None = None
    ) -> None:
        """An answer, of whose content only `sent` bytes leave here if that is given."""
        self.send_response_only(status, reason)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])


class Proxy:
    """Listens on a free port of this machine, which stays its own while nothing listens there."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind((HOST, 0))
        self.port: int = self._reserved.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._stopped = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="s3-faults", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._reserved.close()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            with socket.create_server((HOST, self.port), reuse_port=True, backlog=128) as listener:
                self._listening.set()
                listener.settimeout(0.02)
                while not self._stopped.is_set() and not self.faults.down:
                    with suppress(TimeoutError):
                        connection, address = listener.accept()
                        self._open.add(connection)
                        threading.Thread(target=self._handle, args=(connection, address), daemon=True).start()
            if self.faults.down:
                self.faults.count(self.faults.injected, "outage")
            for connection in list(self._open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            while self.faults.down and not self._stopped.is_set():
                time.sleep(0.02)

    def _handle(self, connection: socket.socket, address: Any) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(OSError, ValueError):  # the client is gone, or an outage has cut the connection
            Handler(connection, address, self)  # type: ignore[arg-type]  # all it asks of a server is to be handed on
        self._open.discard(connection)


@contextmanager
def faulty(faults: Faults) -> Iterator[str]:
    """The URL of a proxy before `faults.upstream` that lives as long as the block."""
    with Proxy(faults) as proxy:
        yield f"http://{HOST}:{proxy.port}"
