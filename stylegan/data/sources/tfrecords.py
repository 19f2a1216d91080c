"""TFRecords of StyleGAN v1: a file for each resolution, of which the highest is read, without TensorFlow.

A record is its length (8 bytes), a checksum of that, a `tf.train.Example` with `shape` (channels, height, width) and `data`
(uint8), and a checksum of it. Labels lie beside in `*-rxx.labels`, a NumPy array [N, L].
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from stylegan import storage
from stylegan.data.cache import local_copy
from stylegan.data.sources.access.crc32c import masked_crc32c
from stylegan.data.sources.access.ranges import whole
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage
from stylegan.errors import StepError, one_line

NAMES = re.compile(r".*\.tfrecords?", re.IGNORECASE)
_LEVEL = re.compile(r"(?P<set>.*)-r(?P<level>\d\d)\.tfrecords", re.IGNORECASE)
_HEAD, _FOOT = 12, 4  # bytes around the content of a record


def list_images(files: Files) -> Listing:
    """The images of the highest resolution as `0000000` ... in the order of the file; the token is the checksum of the record."""
    path = _highest(files)
    offsets, images = [], []
    with local_copy(files.uri(path), files.tokens[path]) as local, open(local, "rb") as file:
        for number, (offset, checksum) in enumerate(_records(files.source, path, file)):
            offsets.append(offset)
            images.append((f"{number:07d}", f"{checksum:08x}"))
    labels = _labels(files, path, len(images))
    found = [SourceImage(name, label, token) for (name, token), label in zip(images, labels, strict=True)]
    return Listing(
        found, partial(_open, files.uri(path), files.tokens[path], np.array(offsets, np.int64)), reader="tfrecords"
    )


def _highest(files: Files) -> str:
    """The file of the highest resolution, of one set."""
    found = [path for path in files.tokens if NAMES.fullmatch(path)]
    levels = {path: int(match["level"]) for path in found if (match := _LEVEL.fullmatch(path))}
    chosen = [path for path in found if levels.get(path, -1) == max(levels.values(), default=-1)]
    if len(chosen) > 1:
        raise StepError(
            f"data.source={files.source}: holds several sets of TFRecords, such as {chosen[0]} and {chosen[1]}; give one of them"
        )
    return chosen[0]


def _records(source: str, name: str, file: Any) -> Iterator[tuple[int, int]]:
    """Offset and checksum of every record; contents are skipped."""
    position, end = 0, os.fstat(file.fileno()).st_size
    while position < end:
        head = file.read(_HEAD)
        length = int.from_bytes(head[:8], "little")
        if len(head) < _HEAD or masked_crc32c(head[:8]) != int.from_bytes(head[8:], "little"):
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


@contextmanager
def _open(uri: str, token: str, offsets: np.ndarray) -> Iterator[Read]:
    with local_copy(uri, token) as path, open(path, "rb") as file:
        yield lambda name: _image(file.fileno(), int(offsets[int(name)]))


def _image(descriptor: int, offset: int) -> np.ndarray:
    """Pixels [H, W] or [H, W, 3]. Raises ValueError if the record is damaged."""
    length = int.from_bytes(whole(os.pread(descriptor, 8, offset), 8), "little")
    record = whole(os.pread(descriptor, length + _FOOT, offset + _HEAD), length + _FOOT)
    content, checksum = record[:length], int.from_bytes(record[length:], "little")
    if masked_crc32c(content) != checksum:
        raise ValueError(f"the record at byte {offset} has a wrong checksum")
    features = _features(content)
    shape, data = _shape(features["shape"]), next(_fields(_bytes(features["data"], 1)))[1]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"the record at byte {offset} has the shape {shape}; must be 1 or 3 channels, height, width")
    pixels = np.frombuffer(data, np.uint8).reshape(shape)
    return pixels[0] if shape[0] == 1 else pixels.transpose(1, 2, 0)


# --- protocol buffers -------------------------------------------------------------------------------------------------


def _features(example: bytes) -> dict[str, bytes]:
    """Example { features = 1 { map<string, Feature> feature = 1 } } by name."""
    found = {}
    for _, entry in _fields(_bytes(example, 1)):
        parts = dict(_fields(entry))
        found[parts[1].decode()] = parts[2]
    return found


def _shape(feature: bytes) -> tuple[int, ...]:
    """Feature { int64_list = 3 { repeated int64 value = 1 } }, packed or one by one."""
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
    return next(value for number, value in _fields(message) if number == wanted)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: bytes, or an int for a varint."""
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
            raise ValueError(f"field of wire type {key & 7} in a record; those of StyleGAN have none")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


# --- labels -----------------------------------------------------------------------------------------------------------


def _labels(files: Files, path: str, num_images: int) -> list[Label]:
    """One-hot rows become class numbers, others attributes."""
    match = _LEVEL.fullmatch(path) if files.labels else None
    beside = f"{match['set']}-rxx.labels" if match else ""
    if not beside or not (beside in files.tokens or storage.exists(files.uri(beside))):
        return [None] * num_images
    where = f"data.source={files.source}: {beside}"
    try:
        array = np.load(io.BytesIO(storage.read_bytes(files.uri(beside))), allow_pickle=False)
    except Exception as error:  # NumPy raises nearly anything at damaged files
        raise StepError(f"{where} is no NumPy array ({one_line(error)}); get it again or delete it") from error
    if array.ndim != 2 or len(array) != num_images:
        raise StepError(
            f"{where} has the shape {array.shape}; must be [{num_images}, number of labels], a row for each image of {path}"
        )
    if array.shape[1] == 0:
        return [None] * num_images
    if not np.isin(array, (0, 1)).all():
        raise StepError(f"{where} holds other values than 0 and 1; labels must be one-hot classes or attributes")
    if array.shape[1] > 1 and (array.sum(axis=1) == 1).all():
        return [int(number) for number in array.argmax(axis=1)]
    return [tuple(row) for row in array.astype(int).tolist()]
