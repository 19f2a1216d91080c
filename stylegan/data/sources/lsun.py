"""List and read LSUN: LMDB environments whose values are encoded images.

LMDB maps its file into memory and follows the page numbers in it wherever they lead, so a file that is cut short or
damaged would kill the process without a word. This module needs only the places of the values. It walks the tree of
pages itself, checks every number before it follows it, and maps nothing. The layout of the pages is that of `mdb.c` in
LMDB 0.9, which has been the same since 2011.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from stylegan.data.cache import local_copy
from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import Packed, open_ranges
from stylegan.data.sources.base import Files, Listing, Read, SourceImage
from stylegan.errors import StepError, one_line

NAMES = re.compile(r"data\.mdb|.*\.(lmdb|mdb)", re.IGNORECASE)
_COUNTERS = frozenset({b"length", b"num-samples", b"__len__", b"__keys__"})  # keys of other tools, which are not images
_HEX = "hex-"  # prefix of a path that is a key in hexadecimal


def list_images(files: Files) -> Listing:
    """List the keys of the environments as paths.

    With several environments each path begins with the name of its environment. The token of an image is the token of
    its whole file: LMDB stores no checksums or times.

    Raises:
        StepError: a file is not an LMDB environment, or is damaged.
    """
    # Find the environments, and what their paths begin with.
    paths = [
        path for path in files.tokens if NAMES.fullmatch(path.rpartition("/")[2]) and not path.endswith("lock.mdb")
    ]
    prefixes = {path: f"{_name(path)}/" if len(paths) > 1 else "" for path in paths}

    # List their keys, and note where the values are.
    images, locator = [], Locator(3)
    for number, path in enumerate(paths):
        token = files.tokens[path]
        try:
            with local_copy(files.uri(path), token) as local:
                for value in _values(os.fspath(local)):
                    if value.key not in _COUNTERS:
                        name = prefixes[path] + _path(value.key)
                        images.append(SourceImage(name, None, token))
                        locator.add(name, number, value.offset, value.size)
        except _Damaged as error:
            raise StepError(
                f"data.source={files.source}: {path} is not an LMDB environment, or is damaged ({one_line(error)}); copy it again"
            ) from error

    packed = tuple(Packed(files.uri(path), files.tokens[path]) for path in paths)
    return Listing(images, partial(_open_environments, packed, locator.seal()), reader="lsun")


def _name(path: str) -> str:
    """Return the name of an environment: the folder of `bedroom_lmdb/data.mdb`, but the whole path of `cars.lmdb`."""
    folder, _, name = path.rpartition("/")
    return folder if name == "data.mdb" else f"{folder}/{name}".lstrip("/")


def _path(key: bytes) -> str:
    """Return a key as a path.

    The path is the text of the key if that is a safe path which does not begin with `hex-`. Otherwise it is `hex-` and
    the hexadecimal digits of the key.
    """
    try:
        text = key.decode("ascii")
    except UnicodeDecodeError:
        return _HEX + key.hex()
    plain = re.fullmatch(r"[\w.,=@+-]+(/[\w.,=@+-]+)*", text) and ".." not in text.split("/")
    return text if plain and not text.startswith(_HEX) else _HEX + key.hex()


@contextmanager
def _open_environments(files: tuple[Packed, ...], locator: Locator) -> Iterator[Read]:
    """Yield a function from a path to the value of its key.

    Args:
        files: the files of the environments.
        locator: number of the file, offset and size of each value.
    """
    with open_ranges(files, copy=True) as read:
        yield lambda path: read(*locator[path])


# --- pages ------------------------------------------------------------------------------------------------------------

_MAGIC, _VERSION, _NO_PAGE = 0xBEEFC0DE, 1, 2**64 - 1
_BRANCH, _LEAF, _META, _KINDS = 1, 2, 8, 0x2F  # flags of a page, and those that say what it is
_LARGE, _TABLE = 1, 2  # flags of a node: its value has pages of its own; it is a named table
_PAGE = struct.Struct("<QHHHH")  # number, (unused), flags, end of the pointers, start of the nodes
_NODE = struct.Struct(
    "<HHHH"
)  # low and high half of a size, flags, size of the key; in a branch, a page number and the latter
_HEAD = _PAGE.size


class _Damaged(Exception):
    """The file is no LMDB environment, or is damaged. The message says what is wrong, without naming the file."""


class _Value(NamedTuple):
    """A key, and the place of its value in the file."""

    key: bytes
    offset: int
    size: int


def _values(path: str) -> Iterator[_Value]:
    """Yield the keys of an environment in their order, with the places of their values.

    Raises:
        _Damaged: the file is no LMDB environment, or is damaged.
    """
    with open(path, "rb") as file:
        descriptor, num_bytes = file.fileno(), os.fstat(file.fileno()).st_size
        side, root = _root(descriptor)
        waiting, seen = [] if root == _NO_PAGE else [root], set[int]()
        while waiting:
            number = waiting.pop()
            if number in seen:
                raise _Damaged(f"page {number} is in its tree twice")
            seen.add(number)
            page = os.pread(descriptor, side, number * side) if (number + 1) * side <= num_bytes else b""
            if len(page) < side:
                raise _Damaged(f"it is cut short: it has {num_bytes} bytes, and no page {number}")
            kind, nodes = _nodes(page, number)
            if kind == _BRANCH:
                waiting += [low | high << 16 | top << 32 for low, high, top, _, _ in reversed(nodes)]
                continue
            for low, high, flags, size, start in nodes:
                yield _value(page, number, num_bytes, (low | high << 16, flags, size, start))


def _root(descriptor: int) -> tuple[int, int]:
    """Return the size of a page and the number of the root page, from the newer of the two descriptions at the start."""
    found = []
    side = _HEAD
    for place in range(2):
        page = os.pread(descriptor, _HEAD + 136, place * side)
        if len(page) < _HEAD + 136:
            raise _Damaged("it is cut short, or no LMDB")
        magic, version = struct.unpack_from("<II", page, _HEAD)
        if magic != _MAGIC or not page[10] & _META:
            raise _Damaged("it does not begin as LMDB does")
        if version != _VERSION:
            raise _Damaged(f"its format has the version {version}; only {_VERSION} is known")
        (side,) = struct.unpack_from("<I", page, _HEAD + 24)
        flags, root = struct.unpack_from("<H", page, _HEAD + 76)[0], struct.unpack_from("<Q", page, _HEAD + 112)[0]
        (transaction,) = struct.unpack_from("<Q", page, _HEAD + 128)
        if side & (side - 1) or not 256 <= side <= 65536:
            raise _Damaged(f"its pages have {side} bytes")
        found.append((transaction, -place, side, flags, root))
    _, _, side, flags, root = max(found)
    if found[0][2] != found[1][2]:
        raise _Damaged("its two descriptions differ in the size of a page")
    if flags:
        raise _Damaged("it has several values for a key, or keys that are not text")
    return side, root


def _nodes(page: bytes, number: int) -> tuple[int, list[tuple[int, int, int, int, int]]]:
    """Return the kind of a page, _BRANCH or _LEAF, and its nodes: the four numbers of each, and where its key begins."""
    stored, _, flags, end, start = _PAGE.unpack_from(page)
    kind, count = flags & _KINDS, (end - _HEAD) // 2
    if stored != number or kind not in (_BRANCH, _LEAF) or not _HEAD < end <= start <= len(page) or end % 2:
        raise _Damaged(f"page {number} is none of its tree")
    nodes = []
    for place in struct.unpack_from(f"<{count}H", page, _HEAD):
        if not end <= place <= len(page) - _NODE.size:
            raise _Damaged(f"page {number} has a wrong pointer")
        nodes.append((*_NODE.unpack_from(page, place), place + _NODE.size))
    return kind, nodes


def _value(page: bytes, number: int, num_bytes: int, node: tuple[int, int, int, int]) -> _Value:
    """Return the key and the place of the value of a node of a leaf.

    Args:
        number: of the page.
        num_bytes: of the file.
        node: bytes of the value, flags, bytes of the key, and where the key begins in the page.
    """
    size, flags, key_size, start = node
    inside = start + key_size
    if flags not in (0, _LARGE, _TABLE) or inside + (8 if flags == _LARGE else size) > len(page):
        raise _Damaged(f"page {number} has a wrong entry")
    offset = number * len(page) + inside
    if flags == _LARGE:
        first = int.from_bytes(page[inside : inside + 8], "little")
        offset = first * len(page) + _HEAD
        if offset + size > num_bytes:
            raise _Damaged(f"it is cut short: it has {num_bytes} bytes, and a value ends at byte {offset + size}")
    return _Value(page[start:inside], offset, size)
