"""Let a flow go on while Prefect's server is away: the training needs nothing of it, and the record appears when it is back.

What happens without this, with Prefect 3.8: task runs are orchestrated in the process of the flow, and their events are
sent again as soon as there is a connection. But every request repeats itself for a minute, in which the flow stands still,
and then fails; at the end of the flow that makes a failure of a run that has done all its work.

So a flow asks for nothing while the server is away, and waits for it at its end, when all work is done and stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flows.prefect_server import ask
from stylegan.errors import one_line

logger = logging.getLogger("stylegan")

ANSWER_SECONDS = 5.0
LONGEST = 24 * 3600.0  # seconds that the end of a flow waits for the server
PAUSE, LINE = 2.0, 60.0  # seconds between two questions, and between two lines about it

_postponed: list[tuple[str, Callable[[], object]]] = []


@contextmanager
def surviving() -> Iterator[None]:
    """Wait for the server at the end of the block, and do then what was postponed; on errors and signals, too.

    The wait after a signal is short: whoever stops a run does not wait for a server.
    """
    _postponed.clear()
    try:
        yield
    except Exception:
        _catch_up(LONGEST)
        raise
    except BaseException:
        _catch_up(ANSWER_SECONDS)
        raise
    _catch_up(LONGEST)


def when_there(what: str, action: Callable[[], object]) -> None:
    """Do something with the server now, or at the end of the flow if it is away.

    Args:
        what: names it, for the log.
        action: its failure is a line in the log and never more: no record of Prefect is worth a run.
    """
    if not answers():
        _postponed.append((what, action))
        return
    try:
        action()
    except Exception as error:
        if answers():
            logger.warning("%s: %s", what, one_line(error))
        else:
            _postponed.append((what, action))


def answers() -> bool:
    """Return whether the server answers now."""
    import httpx
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return True  # a server in this very process
    try:
        ask(url, "/health", ANSWER_SECONDS)
    except httpx.HTTPStatusError as error:
        return error.response.status_code < 500
    except httpx.HTTPError:
        return False
    return True


def _catch_up(limit: float) -> None:
    began = said = time.monotonic()
    while not answers():
        now = time.monotonic()
        if now - began > limit:
            logger.warning(
                "Prefect's server has been away for %.0f s; its record of this run stays incomplete", now - began
            )
            return
        if now - said > LINE or said == began:
            said = now
            logger.warning("all work is done and stored; waiting for Prefect's server, to record it")
        time.sleep(PAUSE)
    waiting, _postponed[:] = list(_postponed), []
    for what, action in waiting:
        when_there(what, action)
