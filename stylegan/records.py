"""Records, the small frozen values that steps pass to each other, and digests of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of the records that steps return, store and print: immutable, and plain values only."""

    model_config = ConfigDict(frozen=True)


def digest(part: Any) -> str:
    """Return ten hex characters that identify a JSON-able value or pydantic model, independent of key order."""
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no digest")
