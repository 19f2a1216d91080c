"""Repeat requests to a store that throttles, times out or drops connections, instead of failing with it.

A request is repeated, less and less often, for $STYLEGAN_PATIENCE seconds (600 if unset). `storage_settings` sets that
from `storage.patience_s`. What a store refuses for good (no such file, no permission) fails at once.

The patience is counted from the beginning of an outage, which all requests of a process to a store share. Once it is
over, every request is tried once and fails at once, until one succeeds: what waits in a queue does not wait again.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from stylegan.config.sections import StorageConfig
from stylegan.errors import ConfigError, ExhaustedError, LostHeadError, StepError, UnavailableError, one_line
from stylegan.uris import redact

R = TypeVar("R")
logger = logging.getLogger("stylegan")
SECONDS_BETWEEN_LINES = 30.0  # in the log, about the same store: many threads may wait for it
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0  # seconds between two attempts
STEP_PAUSE, LONGEST_STEP_PAUSE = 5.0, 60.0  # of a whole step
SAME_OUTAGE = 60.0  # seconds: after a longer time without a request, a failure begins a new outage

# Classes of errors, by name, since the packages that define them are imported only when they are used. An error counts
# if its class or a base of that has the name.
TRANSIENT = {
    "TimeoutError",
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "IncompleteRead",
    "ResponseParserError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServiceRequestError",
    "ServiceResponseError",
    "TransportError",
    "Timeout",
}
PERMANENT = {"SSLError", "ClientSSLError", "ProxyConnectionError", "ClientProxyConnectionError"}
# Code words with which S3 and its like ask to come back later, whatever the HTTP status.
TRANSIENT_CODES = {
    "SlowDown",
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "ConditionalRequestConflict",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}

# HTTP status of a store whose disk is full: 507 says so, but most stores answer 500 and say it in their own log alone.
FULL_STATUS = (500, 507)

_last_lines: dict[str, float] = {}  # store -> time of the newest line about it
_outages: dict[
    str, tuple[float, float]
] = {}  # store -> times of the first and the newest failure since its last answer

PATIENCE, CACHE_GB = "STYLEGAN_PATIENCE", "STYLEGAN_CACHE_GB"
_blocks_lock = threading.Lock()
_blocks: list[dict[str, str | None]] = []  # the settings of the open blocks, below them those of the environment


@contextmanager
def storage_settings(config: StorageConfig | None) -> Iterator[None]:
    """Apply `storage.patience_s` and `storage.cache_gb` to this process, and to those it starts, during the block.

    Both are environment variables, which are as before after the block: no run sees the settings of another. If
    `cache_gb` is None, $STYLEGAN_CACHE_GB is that of the environment, also inside the block of another config. Of
    blocks that are open at the same time, in any threads, the newest holds. None changes nothing.
    """
    if config is None:
        yield
        return
    with _blocks_lock:
        if not _blocks:
            _blocks.append({name: os.environ.get(name) for name in (PATIENCE, CACHE_GB)})
        cache_gb = _blocks[0][CACHE_GB] if config.cache_gb is None else str(config.cache_gb)
        settings = {PATIENCE: str(config.patience_s), CACHE_GB: cache_gb}
        _blocks.append(settings)
        _apply(settings)
    try:
        yield
    finally:
        with _blocks_lock:
            _blocks[:] = [block for block in _blocks if block is not settings]
            _apply(_blocks[-1])
            if len(_blocks) == 1:
                _blocks.clear()


def _apply(settings: dict[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def patient(action: Callable[[], R], uri: str) -> R:
    """Call `action` and return its result; repeat it after transient errors until $STYLEGAN_PATIENCE is over.

    Args:
        action: a request to a store, which may be done more than once.
        uri: named in the log.

    Raises:
        Exception: that of the last attempt, if it is not transient or the patience is over.
    """
    store, limit, pause = store_of(uri), patience(), FIRST_PAUSE
    own_failure: float | None = None  # others may still be served while a store throttles this request
    while True:
        began = time.monotonic()
        try:
            result = action()
        except Exception as error:
            if not is_transient(error):
                raise
            now = time.monotonic()
            own_failure = now if own_failure is None else own_failure
            waited = now - min(own_failure, _note_failure(store, began, now))
            if waited >= limit:
                raise
            _log_waiting(uri, error, waited)
        else:
            _outages.pop(store, None)
            return result
        # The random part keeps workers from repeating their requests all at the same moment.
        time.sleep(min(pause * random.uniform(0.5, 1), limit - waited))
        pause = min(2 * pause, LONGEST_PAUSE)


def insist(action: Callable[[], R]) -> R:
    """Call a step and return its result; call it again while what it needs does not answer, as `seconds_left` says."""
    first, pause = 0.0, STEP_PAUSE
    while True:
        try:
            return action()
        except UnavailableError as error:
            first = first or time.monotonic()
            left = seconds_left(error, first)
            if not left:
                raise
            log_again(error, left)
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_STEP_PAUSE)


def seconds_left(error: object, first: float) -> float:
    """Return for how long a step that has failed is tried again; 0 if it is not, as what was waited for already.

    After a server that does not answer that is what is left of the patience. After the loss of a Ray cluster it is without
    an end: the step itself then waits for the next cluster.

    Args:
        error: that of its last attempt.
        first: time of its first failure, by `time.monotonic`.
    """
    if isinstance(error, LostHeadError):
        return float("inf")
    if not isinstance(error, UnavailableError) or isinstance(error, ExhaustedError):
        return 0.0
    return max(first + patience() - time.monotonic(), 0.0)


def log_again(error: object, left: float) -> None:
    """Log that a step is tried again, for so many seconds."""
    logger.warning("%s (trying again%s)", error, "" if left == float("inf") else f" for another {left:.0f} s")


def patience() -> float:
    """Return the seconds for which this process waits for a store. Raises ConfigError if $STYLEGAN_PATIENCE is none."""
    text = os.environ.get(PATIENCE) or "600"
    try:
        return StorageConfig(patience_s=float(text)).patience_s
    except ValueError:
        raise ConfigError(
            f"{PATIENCE}={text}: must be seconds from 0 to 604800 (a week); correct it or unset it"
        ) from None


def store_of(uri: str) -> str:
    """Return the part of a URI that names the store: protocol and bucket, or host."""
    return "/".join(uri.split("/")[:3])


def _note_failure(store: str, began: float, now: float) -> float:
    """Return when the present outage of a store began.

    Args:
        began: time at which the failed attempt began.
        now: time at which it failed.
    """
    first, newest = _outages.get(store, (now, now))
    if began - newest > SAME_OUTAGE:
        first = now
    _outages[store] = (first, now)
    return first


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may work a little later.

    It may after throttling, failures inside the store, timeouts, resets and truncated bodies.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError | PermissionError | StepError) or names & PERMANENT:
        return False
    status, code = answer_of(error)
    if status is not None:
        failed_inside = status >= 500 and status != 501  # 501: not implemented
        return failed_inside or status in (408, 429) or code in TRANSIENT_CODES
    if names & TRANSIENT:
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)


def answer_of(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status and the code word of a store's answer, from the error of any package.

    The status is None if the store did not answer; the code word is empty if the package does not report one.
    """
    responses = getattr(error, "response", None), getattr(error.__cause__, "response", None)
    for response in responses:
        if isinstance(response, dict):  # botocore
            code = str(response.get("Error", {}).get("Code", ""))
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), code
    for source in (error, *responses):
        for attribute in ("status_code", "status", "code"):
            with suppress(TypeError, ValueError):
                return int(getattr(source, attribute, None)), ""  # type: ignore[arg-type]
    return None, ""


def _log_waiting(uri: str, error: Exception, waited: float) -> None:
    """Log that a store is waited for, at most once in `SECONDS_BETWEEN_LINES` for each store."""
    now, store = time.monotonic(), store_of(uri)
    if now - _last_lines.get(store, float("-inf")) < SECONDS_BETWEEN_LINES:
        return
    _last_lines[store] = now
    status, code = answer_of(error)
    reason = f"{status} {code}".strip() if status else one_line(error)
    if status in FULL_STATUS:
        reason += " (is its disk full?)"
    logger.warning("waiting for %s: %s, %.0f s so far", redact(uri), reason, waited)
