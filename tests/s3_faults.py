"""A proxy between a client and a real S3 server that injects the faults of object stores.

The faults are throttling, connection resets, slow answers, truncated answers and outages. The fault of a request is a
pure function of the seed, the request without its bucket, and the number of its earlier attempts. A run therefore meets
the same faults in any order of its threads. The proxy changes nothing else, so signatures stay valid. It listens on
loopback.
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
FAULT_KINDS = ("slowdown", "reset", "slow", "truncated")
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)


@dataclass
class Faults:
    """The faults to inject into the requests to a server, and the number of those already injected.

    Args:
        upstream: the server, as `host:port`.
        seed: seed of the random choice of faults.
        rate: share of requests that meet a fault.
        kinds: the faults to choose from. `slowdown` answers with status 503. `reset` resets the connection in the
            middle of an answer. `slow` waits `slow_s` seconds before the answer. `truncated` closes the connection in
            the middle of an answer.
        slow_s: seconds that `slow` waits.
        in_a_row: a request passes after this many faults in a row.
        injected: number of injected faults of each kind, and of outages.
        passed: `PUT /bucket/key` -> number of its complete answers.
    """

    upstream: str
    seed: int = 0
    rate: float = 0.25
    kinds: Sequence[str] = FAULT_KINDS
    slow_s: float = 0.1
    in_a_row: int = 3
    injected: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    _attempts: Counter[str] = field(default_factory=Counter)
    _row: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _down_until: float = 0.0

    def down_for(self, seconds: float) -> None:
        """Begin an outage: break all open connections now and refuse new ones for this many seconds."""
        self._down_until = time.monotonic() + seconds

    @property
    def down(self) -> bool:
        """True during an outage."""
        return time.monotonic() < self._down_until

    def draw(self, method: str, target: str, byte_range: str) -> str | None:
        """Choose the fault of a request, or None.

        Args:
            method: its HTTP method.
            target: its path and query.
            byte_range: its header `Range`, or nothing.
        """
        # Name the request. Each run has other buckets, and the server draws the upload ids, so leave both out.
        parts = urlsplit(target)
        query = sorted(pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "uploadId")
        request = f"{method} {parts.path.lstrip('/').partition('/')[2]} {query} {byte_range}"

        # Draw from the seed, the request and the number of this attempt.
        with self._lock:
            self._attempts[request] += 1
            generator = random.Random(f"{self.seed} {request} {self._attempts[request]}")
            if self._row[request] >= self.in_a_row or generator.random() >= self.rate:
                self._row[request] = 0
                return None
            self._row[request] += 1
            return generator.choice(self.kinds)

    def count(self, counter: Counter[str], name: str) -> None:
        """Add one to a counter, under the lock: each connection has a thread of its own."""
        with self._lock:
            counter[name] += 1


class Handler(BaseHTTPRequestHandler):
    """One connection of a client. Each of its requests goes to the server on a new connection."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one_request(self) -> None:
        """Answer one request, with any method. The base class would want a function for each method."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self._answer()
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        """Forward a request and send the answer of the server, with the fault that is drawn for the request."""
        faults, body = self.server.faults, self._body()
        fault = faults.draw(self.command, self.path, self.headers.get("Range", ""))

        # Faults before the request reaches the server.
        if fault == "slowdown":
            faults.count(faults.injected, fault)
            self._send(503, "Slow Down", [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        if fault == "slow":
            faults.count(faults.injected, fault)
            time.sleep(faults.slow_s)
        status, reason, headers, content = self._forward(body)

        # Faults in the middle of the answer. An empty answer cannot be truncated.
        if fault == "truncated" and not content:
            fault = "reset"
        if fault in ("reset", "truncated"):
            faults.count(faults.injected, fault)
            self._send(status, reason, headers, content, sent=len(content) // 2)
            if fault == "reset":  # a socket that does not linger sends a reset when it is closed
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return

        # The complete answer.
        self._send(status, reason, headers, content)
        faults.count(faults.passed, f"{self.command} {urlsplit(self.path).path}")

    def _body(self) -> bytes:
        """Read the body of a request, which may be chunked."""
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
        """Send the request to the server and return status, reason, headers and content of its answer."""
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
        """Send an answer. If `sent` is given, only the first `sent` bytes of its content are sent."""
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
    """A proxy on a free port of this machine. The port stays reserved during an outage, when nothing listens there."""

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
        """Accept connections until the proxy stops, except during outages."""
        while not self._stopped.is_set():
            # Accept until the proxy stops or an outage begins.
            with socket.create_server((HOST, self.port), reuse_port=True, backlog=128) as listener:
                self._listening.set()
                listener.settimeout(0.02)
                while not self._stopped.is_set() and not self.faults.down:
                    with suppress(TimeoutError):
                        connection, address = listener.accept()
                        self._open.add(connection)
                        threading.Thread(target=self._handle, args=(connection, address), daemon=True).start()

            # Break the open connections.
            if self.faults.down:
                self.faults.count(self.faults.injected, "outage")
            for connection in list(self._open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

            # Wait for the end of the outage.
            while self.faults.down and not self._stopped.is_set():
                time.sleep(0.02)

    def _handle(self, connection: socket.socket, address: Any) -> None:
        """Answer all requests of one connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(OSError, ValueError):  # the client has gone, or an outage has broken the connection
            Handler(connection, address, self)  # type: ignore[arg-type]  # the base class only stores the server
        self._open.discard(connection)


@contextmanager
def faulty(faults: Faults) -> Iterator[str]:
    """Run a proxy before `faults.upstream` during the block, and yield its URL."""
    with Proxy(faults) as proxy:
        yield f"http://{HOST}:{proxy.port}"
