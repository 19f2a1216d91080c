"""A service of messages on this machine, for the `json://` URLs of Apprise."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

HOST = "127.0.0.1"


@dataclass
class MessageService:
    """A service that keeps the messages that it was sent.

    Attributes:
        port: where it listens.
        code: the HTTP status of its answers.
        got: the JSON of the messages, the oldest first.
        paths: the paths that they were sent to.
    """

    port: int = 0
    code: int = 200
    got: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def url(self, path: str = "") -> str:
        """Return the URL of the service for `retrain.notify`."""
        return f"json://{HOST}:{self.port}/{path}"


@contextmanager
def serve_messages() -> Iterator[MessageService]:
    """Run a service during the block, and yield it."""
    service = MessageService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            service.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            service.paths.append(self.path)
            self.send_response(service.code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer((HOST, 0), Handler) as server:
        service.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield service
        finally:
            server.shutdown()
