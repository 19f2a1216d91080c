"""Images that a format keeps as plain numbers: unpacked once per machine into one file of equal arrays, and read from there."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import IO, NamedTuple

import numpy as np

from stylegan.data.sources.access.unpacked import unpacked
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage
from stylegan.errors import StepError


class Block(NamedTuple):
    """Some images of a set: uint8 pixels [N, H, W] or [N, H, W, C], and a label for each, or none at all."""

    name: str
    pixels: np.ndarray
    labels: list[int] | None


Blocks = Callable[[Files], Iterable[Block]]


def list_blocks(files: Files, blocks: Blocks, label_names: tuple[str, ...], *, data_format: str) -> Listing:
    """The images of all blocks, which have one shape, as `{block}/{number}`; the token is a checksum of the pixels.

    Args:
        blocks: reads them; a function of a module, so that it can be pickled.
        data_format: names the local copy of the unpacked pixels, beside the files' own names; must never change.
    """
    images: list[SourceImage] = []
    starts: dict[str, int] = {}
    shape: tuple[int, ...] = ()
    for block in blocks(files):
        shape = _one_shape(files.source, shape, block)
        starts[block.name] = len(images)
        for number, picture in enumerate(block.pixels):
            label: Label = None if block.labels is None else block.labels[number]
            images.append(
                SourceImage(
                    f"{block.name}/{number:05d}", label, f"{zlib.crc32(np.ascontiguousarray(picture).data):08x}"
                )
            )
    pixels = _Pixels(data_format, files, blocks, starts, shape, len(images))
    return Listing(images, partial(_open, pixels), reader="pixels", label_names=label_names)


def _one_shape(source: str, shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    if block.labels is not None and len(block.labels) != len(block.pixels):
        raise StepError(
            f"data.source={source}: {block.name} has {len(block.pixels)} images and {len(block.labels)} labels; get it again"
        )
    if shape and shape != block.pixels.shape[1:]:
        raise StepError(
            f"data.source={source}: {block.name} has images of another shape than the rest; give one set of images"
        )
    return block.pixels.shape[1:]


class _Pixels(NamedTuple):
    """All images of a set of files: where their pixels come from, and where each block starts among them."""

    data_format: str
    files: Files
    blocks: Blocks
    starts: dict[str, int]
    shape: tuple[int, ...]
    num_images: int

    def write(self, out: IO[bytes]) -> None:
        """Write the pixels of all images, one after the other."""
        for block in self.blocks(self.files):
            out.write(np.ascontiguousarray(block.pixels).data)

    @property
    def local_name(self) -> str:
        """Name of the local copy. Starts with the name of a former module, so that copies made by version 0.1 stay in use."""
        return f"stylegan.data.sources.{self.data_format}\n{self.files.root}\n{sorted(self.files.tokens.items())}"


@contextmanager
def _open(pixels: _Pixels) -> Iterator[Read]:
    size = int(np.prod(pixels.shape))
    with (
        unpacked(pixels.local_name, pixels.num_images * size, pixels.write) as path,
        open(path, "rb") as file,
        closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content,
    ):

        def read(path: str) -> np.ndarray:
            block, _, number = path.rpartition("/")
            start = (pixels.starts[block] + int(number)) * size
            return np.frombuffer(content[start : start + size], np.uint8).reshape(pixels.shape)

        yield read
