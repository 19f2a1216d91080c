"""Decoded images as raw pixels in a local file that all processes of a machine fill and read together.

{cache}/images/{name}/
    images.npy          uint8 [N, C, r, r], sparse: only decoded images take space
    flags-{boot}        one byte per image: MISSING, GOOD or REPLACED; valid until the machine starts again
    labels.npy, attributes.npy
    complete.json       written once all images are safely on the disk

The pixels of an image are written before its flag, so a process that sees the flag sees the pixels. All writes are
plain ones: with a writable memory map, a full disk would end the process with SIGBUS instead of an error.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt

from stylegan.data.cache import Entry, alone, reserve
from stylegan.errors import DamagedError
from stylegan.records import Record, parse
from stylegan.storage import write_local

logger = logging.getLogger("stylegan")

MISSING, GOOD, REPLACED = 0, 1, 2


class PixelFile:
    """The raw pixels of one resolution of a set. The entry of the cache is held as long as this object exists.

    Attributes:
        images: uint8 [N, C, r, r], mapped read-only; zeros for images that are missing.
        flags: uint8 [N]: MISSING, GOOD, or REPLACED if the image is damaged and `images` has another one in its place.
        kept: number of leading images that the limit of the cache allows this process to store.
        complete: whether all images are in the file and safely on the disk.

    If the limit is too small, the first images are stored and the others are decoded every time. Images come in cycles.
    If a cycle is larger than the cache, dropping the least recently used image would drop each one just before it is
    needed. No rule does better than keeping a fixed part.

    Raises:
        OSError: the disk refuses.
    """

    def __init__(self, name: str, shape: tuple[int, int, int, int], *, cache_gb: float | None = None) -> None:
        self.entry = Entry("images", name)
        self.folder, self.shape = self.entry.folder, shape
        self.image_bytes = int(np.prod(shape[1:]))
        self._file, self._flag_file = self.folder / "images.npy", self.folder / f"flags-{boot_id()}"
        with alone(self.folder / "making"):
            self._create()
        self.complete = read_marker(self.folder) is not None
        self.kept = shape[0] if self.complete else self._reserve(cache_gb)
        self.images = np.asarray(np.load(self._file, mmap_mode="r"))
        self.flags = np.asarray(np.memmap(self._flag_file, np.uint8, "r"))

    def _create(self) -> None:
        """Create the files that are missing. Files of another length, and flags from before a restart, are replaced."""
        size = len(self._header()) + self.shape[0] * self.image_bytes

        # The pixels.
        if not self._file.exists() or self._file.stat().st_size != size or not self._has_header():
            for old in self.folder.glob("[!.]*"):
                if old.name != "making":
                    old.unlink()
            with open(self._file, "wb") as file:
                file.write(self._header())
                file.truncate(size)

        # The flags: after a restart, those of a complete file are known from its marker.
        marker = read_marker(self.folder)
        if marker is not None and max(marker, default=0) >= self.shape[0]:
            (self.folder / "complete.json").unlink()  # of other images
            marker = None
        if not self._flag_file.exists() or self._flag_file.stat().st_size != self.shape[0]:
            for old in self.folder.glob("flags-*"):
                old.unlink()
            flags = np.full(self.shape[0], MISSING if marker is None else GOOD, np.uint8)
            flags[marker or []] = REPLACED
            write_local(self._flag_file, flags.tobytes())

    def _has_header(self) -> bool:
        header = self._header()
        with open(self._file, "rb") as file:
            return file.read(len(header)) == header

    def _header(self) -> bytes:
        header = BytesIO()
        np.lib.format.write_array_header_2_0(header, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
        return header.getvalue()

    def _reserve(self, cache_gb: float | None) -> int:
        extra = 18 * self.shape[0] + 2**16  # flags, labels and other small files
        granted = reserve(self.folder, self.shape[0] * self.image_bytes + extra, cache_gb=cache_gb)
        return min(max(granted - extra, 0) // self.image_bytes, self.shape[0])

    def write(self, numbers: np.ndarray, pixels: np.ndarray, flag: int = GOOD) -> None:
        """Write images, except those beyond `kept`.

        Args:
            numbers: int64 [n], ascending.
            pixels: uint8 [n, C, r, r], C-contiguous.
        """
        edges = np.flatnonzero(np.diff(numbers, prepend=-2, append=-2) != 1)
        data = pixels.reshape(-1).data
        with open(self._file, "r+b", buffering=0) as file, open(self._flag_file, "r+b", buffering=0) as flags:
            for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):  # runs of consecutive numbers
                first, last = int(numbers[start]), min(int(numbers[stop - 1]) + 1, self.kept)
                if last > first:
                    run = data[start * self.image_bytes : (start + last - first) * self.image_bytes]
                    _write_at(file.fileno(), run, len(self._header()) + first * self.image_bytes)
                    _write_at(flags.fileno(), memoryview(bytes([flag]) * (last - first)), first)

    def finish(self) -> None:
        """Mark the file as complete if every image is in it, so that it stays valid after a restart of the machine.

        Raises:
            OSError: the disk refuses.
        """
        if self.kept < self.shape[0] or not self.flags.all():
            return
        with open(self._file, "rb") as file:
            os.fsync(file.fileno())
        replaced = np.flatnonzero(self.flags == REPLACED).tolist()
        write_local(self.folder / "complete.json", json.dumps({"replaced": replaced}).encode())
        self.complete = True

    def write_labels(self, labels: np.ndarray, attributes: np.ndarray | None) -> None:
        """Write labels and attributes beside the images, so that a complete file needs no shards."""
        arrays = {"labels.npy": labels} | ({} if attributes is None else {"attributes.npy": attributes})
        for name, array in arrays.items():
            if not _holds(self.folder / name, array):
                content = BytesIO()
                np.save(content, array)
                write_local(self.folder / name, content.getvalue())

    @contextmanager
    def claim(self, block: int) -> Iterator[bool]:
        """Claim a block of images for the `with` block, without waiting.

        Yields:
            False if another process works on it.
        """
        with open(self.folder / "claims", "ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block)
            except OSError:
                yield False
                return
            yield True


class Complete(NamedTuple):
    """A complete file: the arrays are those of `ImageTable`."""

    entry: Entry
    images: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray | None


def read_complete(name: str) -> Complete | None:
    """Return a complete file without replaced images; None if there is none, or its files are damaged.

    Raises:
        OSError: the disk refuses.
    """
    entry = Entry("images", name)
    if read_marker(entry.folder) != []:
        return None
    try:
        images, labels = np.load(entry.folder / "images.npy", mmap_mode="r"), np.load(entry.folder / "labels.npy")
        attributes = np.load(entry.folder / "attributes.npy") if (entry.folder / "attributes.npy").exists() else None
    except (OSError, ValueError, EOFError):  # a file was cut short
        return None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
        return None
    if not _is_array(labels, np.int64, (len(images),)):
        return None
    if attributes is not None and not _is_array(attributes, np.uint8, (len(images), *np.shape(attributes)[1:])):
        return None
    return Complete(entry, np.asarray(images), labels, attributes)


def _is_array(value: Any, dtype: type, shape: tuple[int, ...]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == dtype and value.shape == shape


def _holds(file: Path, array: np.ndarray) -> bool:
    """Return whether a file holds this array; another one is damaged and may be replaced."""
    try:
        found = np.load(file)
    except (OSError, ValueError, EOFError):
        return False
    return _is_array(found, array.dtype.type, array.shape) and np.array_equal(found, array)


class _Marker(Record):
    """The content of `complete.json`."""

    replaced: list[NonNegativeInt]


def read_marker(folder: Path) -> list[int] | None:
    """Return the numbers of the replaced images of a complete file; None if it is not complete."""
    path = folder / "complete.json"
    try:
        return parse(path.read_bytes(), _Marker, origin=str(path), cure="its images are decoded again").replaced
    except OSError:
        return None
    except DamagedError as error:
        logger.warning("%s", error)
        return None


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return an identifier that changes when the machine starts again; without one, an identifier of this process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex


def _write_at(descriptor: int, data: memoryview, position: int) -> None:
    """Write all bytes at a position; one call of `pwrite` may write fewer."""
    while data:
        done = os.pwrite(descriptor, data, position)
        data, position = data[done:], position + done
