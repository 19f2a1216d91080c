"""Samples out of tars by their places: neighbours are read together, checked by their CRC and decoded, without parsing the tar."""

from __future__ import annotations

import os
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

import numpy as np

from stylegan import storage
from stylegan.data import payload
from stylegan.data.index import LevelIndex, damaged
from stylegan.errors import StepError

OPEN_FILES = 64


class Span(NamedTuple):
    """Bytes of one tar that hold some samples: `numbers` [n] of images in the order of their places."""

    tar: int
    start: int
    length: int
    numbers: np.ndarray


class Samples:
    """Reads and decodes the images of a level, in any order and from any thread."""

    def __init__(self, shards_uri: str, index: LevelIndex) -> None:
        self.index = index
        self.remote = any(not storage.is_local(tar.uri) for tar in index.tars)
        self._shards_uri = shards_uri
        channels, side, _ = index.shape
        self._header = payload.npy_header((side, side) if channels == 1 else (side, side, channels))
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = Lock()

    def spans(self, numbers: np.ndarray, *, longest: int) -> Iterator[Span]:
        """The reads that give these images, of at most `longest` bytes each (or one sample)."""
        index, gap = self.index, 2**18 if self.remote else 2**14  # bytes that cost less than another request
        order = numbers[np.lexsort((index.offset[numbers], index.tar[numbers]))]
        tars, starts = index.tar[order], index.offset[order]
        ends = starts + index.size[order]
        breaks = np.flatnonzero((tars[1:] != tars[:-1]) | (starts[1:] - ends[:-1] > gap)) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(order)], strict=True):
            while first < last:
                stop = max(
                    int(np.searchsorted(ends[first:last], starts[first] + longest, side="right")) + first, first + 1
                )
                yield Span(int(tars[first]), int(starts[first]), int(ends[stop - 1] - starts[first]), order[first:stop])
                first = stop

    def load(self, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 [n, C, r, r] of a span, and which of them are good, bool [n]; a damaged one is read a second time.

        Raises:
            StepError: the tar is missing or cannot be read.
        """
        pixels, good = self._decode(span, self._read(span))
        for row in np.flatnonzero(~good).tolist():  # on its way, or in its place?
            number = span.numbers[row : row + 1]
            again = Span(span.tar, int(self.index.offset[number[0]]), int(self.index.size[number[0]]), number)
            pixels[row : row + 1], good[row : row + 1] = self._decode(again, self._read(again))
        return pixels, good

    def place(self, number: int) -> str:
        """Where an image lies, for people."""
        return f"{self.index.tars[self.index.tar[number]].uri}: the sample at byte {self.index.offset[number]}"

    def _read(self, span: Span) -> bytes:
        uri = self.index.tars[span.tar].uri
        try:
            if storage.is_local(uri):
                file = self._open(span.tar, uri)  # a name for it, so that it stays open
                return os.pread(file.descriptor, span.length, span.start)
            return storage.read_range(uri, span.start, span.length)
        except FileNotFoundError:
            raise StepError(damaged(self._shards_uri, uri, "missing")) from None
        except OSError as error:
            raise StepError(damaged(self._shards_uri, uri, f"cannot be read ({error})")) from error

    def _open(self, number: int, uri: str) -> _File:
        with self._lock:
            file = self._files.pop(number, None) or _File(storage.absolute(uri))
            self._files[number] = file
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)  # closes when no thread reads it any more
            return file

    def _decode(self, span: Span, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        index, view = self.index, memoryview(data)
        starts = (index.offset[span.numbers] - span.start).tolist()
        parts = [
            view[start : start + size] for start, size in zip(starts, index.size[span.numbers].tolist(), strict=True)
        ]
        good = np.array(
            [zlib.crc32(part) == crc for part, crc in zip(parts, index.crc[span.numbers].tolist(), strict=True)]
        )
        if (
            index.suffix == "npy"
            and good.all()
            and (index.size[span.numbers] == len(self._header) + np.prod(index.shape)).all()
        ):
            return self._decode_raw(data, np.array(starts) + len(self._header)), good
        pixels = np.zeros((len(parts), *index.shape), np.uint8)
        for row in np.flatnonzero(good).tolist():
            try:
                pixels[row] = payload.decode(parts[row], index.suffix)
            except ValueError:  # the shape of another set, too
                good[row] = False
        return pixels, good

    def _decode_raw(self, data: bytes, starts: np.ndarray) -> np.ndarray:
        """All at once: for small images a loop in Python would cost more than the copy."""
        channels, side, _ = self.index.shape
        rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), channels * side * side)[starts]
        return np.ascontiguousarray(rows.reshape(-1, side, side, channels).transpose(0, 3, 1, 2))


class _File:
    """An open local file that closes with its last user."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
