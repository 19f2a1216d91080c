"""The order in which images are shown.

It is a pure function of numbers, so that a resumed run continues with exactly the next image.

An epoch shows every image once. The images of a large set come group by group, so that reads stay in one place: a
group, some GiB of raw pixels, fits into memory or on a local disk where the whole set does not. Groups are parts of the
canonical order, which is an order of hashes, so each group is a fair sample of the set. The order of the groups, and
the order inside each, are drawn anew for every epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

SMALLEST_GROUP = 16_384  # images
GROUP_BYTES = 4 * 2**30  # of raw RGB pixels


def group_size(resolution: int) -> int:
    """Return the smallest number of images in a group; a group may have nearly twice as many."""
    return max(SMALLEST_GROUP, GROUP_BYTES // (3 * resolution**2))


def sample_indices(
    num_images: int, *, seed: int, stage: int, start: int, count: int, group: int | None = None
) -> np.ndarray:
    """Return the images for the samples `start` ... `start + count - 1` of an endless order.

    Every epoch of `num_images` samples shows each image once. The result depends on the arguments alone, and the
    results of neighbouring calls form one order. The memory is that of two groups, not of the set.

    Args:
        num_images: N, at least 1.
        seed: the seed of the run.
        stage: the resolution, so that stages do not repeat each other's order.
        start: number of samples shown before in this stage, from 0.
        count: number of samples.
        group: smallest number of images in a group; `group_size(stage)` if unset. A set of less than two groups is
            shuffled as a whole.

    Returns:
        int64 [count] with values from 0 to N - 1.
    """
    size, parts = group or group_size(stage), []
    for epoch, number, offset, length in _pieces(num_images, seed, stage, start, count, size):
        parts.append(_shuffled(num_images, size, number, (seed, stage, epoch))[offset : offset + length])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def upcoming(
    num_images: int, *, seed: int, stage: int, start: int, count: int, group: int | None = None, least: float = 0.0
) -> Iterator[range]:
    """Yield the groups of images that the samples of `sample_indices` come from, in the order of their use.

    A group is yielded again for every epoch.

    Args:
        least: share of a group. A group of which fewer images are shown is left out, as not worth being read as a
            whole.
    """
    size = group or group_size(stage)
    for _, number, _, length in _pieces(num_images, seed, stage, start, count, size):
        images = range(_bounds(num_images, size, number), _bounds(num_images, size, number + 1))
        if length >= least * len(images):
            yield images


def _pieces(
    num_images: int, seed: int, stage: int, start: int, count: int, group: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the parts of groups in the order of their use: (epoch, group, offset in its permutation, length)."""
    position, end = start, start + count
    while position < end:
        epoch, shown = divmod(position, num_images)
        groups, ends = _group_order(num_images, group, (seed, stage, epoch))
        turn = bisect_right(ends, shown)
        offset = shown - (ends[turn - 1] if turn else 0)
        length = min(ends[turn] - shown, end - position)
        yield epoch, groups[turn], offset, length
        position += length


def _bounds(num_images: int, group: int, number: int) -> int:
    """Return the first image of a group; the sizes of groups differ by one image at most."""
    return number * num_images // max(num_images // group, 1)


@lru_cache(maxsize=2)
def _group_order(num_images: int, group: int, entropy: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the groups in the order of an epoch, and the number of images shown at the end of each."""
    num_groups = max(num_images // group, 1)
    groups = _generator(entropy).permutation(num_groups) if num_groups > 1 else np.zeros(1, np.int64)
    bounds = np.arange(num_groups + 1) * num_images // num_groups
    return groups.tolist(), np.cumsum(bounds[groups + 1] - bounds[groups]).tolist()


@lru_cache(maxsize=2)  # consecutive batches come from one group, or from two where a batch crosses its end
def _shuffled(num_images: int, group: int, number: int, entropy: tuple[int, ...]) -> np.ndarray:
    """Return the images of a group in the order of an epoch.

    If there is only one group, its order is drawn from the entropy that otherwise gives the order of the groups.
    """
    first, end = _bounds(num_images, group, number), _bounds(num_images, group, number + 1)
    return first + _generator(entropy if end - first == num_images else (*entropy, number + 1)).permutation(end - first)


def _generator(entropy: tuple[int, ...]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(entropy))))
