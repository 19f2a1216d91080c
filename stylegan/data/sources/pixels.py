"""Images that a format keeps as plain numbers: unpacked once per machine into one file of equal arrays, and read from there."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import IO, NamedTuple

import numpy as np

from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage
from stylegan.data.sources.unpacked import unpacked
from stylegan.errors import StepError


class Block(NamedTuple):
    """Some images of a set: uint8 pixels [N, H, W] or [N, H, W, C], and a label for each, or none at all."""

    name: str
    pixels: np.ndarray
    labels: list[int] | None


Blocks = Callable[[Files], Iterable[Block]]


def list_blocks(files: Files, blocks: Blocks, label_names: tuple[str, ...]) -> Listing:
    """The images of all blocks, which have one shape, as `{block}/{number}`; the token is a checksum of the pixels.

    Args:
        blocks: reads them; a function of a module, so that it can be pickled.
    """
    images: list[SourceImage] = []
    starts: dict[str, int] = {}
    shape: tuple[int, ...] = ()
    for block in blocks(files):
        shape = _one_shape(files.source, shape, block)
        starts[block.name] = len(images)
        for number, picture in enumerate(block.pixels):
            label: Label = None if block.labels is None else block.labels[number]
            images.append(SourceImage(f"{block.name}/{number:05d}", label, f"{zlib.crc32(np.ascontiguousarray(picture).data):08x}"))
    return Listing(images, partial(_open, files, blocks, starts, shape, len(images)), label_names=label_names)


def _one_shape(source: str, shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    if block.labels is not None and len(block.labels) != len(block.pixels):
        raise StepError(f"data.source={source}: {block.name} has {len(block.pixels)} images and {len(block.labels)} labels; get it again")
    if shape and shape != block.pixels.shape[1:]:
        raise StepError(f"data.source={source}: {block.name} has images of another shape than the rest; give one set of images")
    return block.pixels.shape[1:]


@contextmanager
def _open(files: Files, blocks: Blocks, starts: dict[str, int], shape: tuple[int, ...], num_images: int) -> Iterator[Read]:
    def make(out: IO[bytes]) -> None:
        for block in blocks(files):
            out.write(np.ascontiguousarray(block.pixels).data)

    size = int(np.prod(shape))
    name = f"{blocks.__module__}\n{files.root}\n{sorted(files.tokens.items())}"
    with (
        unpacked(name, num_images * size, make) as path,
        open(path, "rb") as file,
        closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content,
    ):

        def read(path: str) -> np.ndarray:
            block, _, number = path.rpartition("/")
            start = (starts[block] + int(number)) * size
            return np.frombuffer(content[start : start + size], np.uint8).reshape(shape)

        yield read
