"""List and read square cut-outs of the two photographs inside scikit-learn, a Chinese temple and a flower.

They are 333 cut-outs of three sizes, which overlap by half: enough colour and texture for a first style transfer. Plain
sky and blurred leaves are left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from stylegan.data.decode import decode
from stylegan.data.sources.base import Listing, Read, SourceImage

NAMES = ("china", "flower")
SIDES = (64, 128, 256)  # pixels
LEAST_CONTRAST = 20.0  # standard deviation of the grey levels of a cut-out, of 255


def list_images() -> Listing:
    """List the cut-outs as `{photo}/{side}-{top}-{left}`. Labels are the photos, tokens are checksums of the pixels."""
    images = [
        SourceImage(path, NAMES.index(path.partition("/")[0]), f"{zlib.crc32(pixels.tobytes()):08x}")
        for path, pixels in _cut_outs().items()
    ]
    return Listing(images, _open_photos, reader="photos", label_names=NAMES)


@cache
def _cut_outs() -> dict[str, np.ndarray]:
    """Return the pixels of all cut-outs by path: uint8 [side, side, 3], views of the photos of 427x640."""
    package = find_spec("sklearn")  # importing scikit-learn takes a second
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "datasets" / "images"
    found = {}
    for name in NAMES:
        photo = np.asarray(decode((folder / f"{name}.jpg").read_bytes(), 3))
        for side in SIDES:
            for top in range(0, photo.shape[0] - side + 1, side // 2):
                for left in range(0, photo.shape[1] - side + 1, side // 2):
                    pixels = photo[top : top + side, left : left + side]
                    if pixels.mean(2).std() > LEAST_CONTRAST:
                        found[f"{name}/{side}-{top}-{left}"] = pixels
    return found


@contextmanager
def _open_photos() -> Iterator[Read]:
    """Yield a function that returns the pixels of one cut-out."""
    yield _cut_outs().__getitem__
