"""Read samples from tars by offset and size, without parsing the tars.

Neighbours are read together. Each sample is checked by its CRC and decoded.
"""

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
from stylegan.data.index import LevelIndex, describe_damage
from stylegan.errors import StepError

OPEN_FILES = 64


class Span(NamedTuple):
    """A range of bytes of one tar, with the samples of the images `numbers` [n] in the order of their offsets."""

    tar: int
    start: int
    length: int
    numbers: np.ndarray


class Samples:
    """A reader of the images of a level, for any order and any thread."""

    def __init__(self, shards_uri: str, index: LevelIndex) -> None:
        self.index = index
        self.remote = any(not storage.is_local(tar.uri) for tar in index.tars)
        self._shards_uri = shards_uri
        channels, side, _ = index.shape
        self._header = payload.npy_header((side, side) if channels == 1 else (side, side, channels))
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = Lock()

    def spans(self, numbers: np.ndarray, *, longest: int) -> Iterator[Span]:
        """Yield the reads for these images, each of at most `longest` bytes or of one sample.

        Args:
            numbers: int64 [n], in any order.
        """
        index = self.index
        gap = 2**18 if self.remote else 2**14  # reading this many bytes in vain costs less than another request

        # Sort by tar and offset.
        order = numbers[np.lexsort((index.offset[numbers], index.tar[numbers]))]
        tars, starts = index.tar[order], index.offset[order]
        ends = starts + index.size[order]

        # Cut where the tar changes or the gap is large, then cut what is too long.
        breaks = np.flatnonzero((tars[1:] != tars[:-1]) | (starts[1:] - ends[:-1] > gap)) + 1
        for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(order)], strict=True):
            while first < last:
                num_fitting = int(np.searchsorted(ends[first:last], starts[first] + longest, side="right"))
                stop = first + max(num_fitting, 1)
                yield Span(int(tars[first]), int(starts[first]), int(ends[stop - 1] - starts[first]), order[first:stop])
                first = stop

    def load(self, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """Read and decode the samples of a span. A damaged one is read a second time.

        Returns:
            Pixels uint8 [n, C, r, r], and whether each is good, bool [n].

        Raises:
            StepError: the tar is missing or cannot be read.
        """
        pixels, good = self._decode(span, self._read(span))
        for row in np.flatnonzero(~good).tolist():  # it may have been damaged on its way from the store only
            number = span.numbers[row : row + 1]
            again = Span(span.tar, int(self.index.offset[number[0]]), int(self.index.size[number[0]]), number)
            pixels[row : row + 1], good[row : row + 1] = self._decode(again, self._read(again))
        return pixels, good

    def describe(self, number: int) -> str:
        """Return the tar and the offset of an image, for messages."""
        return f"{self.index.tars[self.index.tar[number]].uri}: the sample at byte {self.index.offset[number]}"

    def _read(self, span: Span) -> bytes:
        uri = self.index.tars[span.tar].uri
        try:
            if storage.is_local(uri):
                file = self._open_tar(span.tar, uri)  # keep the reference: without one the file would be closed
                return os.pread(file.descriptor, span.length, span.start)
            return storage.read_range(uri, span.start, span.length)
        except FileNotFoundError:
            raise StepError(describe_damage(self._shards_uri, uri, "missing")) from None
        except OSError as error:
            raise StepError(describe_damage(self._shards_uri, uri, f"cannot be read ({error})")) from error

    def _open_tar(self, number: int, uri: str) -> _File:
        """Return an open tar. The `OPEN_FILES` most recently used ones stay open."""
        with self._lock:
            file = self._files.pop(number, None) or _File(storage.absolute(uri))
            self._files[number] = file
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)  # it is closed when no thread reads it any more
            return file

    def _decode(self, span: Span, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Decode the bytes of a span; return what `load` returns."""
        index, view = self.index, memoryview(data)

        # Check each payload by its CRC.
        starts, sizes = index.offset[span.numbers] - span.start, index.size[span.numbers]
        payloads = [view[start : start + size] for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
        crcs = index.crc[span.numbers].tolist()
        good = np.array([zlib.crc32(content) == crc for content, crc in zip(payloads, crcs, strict=True)])

        # Decode all at once if they are raw and whole, one by one otherwise.
        expected = len(self._header) + np.prod(index.shape)
        if index.suffix == "npy" and good.all() and (sizes == expected).all():
            return self._decode_raw(data, starts + len(self._header)), good
        pixels = np.zeros((len(payloads), *index.shape), np.uint8)
        for row in np.flatnonzero(good).tolist():
            try:
                pixels[row] = payload.decode(payloads[row], index.suffix)
            except ValueError:  # damaged, or of another shape than the set
                good[row] = False
        return pixels, good

    def _decode_raw(self, data: bytes, starts: np.ndarray) -> np.ndarray:
        """Decode raw payloads all at once: for small images a loop in Python would cost more than the copy."""
        channels, side, _ = self.index.shape
        rows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), channels * side * side)[starts]
        return np.ascontiguousarray(rows.reshape(-1, side, side, channels).transpose(0, 3, 1, 2))


class _File:
    """An open local file that is closed when its last user drops it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
