"""Encode and decode the pixels of one image as they are stored in a tar: raw `.npy` up to 256x256, lossless PNG above.

PNG halves the bytes of a photograph. But decoding it takes longer than reading the raw bytes at 100 MB/s, and longer
than WebDataset needs for a JPEG. Encoding it takes longer than decoding and resizing the original. `make bench-data`
measures this.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from stylegan.errors import one_line

LARGEST_RAW = 256  # the largest resolution that is stored raw
_MAGIC = b"\x93NUMPY\x01\x00"


def suffix(resolution: int) -> str:
    """Return the ending of the payload's name in the tar: `npy` or `png`."""
    return "npy" if resolution <= LARGEST_RAW else "png"


def encode(pixels: np.ndarray, resolution: int) -> bytes:
    """Encode uint8 pixels [r, r] or [r, r, 3]; the same pixels give the same bytes."""
    if resolution <= LARGEST_RAW:
        return npy_header(pixels.shape) + pixels.tobytes()
    return _png(pixels)


def encode_raw(pixels: np.ndarray) -> np.ndarray:
    """Encode several images of a raw resolution at once: uint8 [n, r, r] or [n, r, r, 3] to uint8 [n, size]."""
    start = npy_header(pixels.shape[1:])
    payloads = np.empty((len(pixels), len(start) + pixels[0].size), np.uint8)
    payloads[:, : len(start)] = np.frombuffer(start, np.uint8)
    payloads[:, len(start) :] = pixels.reshape(len(pixels), -1)
    return payloads


def decode(data: bytes | memoryview, suffix: str) -> np.ndarray:
    """Decode a payload to uint8 pixels [C, r, r].

    Raises:
        ValueError: the payload is damaged, or not a square image of 1 or 3 channels.
    """
    pixels = _decode_npy(data) if suffix == "npy" else _decode_png(data)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[0] != pixels.shape[1] or pixels.shape[2] not in (1, 3):
        raise ValueError(f"an image of the shape {pixels.shape}; must be square with 1 or 3 channels")
    return pixels.transpose(2, 0, 1)


def _png(pixels: np.ndarray) -> bytes:
    """Encode pixels as a PNG whose rows all have the filter `Average`, compressed by Huffman codes and runs alone.

    Pillow tries five filters for each row and searches for repetitions, of which photographs have few. That is four
    times the work for files of the same size.
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = pixels.reshape(height, width * channels)
    neighbours = np.zeros_like(rows, np.uint16)  # left plus above; 0 outside the image
    neighbours[1:] = rows[:-1]
    neighbours[:, channels:] += rows[:, :-channels]
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = 3  # the number of the filter `Average`
    np.subtract(rows, neighbours >> 1, out=filtered[:, 1:], casting="unsafe")
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", packer.compress(filtered.data) + packer.flush()), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, content) for kind, content in parts)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


@lru_cache
def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the bytes before the raw uint8 values of an array in a file of numpy's format 1.0."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _decode_npy(data: bytes | memoryview) -> np.ndarray:
    view = memoryview(data)
    if len(view) < 10 or view[:8] != _MAGIC:
        raise ValueError("not a file of numpy's format 1.0")
    start = 10 + struct.unpack("<H", view[8:10])[0]
    shape = _npy_shape(bytes(view[:start]))
    return np.frombuffer(view, np.uint8, offset=start).reshape(shape)  # raises ValueError at any other number of values


@lru_cache
def _npy_shape(header: bytes) -> tuple[int, ...]:
    """Return the shape in the header of a file in numpy's format 1.0.

    Cached, because numpy parses a header as Python source, which costs more than all the rest of decoding.
    """
    file = BytesIO(header[8:])
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.uint8 or fortran_order:
        raise ValueError(f"an array of {dtype}; must be uint8 in C order")
    return shape


def _decode_png(data: bytes | memoryview) -> np.ndarray:
    try:
        image = Image.open(BytesIO(data), formats=["PNG"])
        image.load()
    except Exception as error:  # Pillow raises nearly anything for damaged files
        raise ValueError(f"not a whole PNG: {one_line(error)}") from error
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"a PNG of mode {image.mode}; must be L or RGB")
    return np.asarray(image)
