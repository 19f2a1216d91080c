"""The 1,797 scans of the Optical Recognition of Handwritten Digits set inside scikit-learn: 8x8 pixels, 17 grey levels, 10 classes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from stylegan.data.sources.base import Listing, Read, SourceImage


def list_images() -> Listing:
    """Paths are `{digit}/{number}`."""
    images = [SourceImage(path, int(path[0]), f"{zlib.crc32(pixels.data):08x}") for path, pixels in _scans().items()]
    return Listing(images, _open, reader="digits", label_names=tuple("0123456789"))


@cache
def _scans() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = (scans.images * (255 / 16)).round().astype(np.uint8)
    return {f"{label}/{number:04d}": pixels[number] for number, label in enumerate(scans.target)}


@contextmanager
def _open() -> Iterator[Read]:
    yield _scans().__getitem__
