"""CRC-32C (Castagnoli) as TFRecords use it, with numpy: no package of Python's own computes it.

The bytes are cut into lanes that are summed side by side, a byte of each at a time; then lanes are joined in pairs. For that the
sum of the left half must be carried over the zeros that the right half stands for, which is linear in its bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78
_MOST_LANES = 4096


def masked_crc32c(data: bytes) -> int:
    """The checksum rotated by 15 bits and shifted, so that sums of sums do not cancel (TensorFlow's record format)."""
    value = crc32c(data)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720: that of `123456789` is 0xE3069283."""
    if len(data) < 64:
        return _serial(data, 0xFFFFFFFF) ^ 0xFFFFFFFF
    lanes = 1
    while lanes < _MOST_LANES and lanes * 64 < len(data):
        lanes *= 2
    length = len(data) // lanes
    head = np.frombuffer(data, np.uint8, count=lanes * length).reshape(lanes, length)
    values: np.ndarray = np.zeros(lanes, np.uint32)
    values[0] = 0xFFFFFFFF
    table = _table()
    for column in np.ascontiguousarray(head.T):
        values = table[(values ^ column) & 0xFF] ^ (values >> 8)
    while len(values) > 1:
        values = _over_zeros(values[0::2], length) ^ values[1::2]
        length *= 2
    return _serial(data[lanes * (len(data) // lanes) :], int(values[0])) ^ 0xFFFFFFFF


def _serial(data: bytes, value: int) -> int:
    steps = _steps()
    for byte in data:
        value = steps[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value


@cache
def _steps() -> list[int]:
    return _table().tolist()


@cache
def _table() -> np.ndarray:
    """uint32 [256]: what a byte becomes after eight steps."""
    values: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = (values >> 1) ^ np.where(values & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return values


def _over_zeros(values: np.ndarray, length: int) -> np.ndarray:
    """Sums after `length` zero bytes more."""
    tables = _zero_tables(length)
    return (
        tables[0][values & 0xFF]
        ^ tables[1][(values >> 8) & 0xFF]
        ^ tables[2][(values >> 16) & 0xFF]
        ^ tables[3][values >> 24]
    )


@cache
def _zero_tables(length: int) -> np.ndarray:
    """uint32 [4, 256]: what each byte of a sum becomes over `length` zero bytes; longer ones by doubling."""
    values = np.left_shift(np.arange(256, dtype=np.uint32)[None], np.uint32(8) * np.arange(4, dtype=np.uint32)[:, None])
    if length <= 1:
        return _table()[values & 0xFF] ^ (values >> 8) if length else values
    for part in (length // 2, length // 2, length % 2):
        if part:
            values = _over_zeros(values, part)
    return values
