"""Where the members of archives lie, in arrays: tens of bytes a member, so an opener goes to other processes cheaply."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np


class Locator:
    """Rows of whole numbers by path. Of the paths only 64-bit hashes are kept.

    Two of a million paths have the same hash once in 37 million sources; `add` and `seal` then keep the later row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._new_hashes, self._new_rows = array("Q"), array("q")
        self._hashes, self._rows = np.empty(0, np.uint64), np.empty((0, width), np.int64)

    def add(self, path: str, *row: int) -> None:
        """Note `width` numbers for a path; only before `seal`."""
        self._new_hashes.append(_hash(path))
        self._new_rows.extend(row)

    def seal(self) -> Locator:
        """Sort, after which rows can be looked up."""
        hashes, rows = (
            np.frombuffer(self._new_hashes, np.uint64),
            np.frombuffer(self._new_rows, np.int64).reshape(-1, self.width),
        )
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], rows[order]
        self._new_hashes, self._new_rows = array("Q"), array("q")
        return self

    def __getitem__(self, path: str) -> tuple[int, ...]:
        """The row that was noted last for a path. Raises KeyError."""
        wanted = np.uint64(_hash(path))
        place = int(np.searchsorted(self._hashes, wanted, side="right")) - 1
        if place < 0 or self._hashes[place] != wanted:
            raise KeyError(path)
        return tuple(int(number) for number in self._rows[place])


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
