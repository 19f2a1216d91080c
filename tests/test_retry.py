"""Tests of waiting for a store: transient errors are retried, permanent ones are not, and every byte is right."""

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from stylegan import retry, storage
from stylegan.config.sections import StorageConfig
from stylegan.errors import ConfigError, ExhaustedError, LostHeadError, StepError, UnavailableError
from stylegan.retry import insist, is_transient, patient

CONTENT = bytes(range(256)) * 2000


@pytest.fixture
def server(monkeypatch) -> Iterator[Callable[..., str]]:
    """Yield a function: `server("503", "cut")` returns the URL of CONTENT, whose first GETs fail in these ways.

    A fault is an HTTP status, `cut` (a truncated body) or `reset`.
    """
    faults: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            fault = faults.pop(0) if faults else ""
            if fault == "reset":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif fault == "cut":
                self.answer(CONTENT[:1000])
                self.close_connection = True
            elif fault:
                self.send_response(int(fault))
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.answer(CONTENT)

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.05)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
    thread.start()

    def url_with(*wanted: str) -> str:
        faults[:] = wanted
        fsspec.get_filesystem_class("http").clear_instance_cache()
        return f"http://127.0.0.1:{listener.server_port}/x.bin"

    yield url_with
    listener.shutdown()
    listener.server_close()
    thread.join()


@pytest.mark.parametrize("faults", [["503"], ["500", "429"], ["cut"], ["reset", "cut", "503"]], ids=" ".join)
def test_transient_errors_are_waited_for(server, tmp_path, faults):
    """Neither throttling, failures of the store, truncated bodies and resets nor a wrong byte reach the caller."""
    assert storage.read_bytes(server(*faults)) == CONTENT
    storage.download(server(*faults), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_open_file_continues_after_a_broken_connection(server):
    with storage.open_read(server("503", "cut")) as file:
        assert file.read(700) + file.read(600_000) == CONTENT


def test_permanent_errors_fail_at_once(server, caplog):
    """A request for a refused or missing file is not repeated."""
    with pytest.raises(UnavailableError, match="403"):
        storage.read_bytes(server(*["403"] * 5))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(server(*["404"] * 5))
    assert "waiting" not in caplog.text


def test_patience_ends(server, monkeypatch):
    """A store that stays down is an error of one line, once the patience is over."""
    monkeypatch.setenv("STYLEGAN_PATIENCE", "0.5")
    with pytest.raises(UnavailableError, match="storage: cannot read http://127"):
        storage.read_bytes(server(*["503"] * 1000))


def test_log_has_a_line_about_waiting_at_intervals(monkeypatch, caplog):
    """There is a line at the start, then one every `SECONDS_BETWEEN_LINES` for each store, not one per attempt."""
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(retry, "SECONDS_BETWEEN_LINES", 0.3)
    failures = iter([TimeoutError("no answer")] * 30)

    def act() -> int:
        for failure in failures:
            raise failure
        return 7

    with caplog.at_level(logging.WARNING, "stylegan"):
        assert patient(act, "s3://slow-bucket/x") == 7
    assert caplog.messages[0] == "waiting for s3://slow-bucket/x: no answer, 0 s so far"
    assert 2 <= len(caplog.messages) <= 6


@pytest.mark.parametrize(("status", "asked"), [("500", True), ("507", True), ("503", False)])
def test_a_store_that_may_be_full_is_waited_for_with_that_question(server, caplog, status, asked):
    """Stores answer 500 while their disk is full; once there is room, what was waited for is done."""
    with caplog.at_level(logging.WARNING, "stylegan"):
        assert storage.read_bytes(server(status)) == CONTENT
    (line,) = caplog.messages
    assert ("(is its disk full?)" in line) == asked


def test_kinds_of_errors(tmp_path):
    """A full disk or missing permission is no error of the store; a translated error is judged by its cause."""
    assert not is_transient(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_transient(PermissionError("no"))
    assert not is_transient(ValueError("a defect"))
    assert is_transient(ConnectionResetError("reset"))
    translated = OSError(errno.EBUSY, "slow down")
    translated.__cause__ = TimeoutError()
    assert is_transient(translated)


def in_use() -> tuple[str | None, str | None]:
    """Return the two settings as child processes see them."""
    return os.environ.get("STYLEGAN_PATIENCE"), os.environ.get("STYLEGAN_CACHE_GB")


@pytest.mark.parametrize("outside", [("1", "3"), (None, None)])
def test_settings_are_those_of_the_block(monkeypatch, outside):
    """Both are environment variables, which child processes see; without `cache_gb` it is that of the environment."""
    for name, value in zip(("STYLEGAN_PATIENCE", "STYLEGAN_CACHE_GB"), outside, strict=True):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    with retry.storage_settings(StorageConfig(patience_s=77, cache_gb=1.5)):
        assert in_use() == ("77.0", "1.5")
        with retry.storage_settings(StorageConfig()):
            assert in_use() == ("600", outside[1])
        with retry.storage_settings(None):
            assert in_use() == ("77.0", "1.5")
    assert in_use() == outside
    with suppress(ZeroDivisionError), retry.storage_settings(StorageConfig(cache_gb=1)):
        raise ZeroDivisionError
    assert in_use() == outside


def test_blocks_of_several_threads_leave_nothing_behind(monkeypatch):
    """The one that was opened first may end first."""
    monkeypatch.setenv("STYLEGAN_PATIENCE", "1")
    first, second = (retry.storage_settings(StorageConfig(patience_s=seconds)) for seconds in (2, 3))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert in_use()[0] == "3.0"
    second.__exit__(None, None, None)
    assert in_use()[0] == "1"


def refuse() -> None:
    raise ConnectionError("away")


def test_an_outage_is_waited_for_once(monkeypatch):
    """Requests that come after the patience is over are tried once each, until the store answers again."""
    monkeypatch.setenv("STYLEGAN_PATIENCE", "0.3")
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    attempts = []

    def failing() -> None:
        attempts.append(1)
        raise ConnectionError("away")

    with pytest.raises(ConnectionError):
        patient(failing, "s3://outage/a")
    assert len(attempts) > 2
    for name in ("b", "c", "a"):
        attempts.clear()
        with pytest.raises(ConnectionError):
            patient(failing, f"s3://outage/{name}")
        assert len(attempts) == 1

    # Another store, and this one once it has answered, are waited for again.
    for uri in ("s3://another/a", "s3://outage/a"):
        attempts.clear()
        with pytest.raises(ConnectionError):
            patient(failing, uri)
        assert (len(attempts) > 2) == (uri == "s3://another/a")
    patient(lambda: None, "s3://outage/d")
    attempts.clear()
    with pytest.raises(ConnectionError):
        patient(failing, "s3://outage/a")
    assert len(attempts) > 2


def test_an_old_outage_is_over(monkeypatch):
    """A store that nobody has asked for a while is waited for anew."""
    monkeypatch.setenv("STYLEGAN_PATIENCE", "0.3")
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(retry, "SAME_OUTAGE", -1.0)
    for _ in range(2):
        answers = iter([refuse, refuse, lambda: None])
        patient(lambda answers=answers: next(answers)(), "s3://old/a")
        with pytest.raises(ConnectionError):
            patient(refuse, "s3://old/a")


@pytest.mark.parametrize("text", ["soon", "nan", "-1"])
def test_a_patience_that_is_no_number_is_one_line(monkeypatch, text):
    monkeypatch.setenv("STYLEGAN_PATIENCE", text)
    with pytest.raises(ConfigError, match=f"^STYLEGAN_PATIENCE={text}: must be seconds"):
        patient(lambda: None, "s3://b")


@pytest.mark.parametrize(
    ("patience", "errors", "calls"),
    [
        ("60", [UnavailableError("away")] * 3, 4),
        ("0", [UnavailableError("away")], 1),
        ("0", [LostHeadError("gone")] * 3, 4),
        ("60", [ExhaustedError("waited for already")], 1),
        ("60", [StepError("wrong")], 1),
    ],
)
def test_a_step_is_tried_again_while_what_it_needs_is_away(monkeypatch, patience, errors, calls):
    """Not a mistake, and not what was waited for; for the next Ray cluster the step waits itself."""
    monkeypatch.setenv("STYLEGAN_PATIENCE", patience)
    monkeypatch.setattr(retry, "STEP_PAUSE", 0.01)
    called = []

    def step() -> str:
        called.append(1)
        if len(called) <= len(errors):
            raise errors[len(called) - 1]
        return "record"

    if calls > len(errors):
        assert insist(step) == "record"
    else:
        with pytest.raises(type(errors[0])):
            insist(step)
    assert len(called) == calls
