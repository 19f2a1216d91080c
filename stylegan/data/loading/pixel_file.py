"""Raw pixels that were decoded once, in a local file that all processes of a machine fill and read together.

{cache}/images/{name}/
    images.npy          uint8 [N, C, r, r], sparse: only what was decoded takes space
    flags-{boot}        a byte an image: MISSING, GOOD or REPLACED; believed only until the machine starts again
    labels.npy, attributes.npy
    complete.json       written once all images are on the disk for good

Pixels are written before their flag, so whoever sees the flag sees the pixels. All writes are plain ones: on a full disk a
writable map would end the process with SIGBUS instead of an error.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stylegan.data.cache import Entry, alone, reserve
from stylegan.storage import write_local

MISSING, GOOD, REPLACED = 0, 1, 2


class PixelFile:
    """The raw pixels of one resolution of a set; held as long as this object lives.

    Attributes:
        images: uint8 [N, C, r, r], mapped read-only; zeros where nothing is kept.
        flags: uint8 [N], whether each image is in `images`, and whether it is another that stands in for a damaged one.
        kept: how many images, from the first, the limit of the cache allows this process to add.

    The first ones are kept and the others decoded every time: images come in cycles, and when a cycle is larger than the cache,
    removing the least recently used one would remove each just before it is needed. No rule does better than keeping some for good.

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
        """Make what is not there; a file of another length is not believed, nor flags from before a restart."""
        size = len(self._header()) + self.shape[0] * self.image_bytes
        if not self._file.exists() or self._file.stat().st_size != size:
            for old in self.folder.glob("[!.]*"):
                if old.name != "making":
                    old.unlink()
            with open(self._file, "wb") as file:
                file.write(self._header())
                file.truncate(size)
        marker = read_marker(self.folder)
        if not self._flag_file.exists() or self._flag_file.stat().st_size != self.shape[0]:
            for old in self.folder.glob("flags-*"):
                old.unlink()
            flags = np.full(self.shape[0], MISSING if marker is None else GOOD, np.uint8)
            flags[marker or []] = REPLACED
            write_local(self._flag_file, flags.tobytes())

    def _header(self) -> bytes:
        header = BytesIO()
        np.lib.format.write_array_header_2_0(header, {"descr": "|u1", "fortran_order": False, "shape": self.shape})
        return header.getvalue()

    def _reserve(self, cache_gb: float | None) -> int:
        extra = 18 * self.shape[0] + 2**16  # flags, labels and other small files
        granted = reserve(self.folder, self.shape[0] * self.image_bytes + extra, cache_gb=cache_gb)
        return min(max(granted - extra, 0) // self.image_bytes, self.shape[0])

    def write(self, numbers: np.ndarray, pixels: np.ndarray, flag: int = GOOD) -> None:
        """Keep images: ascending `numbers` [n] and their pixels [n, C, r, r], C-contiguous; those beyond `kept` are left out."""
        edges = np.flatnonzero(np.diff(numbers, prepend=-2, append=-2) != 1)
        data = pixels.reshape(-1).data
        with open(self._file, "r+b", buffering=0) as file, open(self._flag_file, "r+b", buffering=0) as flags:
            for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):  # runs of neighbours
                first, last = int(numbers[start]), min(int(numbers[stop - 1]) + 1, self.kept)
                if last > first:
                    run = data[start * self.image_bytes : (start + last - first) * self.image_bytes]
                    _write_at(file.fileno(), run, len(self._header()) + first * self.image_bytes)
                    _write_at(flags.fileno(), memoryview(bytes([flag]) * (last - first)), first)

    def finish(self) -> None:
        """Mark the file as complete if every image is in it, for other starts of the machine too. Raises OSError."""
        if self.kept < self.shape[0] or not self.flags.all():
            return
        with open(self._file, "rb") as file:
            os.fsync(file.fileno())
        replaced = np.flatnonzero(self.flags == REPLACED).tolist()
        write_local(self.folder / "complete.json", json.dumps({"replaced": replaced}).encode())
        self.complete = True

    def write_labels(self, labels: np.ndarray, attributes: np.ndarray | None) -> None:
        """Keep them beside the images, so that a complete file needs no shards."""
        arrays = {"labels.npy": labels} | ({} if attributes is None else {"attributes.npy": attributes})
        for name, array in arrays.items():
            if not (self.folder / name).exists():
                content = BytesIO()
                np.save(content, array)
                write_local(self.folder / name, content.getvalue())

    @contextmanager
    def claim(self, block: int) -> Iterator[bool]:
        """Whether no other process works on this block; then none does while the `with` block runs. Never waits."""
        with open(self.folder / "claims", "ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block)
            except OSError:
                yield False
                return
            yield True


class Complete(NamedTuple):
    """A file with all images; the arrays are those of `ImageTable`."""

    entry: Entry
    images: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray | None


def read_complete(name: str) -> Complete | None:
    """A complete file without replaced images, or None. Raises OSError."""
    entry = Entry("images", name)
    if read_marker(entry.folder) != []:
        return None
    try:
        images, labels = np.load(entry.folder / "images.npy", mmap_mode="r"), np.load(entry.folder / "labels.npy")
        attributes = np.load(entry.folder / "attributes.npy") if (entry.folder / "attributes.npy").exists() else None
    except (OSError, ValueError, EOFError):  # cut short
        return None
    return Complete(entry, np.asarray(images), labels, attributes)


def read_marker(folder: Path) -> list[int] | None:
    """The replaced images of a complete file; None if it is not complete."""
    try:
        return list(json.loads((folder / "complete.json").read_text())["replaced"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=1)
def boot_id() -> str:
    """The same until the machine starts again; where that is not told, the same for this process only."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex


def _write_at(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, position)
        data, position = data[done:], position + done
