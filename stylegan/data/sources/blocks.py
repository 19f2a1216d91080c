"""List and read images that a format stores as plain numbers, such as CIFAR's and MNIST's.

The pixels of all images are unpacked once per machine into one local file of arrays of equal size, and are read from
there.
"""

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
    """Some images of a set.

    Attributes:
        name: first part of the paths of its images.
        pixels: uint8 [N, H, W] or [N, H, W, C].
        labels: a class number for each image, or None if the images have no labels.
    """

    name: str
    pixels: np.ndarray
    labels: list[int] | None


Blocks = Callable[[Files], Iterable[Block]]


def list_blocks(files: Files, blocks: Blocks, label_names: tuple[str, ...], *, data_format: str) -> Listing:
    """List the images of all blocks under the paths `{block}/{number}`. The token is a checksum of the pixels.

    Args:
        blocks: reads the blocks. It must be a module-level function, so that it can be pickled.
        data_format: part of the name of the local copy of the unpacked pixels, beside the names of the files. It must
            never change.

    Raises:
        StepError: the images do not all have one shape, or a block has more or fewer labels than images.
    """
    images: list[SourceImage] = []
    starts: dict[str, int] = {}
    shape: tuple[int, ...] = ()
    for block in blocks(files):
        shape = _check_block(files.source, shape, block)
        starts[block.name] = len(images)
        for number, picture in enumerate(block.pixels):
            label: Label = None if block.labels is None else block.labels[number]
            checksum = zlib.crc32(np.ascontiguousarray(picture).data)
            images.append(SourceImage(f"{block.name}/{number:05d}", label, f"{checksum:08x}"))
    pixels = _Pixels(data_format, files, blocks, starts, shape, len(images))
    return Listing(images, partial(_open_pixels, pixels), reader="pixels", label_names=label_names)


def _check_block(source: str, shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """Return the shape of one image of the block.

    Args:
        shape: that of the images in earlier blocks, or an empty tuple.

    Raises:
        StepError: the shape is not that of earlier blocks, or the block has more or fewer labels than images.
    """
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
    """The pixels of all images in a set of files.

    Attributes:
        data_format: as for `list_blocks`.
        files: the files that contain the images.
        blocks: reads the files.
        starts: name of each block -> number of images before it.
        shape: shape of one image.
        num_images: number of all images.
    """

    data_format: str
    files: Files
    blocks: Blocks
    starts: dict[str, int]
    shape: tuple[int, ...]
    num_images: int

    def write(self, out: IO[bytes]) -> None:
        """Write the pixels of all images, one image after another."""
        for block in self.blocks(self.files):
            out.write(np.ascontiguousarray(block.pixels).data)

    @property
    def local_name(self) -> str:
        """The name of the local copy. It begins with a former module name, so that copies of version 0.1 stay valid."""
        return f"stylegan.data.sources.{self.data_format}\n{self.files.root}\n{sorted(self.files.tokens.items())}"


@contextmanager
def _open_pixels(pixels: _Pixels) -> Iterator[Read]:
    """Yield a function that reads one image from the local copy, which is mapped into memory."""
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
