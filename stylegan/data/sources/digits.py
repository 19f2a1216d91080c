"""List and read the handwritten digits inside scikit-learn.

They are 1,797 scans of the Optical Recognition of Handwritten Digits set: 8x8 pixels, 17 grey levels, 10 classes.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from stylegan.data.sources.base import Listing, Read, SourceImage


def list_images() -> Listing:
    """List the digits under the paths `{digit}/{number}`. Labels are the digits, tokens are checksums of the pixels."""
    images = [SourceImage(path, int(path[0]), f"{zlib.crc32(pixels.data):08x}") for path, pixels in _scans().items()]
    return Listing(images, _open_digits, reader="digits", label_names=tuple("0123456789"))


@cache
def _scans() -> dict[str, np.ndarray]:
    """Return the pixels of all digits by path: uint8 [8, 8], the grey levels 0 to 16 spread over 0 to 255."""
    # The file of `sklearn.datasets.load_digits`: importing scikit-learn takes a second.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        scans = np.loadtxt(file, delimiter=",")  # [1797, 65]: 64 grey levels, and the digit
    pixels = (scans[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    return {f"{label}/{number:04d}": pixels[number] for number, label in enumerate(scans[:, -1].astype(int))}


@contextmanager
def _open_digits() -> Iterator[Read]:
    """Yield a function that returns the pixels of one digit."""
    yield _scans().__getitem__
