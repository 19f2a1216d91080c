"""The two kinds of failure that a user sees, each as one line.

- `ConfigError`: the config or the command line is wrong. Exit code 2; nothing was started.
- `StepError`: a step cannot work with what it was given (data, storage, a server). Exit code 1; finished work is kept.

The message names the thing, its value, what is allowed and the cure. Any other exception is a defect of the program and
keeps its traceback, unless it concerns only what people look at: see `decoration`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("stylegan")


class UserError(Exception):
    """A failure that its message explains completely. It is printed as one line, never with a traceback."""


class ConfigError(UserError, ValueError):
    """A value in the config or on the command line is not allowed (exit code 2)."""


class StepError(UserError, RuntimeError):
    """A step cannot go on with what it was given (exit code 1)."""


class UnavailableError(StepError):
    """A store, server or cluster refused or did not answer; the same step may work a little later."""


class ExhaustedError(UnavailableError):
    """What was waited for as long, or tried as often, as the config allows: no part of the program tries it again."""


class DamagedError(StepError):
    """A stored file does not hold what this program wrote there: it was cut, overwritten, or belongs to something else.

    The message names the file, what is wrong with it, and how to get it again.
    """


class DivergedError(StepError):
    """Gradients of training are no longer finite; from the same checkpoint it would end the same way."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of an exception as one line of at most `limit` characters; its type if it has no message."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def shown(text: str, limit: int = 80) -> str:
    """Return a foreign text as it may be shown, in at most `limit` characters.

    Line breaks, other control characters, marks that turn the direction of writing and halves of characters are
    written as escapes, such as `\\n`.
    """
    begun = text[: limit + 1]
    if not begun.isprintable():
        begun = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in begun)
    return begun if len(begun) <= limit else f"{begun[: limit - 1]}\u2026"


@contextmanager
def decoration(what: str) -> Iterator[None]:
    """Log a failure of the block as a warning: what only people look at never fails a step.

    Failures with a message for the user are raised: they concern the store or the data, not the looks.

    Args:
        what: names what the block makes, such as `the card of this set`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        logger.warning("%s could not be made: %s", what, shown(f"{type(error).__name__}: {one_line(error)}", 200))
