"""What every flow does first, before anything that takes time is imported."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect.runtime import flow_run

from flows import killed_runs, outage
from stylegan.config.tree import Config
from stylegan.uris import redact

_FORMATTER = logging.Formatter()


def begin() -> list[str]:
    """Let Prefect's log have no secrets, mark the flow run with its process, and end those whose process was killed.

    Returns:
        The names of the retrainings that were ended.
    """
    logging.getLogger("stylegan").setLevel(logging.INFO)
    for name in ("stylegan", "prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(redacted)
    ended: list[str] = []
    outage.when_there("tag of the process", killed_runs.tag_process)  # first: a run may be killed at any moment
    outage.when_there("runs that were killed", lambda: ended.extend(killed_runs.end_killed_runs()))
    return ended


def flow_name_of() -> str:
    """Return the name of a flow run, from the config in its parameters."""
    config = flow_run.parameters.get("config")
    if isinstance(config, dict):
        return str(config.get("name"))
    return config.name if isinstance(config, Config) else Path(str(config)).stem


def redacted(record: logging.LogRecord) -> bool:
    """Redact the secrets of URLs in a log record before Prefect stores it, also in the traceback of another library."""
    record.msg, record.args = redact(record.getMessage()), ()
    if record.exc_info:
        record.exc_text, record.exc_info = redact(_FORMATTER.formatException(record.exc_info)), None
    return True
