"""Load the images of shards as arrays, and make the batches of an order ahead of their use.

At low resolutions, parsing tars and decoding would cost far more than training. So decoded images are kept as raw
pixels in a local cache that is mapped into memory (pixel_file.py). The order is a pure function of numbers (order.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stylegan.config.sections import DataConfig
from stylegan.config.tree import Config
from stylegan.data.cache import Entry, explain_disk_errors
from stylegan.data.index import read_level
from stylegan.data.loading.lazy_images import Images
from stylegan.data.loading.pixel_file import PixelFile, read_complete
from stylegan.data.loading.tar_reader import Samples
from stylegan.data.shardset import ShardSet, level_name
from stylegan.errors import StepError

Batch = tuple[Tensor, Tensor]  # images, uint8 [N, C, r, r]; labels, int64 [N]
AT_ONCE = 64 * 2**20  # bytes of raw pixels: tables up to this size are decoded when they are opened
AHEAD = 4  # batches to make ahead while images are still being decoded
MOST_IN_USE = 8  # batches on a GPU whose steps the host has asked for and the GPU has not made


@dataclass(frozen=True)
class LoaderSettings:
    """The settings of loading; the defaults are those of the config.

    Attributes:
        max_corrupt: `data.max_corrupt`.
        cache_gb: `storage.cache_gb`; if None, the environment decides, see cache.py.
    """

    max_corrupt: int = DataConfig.model_fields["max_corrupt"].default
    cache_gb: float | None = None

    @classmethod
    def of(cls, config: Config) -> LoaderSettings:
        """Return the settings of a run: all of its steps load images alike."""
        return cls(config.data.max_corrupt, config.storage.cache_gb)


DEFAULT_LOADING = LoaderSettings()


@dataclass(frozen=True)
class ImageTable:
    """All images of one resolution, in canonical order.

    Attributes:
        images: uint8 [N, C, r, r]: an array mapped read-only from disk if all images are decoded, otherwise an object
            that decodes them when they are requested.
        labels: int64 [N], all -1 in a set without classes.
        attributes: uint8 [N, A] of 0 and 1; None in a set without attributes.
        num_corrupt: damaged samples, each replaced by another one, that were known when the table was opened.
        entry: the entry of the cache, which must not be removed while this table exists.
    """

    images: np.ndarray | Images
    labels: np.ndarray
    attributes: np.ndarray | None = None
    num_corrupt: int = 0
    entry: Entry | None = field(default=None, repr=False)

    @property
    def corrupt(self) -> int:
        """The number of damaged samples found until now, each replaced by another one."""
        return self.images.num_corrupt if isinstance(self.images, Images) else self.num_corrupt

    @property
    def ahead(self) -> int:
        """The number of batches to make ahead."""
        return AHEAD if isinstance(self.images, Images) and not self.images.file.complete else 1


def load_images(shards: ShardSet, resolution: int, *, settings: LoaderSettings | None = None) -> ImageTable:
    """Load all images of one resolution, in canonical order.

    Decoded images go into the cache ($STYLEGAN_CACHE, or the user's cache folder if that is unset), once per machine:
    later calls and other processes map the same file. A small table is decoded here, a larger one when its images are
    requested.

    Raises:
        StepError: no such resolution, the index or a tar is missing or damaged, or the cache folder cannot be written.
    """
    if resolution not in shards.resolutions:
        raise StepError(f"{shards.uri}: has no shards at resolution {resolution}; there are {list(shards.resolutions)}")
    settings = settings or LoaderSettings()
    name = f"{shards.fingerprint}-{level_name(resolution)}"
    return _load_complete(name, shards, resolution) or _open_table(name, shards, resolution, settings)


def _load_complete(name: str, shards: ShardSet, resolution: int) -> ImageTable | None:
    """Return the table if the cache has all of it in the right shape, without reading the shards; otherwise None."""
    with explain_disk_errors():
        cached = read_complete(name)
    if cached is None:
        return None
    shape = cached.images.shape
    if shape[0] != shards.num_images or shape[2:] != (resolution, resolution):
        return None
    return ImageTable(cached.images, cached.labels, cached.attributes, entry=cached.entry)


def _open_table(name: str, shards: ShardSet, resolution: int, settings: LoaderSettings) -> ImageTable:
    """Return a table that decodes its images from the shards; decode a small one now."""
    index = read_level(shards, resolution)
    with explain_disk_errors():
        file = PixelFile(name, (len(index.labels), *index.shape), cache_gb=settings.cache_gb)
        file.write_labels(index.labels, index.attributes)
    images = Images(file, Samples(shards.uri, index), shards_uri=shards.uri, max_corrupt=settings.max_corrupt)
    images.recheck()
    if file.kept == len(images) and file.images.nbytes <= AT_ONCE:
        images.fill()
    whole = file.images if file.complete else images
    return ImageTable(whole, index.labels, index.attributes, num_corrupt=images.num_corrupt, entry=file.entry)


def batches(table: ImageTable, order: Iterable[np.ndarray]) -> Iterator[Batch]:
    """Yield the images and labels of each array of indices."""
    for indices in order:
        yield torch.from_numpy(table.images.take(indices, axis=0)), torch.from_numpy(table.labels[indices])


@contextmanager
def prefetch(source: Iterator[Batch], device: torch.device, *, ahead: int = 1) -> Iterator[Iterator[Batch]]:
    """Yield an iterator over the same batches on a device, made ahead of their use.

    While one batch is in use, a thread makes the next ones. If they go to CUDA, it also copies them there, from
    page-locked memory and on a stream of its own: neither the host nor the GPU's other work waits for a copy. An error
    of `source` is raised when its batch is requested. The thread ends with the block.

        with prefetch(batches(table, order), device, ahead=table.ahead) as source:
            images, labels = next(source)

    Args:
        ahead: batches in memory besides the one in use, at most; for CUDA at least two, since the GPU works on a batch
            while the host already asks for the next one.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def make() -> tuple[Batch, torch.cuda.Event | None] | None:
        batch = next(source, None)
        if batch is None:
            return None
        if stream is None:
            return batch, None
        # A new thread uses device 0, and would create a CUDA context there.
        with torch.cuda.device(device), torch.cuda.stream(stream):
            images, labels = (part.pin_memory().to(device, non_blocking=True) for part in batch)
            return (images, labels), stream.record_event()

    def made_ahead() -> Iterator[Batch]:
        count, used = ahead if stream is None else max(ahead, 2), deque[torch.cuda.Event]()
        made: deque[Future[tuple[Batch, torch.cuda.Event | None] | None]] = deque(
            executor.submit(make) for _ in range(count)
        )
        while ready := made.popleft().result():
            made.append(executor.submit(make))
            batch, copied = ready
            if copied is not None:  # the GPU, not the host, waits for the copy
                user = torch.cuda.current_stream(device)
                user.wait_event(copied)
                for part in batch:
                    part.record_stream(user)  # its memory is not given to a later copy before the user is done
            yield batch
            # A host that runs far ahead of the GPU would fill its memory with batches.
            if copied is not None:
                used.append(torch.cuda.current_stream(device).record_event())
                if len(used) > MOST_IN_USE:
                    used.popleft().synchronize()

    with ThreadPoolExecutor(1, "prefetch") as executor:
        try:
            yield made_ahead()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
