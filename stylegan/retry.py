"""Waiting for a store that throttles, times out or breaks off, instead of failing with it.

It is asked again, less and less often, for $STYLEGAN_PATIENCE seconds; 600 if unset. `use_settings` sets that from
`storage.patience_s`. What a store refuses for good (no such file, no permission) fails at once.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from stylegan.config.sections import StorageConfig
from stylegan.errors import StepError, one_line

R = TypeVar("R")
logger = logging.getLogger("stylegan")
LINE_EVERY = 30.0  # seconds between two lines about the same store: many threads may wait for it
LONGEST_PAUSE = 20.0  # seconds between two attempts
# Errors that pass, by the names of their classes or of a base: the packages that define them are imported only when used.
PASSING = {
    *(
        "TimeoutError",
        "ConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "IncompleteRead",
        "ResponseParserError",
    ),
    *(
        "ClientConnectionError",
        "ClientPayloadError",
        "ServiceRequestError",
        "ServiceResponseError",
        "TransportError",
        "Timeout",
    ),
}
LASTING = {"SSLError", "ClientSSLError", "ProxyConnectionError", "ClientProxyConnectionError"}
PASSING_CODES = {
    *("SlowDown", "RequestTimeout", "IncompleteBody", "BadDigest", "InternalError", "ServiceUnavailable"),
    *("Throttling", "ThrottlingException", "TooManyRequests"),
}


def use_settings(config: StorageConfig) -> None:
    """Make `storage.patience_s` and `storage.cache_gb` those of this process and of the ones it starts from now on."""
    os.environ["STYLEGAN_PATIENCE"] = str(config.patience_s)
    if config.cache_gb is not None:
        os.environ["STYLEGAN_CACHE_GB"] = str(config.cache_gb)


def patient(action: Callable[[], R], uri: str) -> R:
    """Do something with a store; while it fails in a way that passes, again and again until $STYLEGAN_PATIENCE is over.

    Args:
        action: may be done more than once.
        uri: for the log.
    """
    limit, pause = float(os.environ.get("STYLEGAN_PATIENCE") or 600), 0.2
    failed: float | None = None  # the first time; since then it is waited
    while True:
        try:
            return action()
        except Exception as error:
            now = time.monotonic()
            failed = now if failed is None else failed
            if not passes(error) or now - failed >= limit:
                raise
            _tell(uri, error, now - failed)
        time.sleep(min(pause * random.uniform(0.5, 1), failed + limit - now))  # not all workers at the same moment
        pause = min(2 * pause, LONGEST_PAUSE)


def passes(error: BaseException) -> bool:
    """Whether the same request may work a little later: throttling, the store's own failures, timeouts, resets, truncated bodies."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, FileNotFoundError | PermissionError | StepError) or names & LASTING:
        return False
    status, code = answer_of(error)
    if status is not None:
        return (status >= 500 and status != 501) or status in (408, 429) or code in PASSING_CODES
    if names & PASSING:
        return True
    return error.__cause__ is not None and passes(error.__cause__)


def answer_of(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and code word with which a store has answered, whichever package tells it; None if it has not."""
    answers = getattr(error, "response", None), getattr(error.__cause__, "response", None)
    for answer in answers:
        if isinstance(answer, dict):  # botocore
            code = str(answer.get("Error", {}).get("Code", ""))
            return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)), code
    for found in (error, *answers):
        for attribute in ("status_code", "status", "code"):
            with suppress(TypeError, ValueError):
                return int(getattr(found, attribute, None)), ""  # type: ignore[arg-type]
    return None, ""


_told: dict[str, float] = {}  # store -> time of the last line


def _tell(uri: str, error: Exception, waited: float) -> None:
    now, store = time.monotonic(), "/".join(uri.split("/")[:3])
    if now - _told.get(store, float("-inf")) < LINE_EVERY:
        return
    _told[store] = now
    status, code = answer_of(error)
    reason = f"{status} {code}".strip() if status else text_of(error)
    logger.warning("waiting for %s: %s, %.0f s so far", uri, reason, waited)


def text_of(error: Exception) -> str:
    """What an error says, as one line."""
    return one_line(error)
