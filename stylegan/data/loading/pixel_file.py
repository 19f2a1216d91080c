"""Decoded images as raw pixels in a local file that all processes of a machine fill and read together.

{cache}/images/{name}.{boot}/   boot: `storage.boot_id` of the machine that fills it
    images.npy          uint8 [N, C, r, r], sparse: only decoded images take space
    flags-{boot}        one byte per image: MISSING, GOOD or REPLACED; valid until the machine starts again
    labels.npy, attributes.npy
    complete.json       written once all images are safely on the disk

The pixels of an image are written before its flag, so a process that sees the flag sees the pixels. All writes are
plain ones: with a writable memory map, a full disk would end the process with SIGBUS instead of an error.

Only processes of one machine, from one start to the next, fill a file together: between machines that share the cache
folder, and across a power cut, a flag says nothing about the pixels. A complete file serves every machine. Entries that
nobody needs any more are left to the limit of the cache.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import NonNegativeInt

from stylegan.data.cache import Entry, alone, cache_root, reserve
from stylegan.errors import DamagedError
from stylegan.records import Record, parse
from stylegan.storage import boot_id, write_local

logger = logging.getLogger("stylegan")

MISSING, GOOD, REPLACED = 0, 1, 2
MARKER = "complete.json"


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
        self.shape, self.image_bytes = shape, int(np.prod(shape[1:]))
        finished = (entry for entry in _complete_entries(name) if self._is_whole(entry.folder / "images.npy"))
        self.entry = next(finished, None) or Entry("images", f"{name}.{boot_id()}")
        self.folder = self.entry.folder
        self._file, self._flag_file = self.folder / "images.npy", self.folder / f"flags-{boot_id()}"
        with alone(self.folder / "making"):
            self._create()
        self.complete = read_marker(self.folder) is not None
        self.kept = shape[0] if self.complete else self._reserve(cache_gb)
        self.images = np.asarray(np.load(self._file, mmap_mode="r"))
        self.flags = np.asarray(np.memmap(self._flag_file, np.uint8, "r"))

    def _create(self) -> None:
        """Create the files that are missing, and make a file of another length anew."""
        # The pixels. A complete file of another machine is whole, so the files are those of this machine.
        if not self._is_whole(self._file):
            for old in self.folder.glob("[!.]*"):
                if old.name != "making":
                    old.unlink()
            with open(self._file, "wb") as file:
                file.write(self._header())
                file.truncate(self._num_bytes)

        # The flags; those of a complete file are known from its marker. Flags of other machines stay.
        marker = read_marker(self.folder)
        if marker is not None and max(marker, default=0) >= self.shape[0]:
            (self.folder / MARKER).unlink()  # of other images
            marker = None
        if not self._flag_file.exists() or self._flag_file.stat().st_size != self.shape[0]:
            flags = np.full(self.shape[0], MISSING if marker is None else GOOD, np.uint8)
            flags[marker or []] = REPLACED
            write_local(self._flag_file, flags.tobytes())

    @property
    def _num_bytes(self) -> int:
        return len(self._header()) + self.shape[0] * self.image_bytes

    def _is_whole(self, file: Path) -> bool:
        """Return whether a file has the length and the header of these images."""
        if not file.exists() or file.stat().st_size != self._num_bytes:
            return False
        with open(file, "rb") as stored:
            return stored.read(len(self._header())) == self._header()

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
        write_local(self.folder / MARKER, json.dumps({"replaced": replaced}).encode())
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
    for entry in _complete_entries(name):
        folder = entry.folder
        if read_marker(folder) != []:
            continue
        try:
            images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
            attributes = np.load(folder / "attributes.npy") if (folder / "attributes.npy").exists() else None
        except (OSError, ValueError, EOFError):  # a file was cut short
            continue
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
            continue
        if not _is_array(labels, np.int64, (len(images),)):
            continue
        if attributes is not None and not _is_array(attributes, np.uint8, (len(images), *np.shape(attributes)[1:])):
            continue
        return Complete(entry, np.asarray(images), labels, attributes)
    return None


def _complete_entries(name: str) -> Iterator[Entry]:
    """Yield the entries with a marker, held: that of this machine first, then those of other machines and starts."""
    own, folder = f"{name}.{boot_id()}", cache_root() / "images"
    found = sorted({path.parent.name for path in folder.glob(f"{name}.*/{MARKER}")}, key=lambda other: other != own)
    # Earlier versions of this program gave every entry the plain name.
    for other in [*found, *([name] if (folder / name / MARKER).exists() else [])]:
        entry = Entry("images", other)
        if read_marker(entry.folder) is not None:  # it may have been removed before it was held
            yield entry


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
    path = folder / MARKER
    try:
        return parse(path.read_bytes(), _Marker, origin=str(path), cure="its images are decoded again").replaced
    except OSError:
        return None
    except DamagedError as error:
        logger.warning("%s", error)
        return None


def _write_at(descriptor: int, data: memoryview, position: int) -> None:
    """Write all bytes at a position; one call of `pwrite` may write fewer."""
    while data:
        done = os.pwrite(descriptor, data, position)
        data, position = data[done:], position + done
