"""Fixtures for the tests of all source formats: open a source, list it, and read its images."""

import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stylegan.config.sections import DataConfig
from stylegan.data.sources.base import Label, Source
from stylegan.data.sources.open_source import open_source


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], str]]:
    """Return `serve(handler)`, which starts a web server with a handler of `http.server` and returns its URL."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def opened() -> Callable[..., Source]:
    """Return `opened(source, labels="auto", ...)`, which lists a source with these fields of `data`."""

    def open_(source: Path | str, labels: str = "auto", **fields: Any) -> Source:
        return open_source(DataConfig(source=str(source), resolution=16, labels=labels, **fields))

    return open_


@pytest.fixture
def listed() -> Callable[[Source], list[tuple[str, Label]]]:
    """Return a function that returns the paths and labels of a source."""
    return lambda source: [(image.path, image.label) for image in source.images]


@pytest.fixture
def contents() -> Callable[[Source], dict[str, bytes | np.ndarray]]:
    """Return a function that reads all images of a source, as another process would: through a pickled opener."""

    def read_all(source: Source) -> dict[str, bytes | np.ndarray]:
        with pickle.loads(pickle.dumps(source.open))() as read:
            return {image.path: read(image.path) for image in source.images}

    return read_all


@pytest.fixture
def upload(s3_server: Callable[[], str]) -> Callable[[Path], str]:
    """Return a function that copies a file or folder into a fresh bucket and returns its URL."""

    def put(path: Path) -> str:
        import fsspec

        uri = f"{s3_server()}/{path.name}"
        fsspec.filesystem("s3").put(str(path), uri, recursive=path.is_dir())
        return uri

    return put
