"""The images of one resolution as if they were one array: decoded when they are asked for, once, into the raw-pixel cache."""

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

from stylegan.data.cache import disk_told
from stylegan.data.loading.pixel_file import GOOD, MISSING, REPLACED, PixelFile
from stylegan.data.loading.tar_reader import Samples, Span
from stylegan.errors import StepError

logger = logging.getLogger("stylegan")
LONGEST_SPAN = 4 * 2**20  # bytes read and decoded at a time by a thread
BLOCK_BYTES = 16 * 2**20  # raw pixels that a process claims, when several fill the same cache
WAITING_THREADS = 16  # that wait for a store


class Images:
    """uint8 [N, C, r, r]: give it a number, a slice or an array of integers. From any thread.

    A damaged sample is replaced by the next good one with the same label, in the order of the set and on from its start: on every
    machine the same. It is named in the log and counted.

    Raises (at any access):
        StepError: more than `max_corrupt` samples are damaged, a tar is missing, the store does not answer, or the cache's disk refuses.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, file: PixelFile, samples: Samples, *, shards_uri: str, max_corrupt: int) -> None:
        self.file, self.samples = file, samples
        self.shape = file.shape
        self.failure: Exception | None = None  # what a background thread met
        self.asked, self.news = np.empty(0, np.int64), threading.Event()  # the last request
        self._shards_uri, self._max_corrupt = shards_uri, max_corrupt
        self._corrupt: set[int] = set()
        self._stand_ins: dict[int, int] = {}  # of damaged images that are not kept
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
        """uint8 [n, C, r, r] of the images `indices` [n], new in memory."""
        if self.failure is not None:
            raise self.failure
        indices = np.asarray(indices, np.int64)
        here = self.file.flags.take(indices) != MISSING  # fails at a number that there is not
        self.asked = indices = np.where(indices < 0, indices + len(self), indices)
        self.news.set()
        if here.all():
            return self.file.images.take(indices, axis=0)
        found = np.empty((len(indices), *self.shape[1:]), np.uint8)
        found[here] = self.file.images.take(indices[here], axis=0)
        wanted, places = np.unique(
            [self._stand_ins.get(number, number) for number in indices[~here].tolist()], return_inverse=True
        )
        found[~here] = self.load(wanted, self._pool)[places]
        return found

    @property
    def num_corrupt(self) -> int:
        """How many damaged samples were found by all processes of this machine."""
        return len(self._corrupt | set(np.flatnonzero(self.file.flags == REPLACED).tolist()))

    def load(self, numbers: np.ndarray, pool: Executor) -> np.ndarray:
        """Read and decode images, ascending `numbers` [n], and keep those that the limit allows. [n, C, r, r]."""
        found = np.empty((len(numbers), *self.shape[1:]), np.uint8)

        def work(span: Span) -> np.ndarray:
            pixels, good = self.samples.load(span)
            order = np.argsort(span.numbers[good])  # old and new tars of a set that has grown hold neighbours
            self._keep(span.numbers[good][order], pixels[good][order], GOOD)
            found[np.searchsorted(numbers, span.numbers)] = pixels
            return span.numbers[~good]

        for damaged in pool.map(work, self.samples.spans(numbers, longest=LONGEST_SPAN)):
            for number in damaged.tolist():
                found[np.searchsorted(numbers, number)] = self._replace(number)
        with disk_told():
            self.file.finish()
        return found

    def fill(self) -> None:
        """Decode all that the limit allows; several processes share the work, and return when it is done."""
        blocks = self.blocks(range(self.file.kept))
        while blocks:
            blocks = [block for block in blocks if not self.fill_block(block, range(self.file.kept), self._pool)]
            if blocks:  # others work on these
                time.sleep(0.02)

    def fill_block(self, block: int, images: range, pool: Executor) -> bool:
        """Whether nothing is missing in a block any more; False if another process works on it."""
        size = max(BLOCK_BYTES // self.file.image_bytes, 1)
        start, stop = max(block * size, images.start), min((block + 1) * size, images.stop, self.file.kept)
        if self.file.flags[start:stop].all():
            return True
        with self.file.claim(block) as mine:
            if mine:
                self.load(start + np.flatnonzero(self.file.flags[start:stop] == MISSING), pool)
            return mine

    def blocks(self, images: range) -> list[int]:
        """The parts of the set that hold these images, for `fill_block`."""
        size = max(BLOCK_BYTES // self.file.image_bytes, 1)
        return list(range(images.start // size, -(-images.stop // size)))

    def recheck(self) -> None:
        """Look again at the samples that were damaged once: the tars may have been repaired."""
        for number in np.flatnonzero(self.file.flags == REPLACED).tolist():
            pixels, good = self.samples.load(next(self.samples.spans(np.array([number]), longest=1)))
            if good[0]:
                self._keep(np.array([number]), pixels, GOOD)
            else:
                self._count(number)
                logger.warning("%s is damaged; another image of its label is shown instead", self.samples.place(number))
        with disk_told():
            self.file.finish()

    def _keep(self, numbers: np.ndarray, pixels: np.ndarray, flag: int) -> None:
        with disk_told():
            self.file.write(numbers, np.ascontiguousarray(pixels), flag)

    def _replace(self, number: int) -> np.ndarray:
        """[C, r, r] of the image that is shown instead of a damaged one."""
        with self._lock:
            self._count(number)
            labels = self.samples.index.labels
            same = np.flatnonzero(labels == labels[number])
            for other in np.roll(same, -int(np.searchsorted(same, number, side="right"))).tolist():
                if other in self._corrupt or self.file.flags[other] == REPLACED:
                    continue
                pixels, good = self.samples.load(next(self.samples.spans(np.array([other]), longest=1)))
                if good[0]:
                    logger.warning(
                        "%s is damaged; image %d is shown instead of image %d",
                        self.samples.place(number),
                        other,
                        number,
                    )
                    self._keep(np.array([number]), pixels, REPLACED)
                    self._stand_ins[number] = other
                    return pixels[0]
                self._count(other)
            raise self._too_many(number)

    def _count(self, number: int) -> None:
        self._corrupt.add(number)
        if self.num_corrupt > self._max_corrupt:
            raise self._too_many(number)

    def _too_many(self, number: int) -> StepError:
        return StepError(
            f"{self.samples.place(number)} is damaged, the last of {self.num_corrupt} (data.max_corrupt={self._max_corrupt}); "
            f"`stylegan shard --verify {self._shards_uri}` names them all"
        )


@contextmanager
def filling(images: np.ndarray | Images, ranges: Iterable[range]) -> Iterator[None]:
    """While the block runs, a thread decodes ahead: the first of these ranges, and each other one when the one before it is in use."""
    if isinstance(images, np.ndarray) or images.file.complete:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(images, iter(ranges), stop), name="fill", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        images.news.set()
        thread.join(10)  # it may be waiting for a store


def _fill(images: Images, ranges: Iterator[range], stop: threading.Event) -> None:
    before: range | None = None
    threads = WAITING_THREADS // 2 if images.samples.remote else max(num_cpus() - 1, 1)
    try:
        with ThreadPoolExecutor(threads, "fill", initializer=_give_way) as pool:
            for current in ranges:
                while (
                    before
                    and not stop.is_set()
                    and not ((images.asked >= before.start) & (images.asked < before.stop)).any()
                ):
                    images.news.wait()
                    images.news.clear()
                for block in images.blocks(current):
                    if stop.is_set() or images.file.complete:
                        return
                    images.fill_block(block, current, pool)  # those of other processes are left to them
                before = current
    except Exception as error:
        images.failure = error  # raised at the next access


def _give_way() -> None:
    """Threads of training first: on Linux each has a priority of its own."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
