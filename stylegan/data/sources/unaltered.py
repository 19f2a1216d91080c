"""Refuse images of a source that would be cropped, resized or converted on the way into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.decode import UnreadableImage, read_shape
from stylegan.data.sources.base import Opener, Read, Source
from stylegan.errors import StepError


def unaltered(source: Source, data: DataConfig) -> Source:
    """Return the same source with a reader that refuses images which sharding would crop, resize or convert.

    The reader raises StepError for an image that is not `data.resolution` pixels wide and high, or does not have
    `data.channels` channels. The signature differs from that of the source, so that the two never share shards.
    """
    wanted = (data.resolution, data.resolution, data.channels)
    digest = hashlib.sha256(f"unaltered {source.signature}".encode()).hexdigest()
    opener = partial(_open_checked, source.open, source.uri, wanted)
    return replace(source, signature=digest[:16], open=opener, reader="unaltered")


def measured(content: bytes | np.ndarray) -> tuple[int, int, int]:
    """Return width, height and number of channels of an image as its source contains it.

    Args:
        content: bytes of an encoded image, or pixels [H, W] or [H, W, C].

    Raises:
        UnreadableImage: the bytes are not an image of a known format.
    """
    if isinstance(content, bytes):
        return read_shape(content)
    height, width = content.shape[:2]
    return width, height, 1 if content.ndim == 2 else content.shape[2]


@contextmanager
def _open_checked(inner: Opener, uri: str, wanted: tuple[int, int, int]) -> Iterator[Read]:
    """Yield the read function of another opener, which checks the size of each image."""
    with inner() as read:
        yield lambda path: _require_shape(read(path), storage.join(uri, path), wanted)


def _require_shape(content: bytes | np.ndarray, path: str, wanted: tuple[int, int, int]) -> bytes | np.ndarray:
    """Return the content if it is an image of this width, height and number of channels, else raise StepError."""
    try:
        shape = measured(content)
    except UnreadableImage:
        return content  # decoding will reject it and give the reason
    if shape != wanted:
        actual, expected = ("{}x{} with {} channel(s)".format(*known) for known in (shape, wanted))
        raise StepError(
            f"{path}: is {actual}, expected {expected}; images are measured as they are: resize or convert them first"
        )
    return content
