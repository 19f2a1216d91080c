"""Store the places of archive members in arrays, tens of bytes a member, so that an opener is cheap to send to other processes."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np


class Locator:
    """A table of whole numbers by path. It keeps 64-bit hashes instead of the paths.

    In one of 37 million sources with a million paths two paths have the same hash. The row that was added later then
    counts for both.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._new_hashes, self._new_rows = array("Q"), array("q")
        self._hashes, self._rows = np.empty(0, np.uint64), np.empty((0, width), np.int64)

    def add(self, path: str, *row: int) -> None:
        """Add a row of `width` numbers for a path. Call this before `seal` only."""
        self._new_hashes.append(_hash(path))
        self._new_rows.extend(row)

    def seal(self) -> Locator:
        """Sort the rows, so that they can be looked up, and return this locator."""
        hashes = np.frombuffer(self._new_hashes, np.uint64)
        rows = np.frombuffer(self._new_rows, np.int64).reshape(-1, self.width)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._rows = hashes[order], rows[order]
        self._new_hashes, self._new_rows = array("Q"), array("q")
        return self

    def __getitem__(self, path: str) -> tuple[int, ...]:
        """Return the row that was added last for a path. Raises KeyError if there is no such path."""
        wanted = np.uint64(_hash(path))
        row = int(np.searchsorted(self._hashes, wanted, side="right")) - 1
        if row < 0 or self._hashes[row] != wanted:
            raise KeyError(path)
        return tuple(int(number) for number in self._rows[row])


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
