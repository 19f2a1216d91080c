"""Tell people what has become of a retraining, by the Apprise URLs of `retrain.notify`.

The URLs hold secrets: no message, log or error shows more of one than its scheme. A service that refuses or does not
answer is a line in the log and never more.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stylegan.config.tree import Config
from stylegan.errors import ConfigError, printable, shown
from stylegan.uris import redact

logger = logging.getLogger("stylegan")
LONGEST = 1500  # characters of a reason: some services take few


class Message(NamedTuple):
    """What is told. `picture`: bytes of a PNG file that goes with it, if the service takes one."""

    title: str
    reason: str
    links: Sequence[str] = ()
    picture: bytes | None = None


def check_urls(config: Config) -> None:
    """Check `retrain.notify` without sending anything.

    Raises:
        ConfigError: an entry is no Apprise URL, or the variable that it names is not set.
    """
    if config.retrain.notify:
        _services(config)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the lines of the libraries that send out of every log: they hold whole URLs."""
    loggers = [logging.getLogger(name) for name in ("apprise", "urllib3", "urllib3.connectionpool", "requests")]
    before = [logger.level for logger in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def tell(config: Config, message: Message) -> bool:
    """Send a message to all services of `retrain.notify`; return whether all took it. Raises nothing."""
    if not config.retrain.notify:
        return True
    try:
        services = _services(config)
        with _silent(), tempfile.TemporaryDirectory(prefix="stylegan-notify-") as folder:
            picture = Path(folder, "samples.png")
            if message.picture:
                picture.write_bytes(message.picture)
            told = [_send(service, name, message, picture) for name, service in services]
            return all(told)
    except Exception as error:  # whatever a plug-in of a service raises
        reason = str(error) if isinstance(error, ConfigError) else type(error).__name__
        logger.warning("retrain.notify: nobody was told (%s)", reason)
        return False


def _send(service: Any, name: str, message: Message, picture: Path) -> bool:
    from apprise import NotifyFormat

    body = "\n".join([shown(message.reason, LONGEST), *map(printable, message.links)])
    told = service.notify(
        title=redact(message.title),
        body=redact(body),
        body_format=NotifyFormat.TEXT,
        attach=str(picture) if picture.exists() else None,
    )
    if not told:
        logger.warning("%s: did not take the message `%s`; its settings and its service say why", name, message.title)
    return bool(told)


def _services(config: Config) -> list[tuple[str, Any]]:
    """Return the services, each with the name by which messages speak of it. Raises ConfigError as `check_urls`."""
    from apprise import Apprise

    found = []
    for number, entry in enumerate(config.retrain.notify):
        key = f"retrain.notify[{number}]"
        text, where = entry, key
        if entry.startswith("$"):
            name = entry[1:].strip("{}")
            text, where = os.environ.get(name, ""), f"{key}={entry}"
            if not text.strip():
                raise ConfigError(f"{where}: this variable is not set; set it to Apprise URLs, or remove the entry")
        elif not text.strip():
            raise ConfigError(f"{where}: is empty; write an Apprise URL, or remove the entry")
        for url in text.split():
            service = Apprise()
            scheme = f"{url.partition('://')[0]}://..." if "://" in url else "without ://"
            with _silent():
                known = service.add(url)
            if not known:
                raise ConfigError(
                    f"{where}: a URL {shown(scheme, 40)} is none that Apprise knows; its services and their URLs are at "
                    "https://appriseit.com/services/"
                )
            found.append((f"{key} ({shown(scheme, 40)})", service))
    return found
