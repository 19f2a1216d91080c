"""A source whose images may not be cropped, resized or converted on the way into shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.decode import UnreadableImage, measure
from stylegan.data.sources.base import Opener, Read, Source
from stylegan.errors import StepError


def unaltered(source: Source, data: DataConfig) -> Source:
    """The same images, of which none may be cropped, resized or converted on the way into shards.

    Reading raises StepError at an image that is not `data.resolution` pixels square or has not `data.channels` channels.
    """
    wanted = (data.resolution, data.resolution, data.channels)
    signature = hashlib.sha256(f"unaltered {source.signature}".encode()).hexdigest()[
        :16
    ]  # shards of resized images are others
    return replace(
        source, signature=signature, open=partial(_open, source.open, source.uri, wanted), reader="unaltered"
    )


def measured(content: bytes | np.ndarray) -> tuple[int, int, int]:
    """Width, height and channels of what a source hands out, as they are.

    Raises:
        UnreadableImage: bytes that are no image in a known format.
    """
    if isinstance(content, bytes):
        return measure(content)
    height, width = content.shape[:2]
    return width, height, 1 if content.ndim == 2 else content.shape[2]


@contextmanager
def _open(inner: Opener, uri: str, wanted: tuple[int, int, int]) -> Iterator[Read]:
    with inner() as read:
        yield lambda path: _require_shape(read(path), storage.join(uri, path), wanted)


def _require_shape(content: bytes | np.ndarray, path: str, wanted: tuple[int, int, int]) -> bytes | np.ndarray:
    try:
        found = measured(content)
    except UnreadableImage:
        return content  # is told where images are decoded
    if found != wanted:
        shown = ["{}x{} with {} channel(s)".format(*shape) for shape in (found, wanted)]
        raise StepError(
            f"{path}: is {shown[0]}, expected {shown[1]}; images are measured as they are: resize or convert them first"
        )
    return content
