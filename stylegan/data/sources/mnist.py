"""MNIST and what has its form, such as Fashion-MNIST: idx files of images, gzipped or not, with those of labels beside them."""

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
from stylegan.data.sources.base import Files, Listing
from stylegan.data.sources.blocks import Block, list_blocks
from stylegan.errors import StepError, one_line

NAMES = re.compile(r"(?P<set>.*)[-_.]?images[-_.]idx3[-_.]ubyte(\.gz)?", re.IGNORECASE)


def list_images(files: Files) -> Listing:
    """Images `train/00000` ..., grey; 28x28 pixels get two black ones on each side, as StyleGAN's own tools do, to be a power of two."""
    return list_blocks(_with_labels(files), _blocks, (), data_format="mnist")


def _with_labels(files: Files) -> Files:
    """The files of images, unpacked rather than packed if both are there, and those of labels beside them."""
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
    """Where the labels of a file of images may lie: packed as it is, or not."""
    folder, slash, name = path.rpartition("/")
    same = (
        folder
        + slash
        + re.sub("idx3", "idx1", re.sub("images", "labels", name, flags=re.IGNORECASE), flags=re.IGNORECASE)
    )
    return [same, same.removesuffix(".gz") if same.endswith(".gz") else f"{same}.gz"]


def _blocks(files: Files) -> Iterator[Block]:
    for path in files.tokens:
        match = NAMES.fullmatch(path)
        if match:
            pixels = _array(files, path, dimensions=3)
            labels = next(
                (_array(files, known, dimensions=1).tolist() for known in _label_paths(path) if known in files.tokens),
                None,
            )
            if pixels.shape[1:] == (28, 28):
                pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
            yield Block(match["set"].rstrip("-_.") or "images", pixels, labels)


def _array(files: Files, path: str, *, dimensions: int) -> np.ndarray:
    """An idx file of bytes: two zeros, the type 8, the number of dimensions, each as 32 bits, then the values."""
    where = f"data.source={files.source}: {path}"
    try:
        with local_copy(files.uri(path), files.tokens[path]) as local:
            content = (gzip.decompress if path.endswith(".gz") else bytes)(local.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise StepError(f"{where} cannot be read: {one_line(error)}; get the file again") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise StepError(
            f"{where} is no idx file of bytes with {dimensions} dimension(s), as MNIST's are; get the file again"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise StepError(
            f"{where} holds {len(content) - start} values, its head promises {' x '.join(map(str, shape))}; get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
