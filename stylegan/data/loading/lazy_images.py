"""The images of one resolution as one array: each is decoded once, when it is requested, into the raw-pixel cache."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from stylegan.commands import shell_command
from stylegan.data.cache import explain_disk_errors
from stylegan.data.loading.pixel_file import GOOD, MISSING, REPLACED, PixelFile
from stylegan.data.loading.tar_reader import Samples, Span
from stylegan.errors import StepError

logger = logging.getLogger("stylegan")
LONGEST_SPAN = 4 * 2**20  # bytes that a thread reads and decodes at a time, at most
BLOCK_BYTES = 16 * 2**20  # raw pixels that a process claims at a time, when several fill the same cache
WAITING_THREADS = 16  # threads for a remote store, which mostly wait


class Images:
    """The images of a level, used like an array uint8 [N, C, r, r]: index it with a number, a slice or integers.

    Any thread may use it. A damaged sample is replaced by the next good one with the same label, in the order of the
    set and round its end: the same one on every machine. It is named in the log and counted.

    Raises (at any access):
        StepError: more than `max_corrupt` samples are damaged, a tar is missing, the store does not answer, or the disk
            of the cache refuses.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, file: PixelFile, samples: Samples, *, shards_uri: str, max_corrupt: int) -> None:
        self.file, self.samples = file, samples
        self.shape = file.shape
        self.failure: Exception | None = None  # of a background thread; raised at the next access
        self.last_request, self.requested = np.empty(0, np.int64), threading.Event()
        self._shards_uri, self._max_corrupt = shards_uri, max_corrupt
        self._corrupt: set[int] = set()
        self._stand_ins: dict[int, int] = {}  # damaged image -> the image shown instead
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(WAITING_THREADS if samples.remote else num_cpus(), "decode")

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8, copy=False)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self))))
        indices = np.asarray(key)
        if indices.dtype == bool:
            return self.take(np.flatnonzero(indices))
        return self.take(indices) if indices.ndim else self.take(indices[None])[0]

    def take(self, indices: np.ndarray, axis: int = 0) -> np.ndarray:
        """Return the images `indices` [n] as uint8 [n, C, r, r] in new memory."""
        if self.failure is not None:
            raise self.failure
        indices = np.asarray(indices, np.int64)
        kept = self.file.flags.take(indices) != MISSING  # raises IndexError for a number outside the set

        # Let the background thread know which images are in use.
        self.last_request = indices = np.where(indices < 0, indices + len(self), indices)
        self.requested.set()

        # Take what is in the pixel file, and decode the rest.
        if kept.all():
            return self.file.images.take(indices, axis=0)
        pixels = np.empty((len(indices), *self.shape[1:]), np.uint8)
        pixels[kept] = self.file.images.take(indices[kept], axis=0)
        wanted, positions = np.unique(
            [self._stand_ins.get(number, number) for number in indices[~kept].tolist()], return_inverse=True
        )
        pixels[~kept] = self.load(wanted, self._pool)[positions]
        return pixels

    @property
    def num_corrupt(self) -> int:
        """The number of damaged samples that all processes of this machine have found until now."""
        return len(self._corrupt | set(np.flatnonzero(self.file.flags == REPLACED).tolist()))

    def load(self, numbers: np.ndarray, pool: Executor) -> np.ndarray:
        """Read and decode images, and store them in the pixel file as far as the limit of the cache allows.

        Args:
            numbers: int64 [n], ascending.

        Returns:
            uint8 [n, C, r, r].
        """
        images = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def load_span(span: Span) -> np.ndarray:
            pixels, good = self.samples.load(span)
            order = np.argsort(span.numbers[good])  # in a set that has grown, neighbours may be in different tars
            self._keep(span.numbers[good][order], pixels[good][order], GOOD)
            images[np.searchsorted(numbers, span.numbers)] = pixels
            return span.numbers[~good]

        for damaged in pool.map(load_span, self.samples.spans(numbers, longest=LONGEST_SPAN)):
            for number in damaged.tolist():
                images[np.searchsorted(numbers, number)] = self._replace(number)
        with explain_disk_errors():
            self.file.finish()
        return images

    def fill(self) -> None:
        """Decode all images that the limit allows. Several processes share the work; all return when it is complete."""
        blocks = self.blocks(range(self.file.kept))
        while blocks:
            blocks = [block for block in blocks if not self.fill_block(block, range(self.file.kept), self._pool)]
            if blocks:  # other processes work on these
                time.sleep(0.02)

    def fill_block(self, block: int, images: range, pool: Executor) -> bool:
        """Decode the missing images of a block that are within `images`.

        Returns:
            True if none of them is missing any more; False if another process works on the block.
        """
        size = max(BLOCK_BYTES // self.file.image_bytes, 1)
        start, stop = max(block * size, images.start), min((block + 1) * size, images.stop, self.file.kept)
        if self.file.flags[start:stop].all():
            return True
        with self.file.claim(block) as mine:
            if mine:
                self.load(start + np.flatnonzero(self.file.flags[start:stop] == MISSING), pool)
            return mine

    def blocks(self, images: range) -> list[int]:
        """Return the numbers of the blocks that contain these images, for `fill_block`."""
        size = max(BLOCK_BYTES // self.file.image_bytes, 1)
        return list(range(images.start // size, -(-images.stop // size)))

    def recheck(self) -> None:
        """Read the samples again that were damaged in an earlier run: the tars may have been repaired since."""
        for number in np.flatnonzero(self.file.flags == REPLACED).tolist():
            pixels, good = self.samples.load(next(self.samples.spans(np.array([number]), longest=1)))
            if good[0]:
                self._keep(np.array([number]), pixels, GOOD)
            else:
                self._count(number)
                logger.warning(
                    "%s is damaged; another image of its label is shown instead", self.samples.describe(number)
                )
        with explain_disk_errors():
            self.file.finish()

    def _keep(self, numbers: np.ndarray, pixels: np.ndarray, flag: int) -> None:
        with explain_disk_errors():
            self.file.write(numbers, np.ascontiguousarray(pixels), flag)

    def _replace(self, number: int) -> np.ndarray:
        """Return the pixels [C, r, r] of the image that is shown instead of a damaged one."""
        with self._lock:
            self._count(number)

            # Try the images of the same label, from the next one on and round the end of the set.
            labels = self.samples.index.labels
            same = np.flatnonzero(labels == labels[number])
            for other in np.roll(same, -int(np.searchsorted(same, number, side="right"))).tolist():
                if other in self._corrupt or self.file.flags[other] == REPLACED:
                    continue
                pixels, good = self.samples.load(next(self.samples.spans(np.array([other]), longest=1)))
                if good[0]:
                    logger.warning(
                        "%s is damaged; image %d is shown instead of image %d",
                        self.samples.describe(number),
                        other,
                        number,
                    )
                    self._keep(np.array([number]), pixels, REPLACED)
                    self._stand_ins[number] = other
                    return pixels[0]
                self._count(other)
            raise self._too_many(number)

    def _count(self, number: int) -> None:
        """Count a damaged sample. Raise StepError if there are more than `max_corrupt`."""
        self._corrupt.add(number)
        if self.num_corrupt > self._max_corrupt:
            raise self._too_many(number)

    def _too_many(self, number: int) -> StepError:
        return StepError(
            f"{self.samples.describe(number)} is damaged, the last of {self.num_corrupt} (data.max_corrupt={self._max_corrupt}); "
            f"`{shell_command('stylegan', 'shard', '--verify', self._shards_uri)}` names them all"
        )


@contextmanager
def filling(images: np.ndarray | Images, ranges: Iterable[range]) -> Iterator[None]:
    """Decode images ahead of their use, in a thread that runs during the block.

    The thread decodes the first range at once, and each further range when the one before it comes into use.
    """
    if isinstance(images, np.ndarray) or images.file.complete:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_fill_ranges, args=(images, iter(ranges), stop), name="fill", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        images.requested.set()
        thread.join(10)  # seconds; the thread may be waiting for a store


def _fill_ranges(images: Images, ranges: Iterator[range], stop: threading.Event) -> None:
    """Do the work of the thread of `filling`."""

    def in_use(part: range) -> bool:
        return bool(((images.last_request >= part.start) & (images.last_request < part.stop)).any())

    before: range | None = None
    threads = WAITING_THREADS // 2 if images.samples.remote else max(num_cpus() - 1, 1)
    try:
        with ThreadPoolExecutor(threads, "fill", initializer=_lower_priority) as pool:
            for current in ranges:
                # Wait until the range before this one is in use.
                while before and not stop.is_set() and not in_use(before):
                    images.requested.wait()
                    images.requested.clear()

                # Decode the range. Blocks that other processes work on are left to them.
                for block in images.blocks(current):
                    if stop.is_set() or images.file.complete:
                        return
                    images.fill_block(block, current, pool)
                before = current
    except Exception as error:
        images.failure = error  # raised at the next access


def _lower_priority() -> None:
    """Let the threads of training go first: on Linux every thread has its own priority."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
