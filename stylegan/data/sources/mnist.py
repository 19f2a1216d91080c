"""List and read MNIST and sets of the same form, such as Fashion-MNIST.

The images are in idx files, gzipped or not. Their labels are in other idx files beside them.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from stylegan import storage
from stylegan.data.cache import local_copy
from stylegan.data.sources.access.uris import file_token
from stylegan.data.sources.base import LARGEST, Files, Listing
from stylegan.data.sources.blocks import Block, list_blocks
from stylegan.errors import StepError, one_line

NAMES = re.compile(r"(?P<set>.*)[-_.]?images[-_.]idx3[-_.]ubyte(\.gz)?", re.IGNORECASE)


def list_images(files: Files) -> Listing:
    """List the grey images under paths such as `train/00000`.

    Images of 28x28 pixels get two black pixels on each side, as in StyleGAN's own tools, so that their size is a power
    of two.

    Raises:
        StepError: a file is damaged or is not MNIST's.
    """
    return list_blocks(_with_labels(files), _blocks, (), data_format="mnist")


def _with_labels(files: Files) -> Files:
    """Keep the files of images, and add the files of labels beside them.

    If a file of images is there both packed and unpacked, only the unpacked one is kept.
    """
    tokens: dict[str, str] = {}
    for path in sorted(files.tokens):
        if not NAMES.fullmatch(path) or path.removesuffix(".gz") in tokens:
            continue
        tokens[path] = files.tokens[path]
        for labels in _label_paths(path):
            if labels in files.tokens or storage.exists(files.uri(labels)):
                tokens[labels] = files.tokens.get(labels) or file_token(files.uri(labels))
                break
    return files._replace(tokens=tokens)


def _label_paths(path: str) -> list[str]:
    """Return the possible paths of the labels for a file of images: packed in the same way, then in the other way."""
    folder, slash, name = path.rpartition("/")
    name = re.sub("images", "labels", name, flags=re.IGNORECASE)
    name = re.sub("idx3", "idx1", name, flags=re.IGNORECASE)
    same = folder + slash + name
    return [same, same.removesuffix(".gz") if same.endswith(".gz") else f"{same}.gz"]


def _blocks(files: Files) -> Iterator[Block]:
    """Yield the images of each file with their labels, if there are any."""
    for path in files.tokens:
        match = NAMES.fullmatch(path)
        if match:
            pixels = _array(files, path, dimensions=3)
            label_path = next((known for known in _label_paths(path) if known in files.tokens), None)
            labels = None if label_path is None else _array(files, label_path, dimensions=1).tolist()
            if pixels.shape[1:] == (28, 28):
                pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
            yield Block(match["set"].rstrip("-_.") or "images", pixels, labels)


def _array(files: Files, path: str, *, dimensions: int) -> np.ndarray:
    """Return the array in an idx file of bytes.

    The file consists of two zeros, the type 8, the number of dimensions, the size of each dimension in 32 bits, and the
    values.

    Raises:
        OSError: the file cannot be read.
        StepError: it is damaged, or its header does not fit.
    """
    # Read and unpack.
    where = f"data.source={files.source}: {path}"
    try:
        with (
            local_copy(files.uri(path), files.tokens[path]) as local,
            (gzip.open if path.lower().endswith(".gz") else open)(local, "rb") as file,
        ):
            content = file.read(LARGEST + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StepError(f"{where} cannot be read: {one_line(error)}; get the file again") from error

    if len(content) > LARGEST:
        raise StepError(f"{where} has more than {LARGEST:,} bytes; give a part of the set")

    # Check the header.
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise StepError(
            f"{where} is not an idx file of bytes with {dimensions} dimension(s), as MNIST's are; get the file again"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise StepError(
            f"{where} contains {len(content) - start} values, but its header says {' x '.join(map(str, shape))}; get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
