"""The images of shards as arrays, and the batches of an order, made ahead of their use.

At low resolutions tar parsing and decoding would cost far more than training, so what is decoded is kept as raw pixels in a local
cache (pixels.py) that is mapped into memory. The order is a pure function of numbers (order.py).
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
from stylegan.data.cache import Entry, disk_told
from stylegan.data.index import read_level
from stylegan.data.loading.lazy_images import Images
from stylegan.data.loading.order import sample_indices as sample_indices
from stylegan.data.loading.pixel_file import PixelFile, read_complete
from stylegan.data.loading.tar_reader import Samples
from stylegan.data.shardset import ShardSet, level_name
from stylegan.errors import StepError

Batch = tuple[Tensor, Tensor]  # images, uint8 [N, C, r, r]; labels, int64 [N]
AT_ONCE = 64 * 2**20  # bytes of raw pixels: tables up to this are decoded when they are opened
AHEAD = 4  # batches, while images are still decoded


@dataclass(frozen=True)
class LoaderSettings:
    """What the config says about loading; the defaults are those of the config.

    Attributes:
        max_corrupt: `data.max_corrupt`.
        cache_gb: `storage.cache_gb`; None: what the environment says, see cache.py.
    """

    max_corrupt: int = DataConfig.model_fields["max_corrupt"].default
    cache_gb: float | None = None


@dataclass(frozen=True)
class ImageTable:
    """All images of one resolution, in canonical order.

    Attributes:
        images: uint8 [N, C, r, r]; an array mapped read-only from disk if all are decoded, else decoded when asked for.
        labels: int64 [N], all -1 in a set without classes.
        attributes: uint8 [N, A] of 0 and 1; None in a set without attributes.
        num_corrupt: damaged samples that others stand in for, as far as they were found when the table was opened.
    """

    images: np.ndarray | Images
    labels: np.ndarray
    attributes: np.ndarray | None = None
    num_corrupt: int = 0
    held: Entry | None = field(default=None, repr=False)  # the cache must not drop it as long as this lives

    @property
    def corrupt(self) -> int:
        """Damaged samples that others stand in for, found until now."""
        return self.images.num_corrupt if isinstance(self.images, Images) else self.num_corrupt

    @property
    def ahead(self) -> int:
        """How many batches are worth making ahead."""
        return AHEAD if isinstance(self.images, Images) and not self.images.file.complete else 1


def load_images(shards: ShardSet, resolution: int, *, settings: LoaderSettings | None = None) -> ImageTable:
    """All images of one resolution, in canonical order.

    What is decoded goes into the cache ($STYLEGAN_CACHE, the user's cache folder if unset), once per machine: later calls, and other
    processes, map the same file. A small table is decoded here, a larger one when its images are asked for.

    Raises:
        StepError: no such resolution, the index or a tar is missing or damaged, or the cache folder cannot be written.
    """
    if resolution not in shards.resolutions:
        raise StepError(f"{shards.uri}: has no shards at resolution {resolution}; there are {list(shards.resolutions)}")
    settings = settings or LoaderSettings()
    name = f"{shards.fingerprint}-{level_name(resolution)}"
    return _finished(name, shards, resolution) or _open(name, shards, resolution, settings)


def _finished(name: str, shards: ShardSet, resolution: int) -> ImageTable | None:
    """The table if all of it is in the cache and as it should be: then the shards are not needed."""
    with disk_told():
        found = read_complete(name)
    if (
        found is None
        or found.images.shape[0] != shards.num_images
        or found.images.shape[2:] != (resolution, resolution)
    ):
        return None
    return ImageTable(found.images, found.labels, found.attributes, held=found.entry)


def _open(name: str, shards: ShardSet, resolution: int, settings: LoaderSettings) -> ImageTable:
    index = read_level(shards, resolution)
    with disk_told():
        file = PixelFile(name, (len(index.labels), *index.shape), cache_gb=settings.cache_gb)
        file.write_labels(index.labels, index.attributes)
    images = Images(file, Samples(shards.uri, index), shards_uri=shards.uri, max_corrupt=settings.max_corrupt)
    images.recheck()
    if file.kept == len(images) and file.images.nbytes <= AT_ONCE:
        images.fill()
    whole = file.images if file.complete else images
    return ImageTable(whole, index.labels, index.attributes, num_corrupt=images.num_corrupt, held=file.entry)


def batches(table: ImageTable, order: Iterable[np.ndarray]) -> Iterator[Batch]:
    """The images and labels of each array of indices."""
    for indices in order:
        yield torch.from_numpy(table.images.take(indices, axis=0)), torch.from_numpy(table.labels[indices])


@contextmanager
def prefetch(source: Iterator[Batch], device: torch.device, *, ahead: int = 1) -> Iterator[Iterator[Batch]]:
    """The same batches on a device; while one is used, a thread makes the next ones, in page-locked memory if they go to CUDA.

    What `source` raises is raised where its batch is asked for. The thread ends with the block.

        with prefetch(batches(table, order), device, ahead=table.ahead) as source:
            images, labels = next(source)

    Args:
        ahead: batches in memory besides the one in use, at most.
    """

    def make() -> Batch | None:
        batch = next(source, None)
        if batch is None or device.type != "cuda":
            return batch
        with torch.cuda.device(device):  # a thread begins on device 0, and would wake it up
            return batch[0].pin_memory(), batch[1].pin_memory()

    def in_turn() -> Iterator[Batch]:
        made: deque[Future[Batch | None]] = deque(executor.submit(make) for _ in range(ahead))
        while batch := made.popleft().result():
            made.append(executor.submit(make))
            yield batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)

    with ThreadPoolExecutor(1, "prefetch") as executor:
        try:
            yield in_turn()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
