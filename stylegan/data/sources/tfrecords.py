"""List and read the TFRecords of StyleGAN v1, without TensorFlow. Of the files, one for each resolution, the highest is read.

A record consists of its length (8 bytes), a checksum of the length (4 bytes), a `tf.train.Example`, and a checksum of
the example (4 bytes). The example contains `shape` (channels, height, width) and `data` (uint8). Labels are in a file
beside the records, `*-rxx.labels`, a NumPy array [N, L].
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

import google_crc32c
import numpy as np

from stylegan import storage
from stylegan.data.cache import local_copy
from stylegan.data.sources.access.ranges import whole
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage, read_whole, require_size
from stylegan.errors import StepError, one_line

NAMES = re.compile(r".*\.tfrecords?", re.IGNORECASE)
_LEVEL = re.compile(r"(?P<set>.*)-r(?P<level>\d\d)\.tfrecords", re.IGNORECASE)
_HEAD, _FOOT = 12, 4  # bytes before and after the example of a record


def list_images(files: Files) -> Listing:
    """List the images of the highest resolution as `0000000`, `0000001`, ... in the order of their file.

    The token of an image is the checksum of its record.

    Raises:
        StepError: there are several sets, a file is damaged, or the labels do not fit the images.
    """
    path = _highest(files)
    offsets, tokens = [], []
    with local_copy(files.uri(path), files.tokens[path]) as local, open(local, "rb") as file:
        for offset, checksum in _scan_records(files.source, path, file):
            offsets.append(offset)
            tokens.append(f"{checksum:08x}")
    labels = _read_labels(files, path, len(tokens))
    images = [
        SourceImage(f"{number:07d}", label, token)
        for number, (label, token) in enumerate(zip(labels, tokens, strict=True))
    ]
    opener = partial(_open_records, files.uri(path), files.tokens[path], np.array(offsets, np.int64))
    return Listing(images, opener, reader="tfrecords")


def _highest(files: Files) -> str:
    """Return the path of the highest resolution. Raise StepError if several sets have a file of that resolution."""
    records = [path for path in files.tokens if NAMES.fullmatch(path)]
    levels = {path: int(match["level"]) for path in records if (match := _LEVEL.fullmatch(path))}
    chosen = [path for path in records if levels.get(path, -1) == max(levels.values(), default=-1)]
    if len(chosen) > 1:
        raise StepError(
            f"data.source={files.source}: holds several sets of TFRecords, such as {chosen[0]} and {chosen[1]}; give one of them"
        )
    return chosen[0]


def _scan_records(source: str, name: str, file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the offset of every record and the checksum of its example, without reading the examples.

    Raises:
        StepError: the file is no TFRecord, is damaged, or is cut short.
    """
    position, end = 0, os.fstat(file.fileno()).st_size
    while position < end:
        head = file.read(_HEAD)
        length = int.from_bytes(head[:8], "little")
        if len(head) < _HEAD or _masked_crc32c(head[:8]) != int.from_bytes(head[8:], "little"):
            raise StepError(
                f"data.source={source}: {name} has no record at byte {position} (wrong checksum); it is no TFRecord or damaged"
            )
        if position + _HEAD + length + _FOOT > end:
            raise StepError(
                f"data.source={source}: {name} is cut short within the record at byte {position}; copy it again"
            )
        file.seek(position + _HEAD + length)
        yield position, int.from_bytes(file.read(_FOOT), "little")
        position += _HEAD + length + _FOOT


def _masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C rotated by 15 bits, plus a constant, as TensorFlow's record format stores it.

    The mask avoids the CRC of a text that itself contains a CRC.
    """
    value = google_crc32c.value(data)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@contextmanager
def _open_records(uri: str, token: str, offsets: np.ndarray) -> Iterator[Read]:
    """Yield a function from the path of an image to its pixels.

    Args:
        offsets: int64 [N], first byte of each record.
    """
    with local_copy(uri, token) as path, open(path, "rb") as file:
        yield lambda name: _read_image(file.fileno(), int(offsets[int(name)]))


def _read_image(descriptor: int, offset: int) -> np.ndarray:
    """Return uint8 pixels [H, W] or [H, W, 3].

    Raises:
        UnreadableImage: the record is larger than any picture.
        ValueError: it is damaged.
        EOFError: the file ends within it.
    """
    # Read the record and compare its checksum.
    length = int.from_bytes(whole(os.pread(descriptor, 8, offset), 8), "little")
    require_size(length)
    record = whole(os.pread(descriptor, length + _FOOT, offset + _HEAD), length + _FOOT)
    content, checksum = record[:length], int.from_bytes(record[length:], "little")
    if _masked_crc32c(content) != checksum:
        raise ValueError(f"the record at byte {offset} has a wrong checksum")

    # Parse the example.
    features = _features(content)
    shape, data = _shape(features["shape"]), next(_fields(_bytes(features["data"], 1)))[1]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"the record at byte {offset} has the shape {shape}; must be 1 or 3 channels, height, width")
    pixels = np.frombuffer(data, np.uint8).reshape(shape)
    return pixels[0] if shape[0] == 1 else pixels.transpose(1, 2, 0)


# --- protocol buffers -------------------------------------------------------------------------------------------------


def _features(example: bytes) -> dict[str, bytes]:
    """Return the encoded features of an example by name.

    Example { features = 1 { map<string, Feature> feature = 1 } }
    """
    features = {}
    for _, entry in _fields(_bytes(example, 1)):
        parts = dict(_fields(entry))
        features[parts[1].decode()] = parts[2]
    return features


def _shape(feature: bytes) -> tuple[int, ...]:
    """Return the numbers of a feature, which are encoded packed or one by one.

    Feature { int64_list = 3 { repeated int64 value = 1 } }
    """
    values: list[int] = []
    for _, value in _fields(_bytes(feature, 3)):
        position = 0
        while isinstance(value, bytes) and position < len(value):
            number, position = _varint(value, position)
            values.append(number)
        if isinstance(value, int):
            values.append(value)
    return tuple(values)


def _bytes(message: bytes, wanted: int) -> bytes:
    """Return the first field with the number `wanted`."""
    return next(value for number, value in _fields(message) if number == wanted)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: bytes, or an int for a varint. Raise ValueError for any other type of field."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        value, position = _varint(message, position)
        if key & 7 == 2:
            yield key >> 3, message[position : position + value]
            position += value
        elif key & 7 == 0:
            yield key >> 3, value
        else:
            raise ValueError(f"a field of wire type {key & 7} in a record; records of StyleGAN have only types 0 and 2")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number that begins at a position, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


# --- labels -----------------------------------------------------------------------------------------------------------


def _read_labels(files: Files, path: str, num_images: int) -> list[Label]:
    """Return a label for each image: class numbers if all rows of the label file are one-hot, else attributes.

    Without a label file, or with one that has no columns, every label is None.

    Raises:
        StepError: the file is no NumPy array, has another shape than [num_images, L], or contains other values than 0
            and 1.
    """
    # Find the label file of this set.
    match = _LEVEL.fullmatch(path) if files.labels else None
    beside = f"{match['set']}-rxx.labels" if match else ""
    if not beside or not (beside in files.tokens or storage.exists(files.uri(beside))):
        return [None] * num_images
    where = f"data.source={files.source}: {beside}"

    # Read and check the array.
    content = read_whole(files.uri(beside))
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy raises nearly anything at damaged files
        raise StepError(f"{where} is no NumPy array ({one_line(error)}); get it again or delete it") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise StepError(
            f"{where} holds no array of numbers; it must be one array of one-hot classes or attributes: get it again or delete it"
        )
    if array.ndim != 2 or len(array) != num_images:
        raise StepError(
            f"{where} has the shape {array.shape}; must be [{num_images}, number of labels], a row for each image of {path}"
        )
    if array.shape[1] == 0:
        return [None] * num_images
    if not np.isin(array, (0, 1)).all():
        raise StepError(f"{where} holds other values than 0 and 1; labels must be one-hot classes or attributes")

    # Decide between classes and attributes.
    if array.shape[1] > 1 and (array.sum(axis=1) == 1).all():
        return [int(number) for number in array.argmax(axis=1)]
    return [tuple(row) for row in array.astype(int).tolist()]
