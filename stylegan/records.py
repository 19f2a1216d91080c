"""Records, the small frozen values that steps pass to each other: how they are read back, and digests of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from stylegan.errors import DamagedError, one_line

T = TypeVar("T")


class Record(BaseModel):
    """Base of the records that steps return, store and print: immutable, and plain values only."""

    model_config = ConfigDict(frozen=True)


def parse(data: bytes | str, kind: type[T], *, origin: str, cure: str) -> T:
    """Parse JSON and check that it is what its writer wrote.

    Everything that a step reads back goes through here: JSON that is only well-formed is not trusted.

    Args:
        data: the JSON.
        kind: a `Record`, or any other type that pydantic validates.
        origin: the file (or tag) that holds it, for the error message.
        cure: how to get it again, for the error message.

    Raises:
        DamagedError: it is not JSON, or not of that kind.
    """
    with _told(origin, cure):
        record: T = _adapter(kind).validate_json(data)  # type: ignore[arg-type]  # types can be hashed
    return record


def check(value: Any, kind: type[T], *, origin: str, cure: str) -> T:
    """Check a value that was parsed already; arguments and errors as for `parse`."""
    with _told(origin, cure):
        checked: T = _adapter(kind).validate_python(value)  # type: ignore[arg-type]
    return checked


@contextmanager
def _told(origin: str, cure: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise DamagedError(f"{origin}: is damaged ({_first_problem(error)}); {cure}") from None


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return one_line(ValueError(f"{place}: {first['msg']}" if place else first["msg"]), 200)


def digest(part: Any) -> str:
    """Return ten hex characters that identify a JSON-able value or pydantic model, independent of key order."""
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no digest")
