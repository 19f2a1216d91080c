"""The two kinds of failure that a user sees, each as one line.

- `ConfigError`: the config or the command line is wrong. Exit code 2; nothing was started.
- `StepError`: a step cannot work with what it was given (data, storage, a server). Exit code 1; finished work is kept.

The message names the thing, its value, what is allowed and the cure. Any other exception is a defect of the program and
keeps its traceback, unless it concerns only what people look at: see `decoration`.

Names of files and classes come from elsewhere, and may contain line breaks and codes that act on a terminal. `printable`
makes them safe to show.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from stylegan.uris import redact

logger = logging.getLogger("stylegan")
# Characters that would end a line, start a code of the terminal, turn the direction of writing or fail to be encoded.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # of category Cf, but parts of ordinary words and emoji


class UserError(Exception):
    """A failure that its message explains completely. It is printed as one line, never with a traceback.

    Whoever wrote the message, secrets of URLs in it are redacted and it is made printable: it ends on terminals, in
    logs and in Prefect.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(printable(message)))


class ConfigError(UserError, ValueError):
    """A value in the config or on the command line is not allowed (exit code 2).

    Args:
        instead: an argument that is wrong, and the one that was surely meant; the command line shows the whole command.
    """

    def __init__(self, message: str, *, instead: tuple[str, str] | None = None) -> None:
        super().__init__(message)
        self.instead = instead


class StepError(UserError, RuntimeError):
    """A step cannot go on with what it was given (exit code 1)."""


class UnavailableError(StepError):
    """A store, server or cluster refused or did not answer; the same step may work a little later."""


class ExhaustedError(UnavailableError):
    """What was waited for as long, or tried as often, as the config allows: no part of the program tries it again."""


class LostHeadError(UnavailableError):
    """The Ray cluster that a step worked on is gone; the step works again once this process has joined the next one.

    `stylegan.cluster.session.connect` waits for that one, so no patience of a store limits how often a step is tried again.
    """


class DamagedError(StepError):
    """A stored file does not hold what this program wrote there: it was cut, overwritten, or belongs to something else.

    The message names the file, what is wrong with it, and how to get it again.
    """


class Stopped(KeyboardInterrupt):
    """A run was stopped from elsewhere than this process, in good order; the same command goes on.

    Attributes:
        number: the signal that did it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(redact(printable(message)))
        self.number = number


class DivergedError(StepError):
    """Gradients of training are no longer finite; from the same checkpoint it would end the same way."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of an exception as one line of at most `limit` characters; its type if it has no message.

    Secrets of URLs are redacted.
    """
    return redact(printable(" ".join(str(error).split())))[:limit] or type(error).__name__


def printable(text: str) -> str:
    """Return foreign text, such as the name of a file, as one line that does nothing to a terminal.

    Control characters, line breaks, marks of the direction of writing and bytes that are no text become escapes such as
    `\\n` and `\\x1b`. All other characters stay, so the result can be passed through again.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) not in _UNPRINTABLE or letter in _JOINERS:
        return letter
    return letter.encode("unicode_escape").decode()


def shown(text: str, limit: int = 80) -> str:
    """Return foreign text as `printable` does, in at most `limit` characters."""
    begun = printable(text[: limit + 1])
    return begun if len(begun) <= limit else f"{begun[: limit - 1]}\u2026"


@contextmanager
def decoration(what: str) -> Iterator[None]:
    """Log a failure of the block as a warning: what only people look at never fails a step.

    Args:
        what: names what the block makes, such as `the card of this set`.

    Raises:
        UnavailableError: a store or worker is away for a moment; the block works when it is repeated.
    """
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
        logger.warning("%s could not be made: %s", what, shown(reason, 300))
