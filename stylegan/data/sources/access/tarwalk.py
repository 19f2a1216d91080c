"""List the members of a tar header by header: ten times as fast as `tarfile`, and in constant memory."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

from stylegan import storage
from stylegan.data.cache import local_copy
from stylegan.data.sources.access.links import Link
from stylegan.data.sources.access.ranges import open_file
from stylegan.data.sources.base import safe_path
from stylegan.errors import StepError, one_line, shown

_BLOCK = 512
_EMPTY = bytes(_BLOCK)
_LONGEST_NAME = 2**16
_LONGEST_END, _PIECE = 2**24, 2**16  # bytes behind the end mark that are looked at: more zeros may follow without end
_LARGEST = 2**62  # bytes of a member; more is no place in any file
_WITHOUT_CONTENT = b"123456"  # links, devices, folders and pipes, whatever size their headers say
DEVICE = "a pipe or a device"
logger = logging.getLogger("stylegan")


class Member(NamedTuple):
    """A regular file in a tar.

    Attributes:
        name: relative path, checked by `safe_path`.
        offset: first byte of its content in the unpacked tar.
        size: bytes of its content.
        mtime: time of its last change, in whole seconds.
    """

    name: str
    offset: int
    size: int
    mtime: int


class Special(NamedTuple):
    """A member that is not stored as a plain file: a sparse file, a part of a file, a device, or of an unknown type.

    Attributes:
        name: relative path, checked by `safe_path`.
        form: what it is, in a few words.
    """

    name: str
    form: str


class DamagedTar(Exception):
    """The file is no tar, or is cut short. The message says what is wrong, without naming the file."""


def is_packed(uri: str) -> bool:
    """Return True if the name is that of a gzipped tar."""
    return not uri.partition("?")[0].lower().endswith(".tar")


@contextmanager
def open_tar(source: str, uri: str, token: str) -> Iterator[IO[bytes]]:
    """Open a tar for `walk`, unpacked. A remote gzipped tar is copied to this machine first.

    Raises:
        OSError: the file cannot be read.
        StepError: it is no tar, or is cut short. Errors of this kind in the block become StepError too.
    """
    try:
        if is_packed(uri):
            with local_copy(uri, token) as path, gzip.open(path) as file:
                yield file  # type: ignore[misc] # a BufferedIOBase
        else:
            with open_file(uri, token) as file:
                yield file
    except (DamagedTar, EOFError, zlib.error, gzip.BadGzipFile) as error:
        name = storage.name(uri)
        raise StepError(
            f"data.source={source}: {name} is not a readable tar ({one_line(error)}); copy or make it again"
        ) from error


def walk(source: str, file: IO[bytes], tar: str | None = None) -> Iterator[Member | Link | Special]:
    """Yield every member but folders; `file` is then at the first byte of the content of a `Member`.

    Args:
        source: `data.source`, for messages.
        file: the unpacked tar, open at its start.
        tar: its name, for a warning if it has no end mark. None gives no warning, for another walk of the same listing.

    Raises:
        DamagedTar: a header is wrong, the last member is incomplete, or more follows behind the end mark.
        StepError: a name leads out of the archive.
    """
    position = 0
    all_records: dict[str, str] = {}
    records: dict[str, str] = {}
    while True:
        # Read one header; an empty block or the end of the file ends the archive.
        header = file.read(_BLOCK)
        if not header and position:
            if tar is not None:
                logger.warning(
                    f"data.source={source}: {shown(tar)} has no end mark after byte {position}; it may be cut short"
                )
            return
        if header == _EMPTY:
            _require_end(file, position)
            return
        kind, size = header[156:157], _check_header(header, position)
        start = position + _BLOCK

        # These describe the member that follows (PAX and GNU), or all that follow (`g`).
        if kind in b"xXgLK":
            description = _read(file, size, _LONGEST_NAME if kind in b"LK" else 16 * _LONGEST_NAME)
            if kind in b"LK":
                key = "path" if kind == b"L" else "linkpath"
                records = records | {key: description.rstrip(b"\0").decode(errors="surrogateescape")}
            elif kind == b"g":
                all_records = all_records | _pax_records(description)
            else:
                records = records | _pax_records(description)
        else:
            facts, records = all_records | records if records else all_records, {}
            size = _size(facts, size) if kind not in _WITHOUT_CONTENT else 0
            if kind == b"S":
                start = _after_sparse_map(file, header, start)
            if kind not in b"5DVN":  # folders, the label of a volume, and lists of old names
                yield _member(source, header, facts, start, size)

        # Skip the content, which is padded to whole blocks.
        position = start + (size + _BLOCK - 1) // _BLOCK * _BLOCK
        _skip(file, start + size, position)


def _member(source: str, header: bytes, facts: dict[str, str], start: int, size: int) -> Member | Link | Special:
    """Return a member that is no folder.

    Args:
        facts: the records that describe it.
        start: first byte of its content.
        size: bytes of its content.
    """
    kind = header[156:157]
    sparse = bool(facts) and any(key.startswith("GNU.sparse.") for key in facts)
    name = safe_path(source, facts.get("GNU.sparse.name") or facts.get("path") or _name(header), backslash=False)
    if kind in b"12":
        target = facts.get("linkpath") or header[157:257].partition(b"\0")[0].decode(errors="surrogateescape")
        return Link(name, target, hard=kind == b"1")
    if sparse or kind == b"S":
        return Special(name, "a sparse file")
    if kind in (b"0", b"\0", b"7"):
        return Member(name, start, size, _number(header[136:148]))
    if kind in b"346":
        return Special(name, DEVICE)
    return Special(name, "a part of a file" if kind == b"M" else f"a member of the unknown type {kind!r}")


def _size(facts: dict[str, str], size: int) -> int:
    """Return the bytes of a member's content: what its records say, else its header."""
    given = facts.get("size", str(size))
    if not given.isdecimal() or int(given) > _LARGEST:
        raise DamagedTar(f"a member has the size {given[:40]!r}")
    return int(given)


def _after_sparse_map(file: IO[bytes], header: bytes, start: int) -> int:
    """Return the first byte of the content of an old sparse file, after the blocks of its map that follow the header."""
    more = header[482:483] != b"\0"
    while more:
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise DamagedTar("it is cut short")
        start, more = start + _BLOCK, block[504:505] != b"\0"
    return start


def _skip(file: IO[bytes], end: int, position: int) -> None:
    """Move to the next header, at `position`. Raise DamagedTar if the content ends before `end`.

    The last byte of the content is read to find that out, because seeking beyond the end of a file raises nothing.
    """
    if file.tell() < end:
        file.seek(end - 1)
        if not file.read(1):
            raise DamagedTar("it is cut short")
    file.seek(position)


def _require_end(file: IO[bytes], position: int) -> None:
    """Raise DamagedTar if anything but zeros follows behind the end mark, which begins at `position`.

    Members behind it would be lost without a word: those of a second tar, or all that follow a damaged header. A packed
    tar is read to its end, so that its checksum is compared.
    """
    for _ in range(_LONGEST_END // _PIECE):
        piece = file.read(_PIECE)
        if not piece:
            return
        if piece.strip(b"\0"):
            raise DamagedTar(
                f"more follows behind the end mark at byte {position}: it is damaged, or several tars in one file"
            )


def _check_header(header: bytes, position: int) -> int:
    """Return the size of a member in bytes. Raise DamagedTar if its header is incomplete or has a wrong checksum."""
    if len(header) < _BLOCK:
        raise DamagedTar(
            "it is empty" if not header else f"it is cut short, or no tar, at byte {position + len(header)}"
        )
    try:
        wanted, size = _number(header[148:156]), _number(header[124:136])
        _number(header[136:148])
    except ValueError:
        wanted, size = -1, 0
    # The checksum is the sum of all bytes, with eight blanks in its own field. The low half of Adler-32 is that sum
    # plus 1, modulo 65521, and zlib computes it in C.
    total = zlib.adler32(b"        ", zlib.adler32(header[156:], zlib.adler32(header[:148]))) & 0xFFFF
    if (1 + wanted) % 65521 != total or size < 0:
        raise DamagedTar(f"no header of a member at byte {position}")
    return size


def _number(digits: bytes) -> int:
    """Return the value of an octal number, or of a binary one, which GNU tar writes if the octal one would be too long."""
    if digits[0] & 0x80:
        return int.from_bytes(digits[1:], "big")
    return int(digits.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    """Return the name in a header, with the prefix that the ustar dialect keeps apart."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode(errors="surrogateescape")


def _read(file: IO[bytes], size: int, most: int) -> bytes:
    """Read `size` bytes of a description. Raise DamagedTar if they are more than `most`."""
    if size > most:
        raise DamagedTar(f"it has a name of {size} bytes")
    return file.read(size)


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the records of an extended header, a sequence of `{length} {key}={value}\\n`, by key."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            raise DamagedTar("an extended header is wrong")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode(errors="surrogateescape")] = value.decode(errors="surrogateescape")
        data = data[int(length) :]
    return records
