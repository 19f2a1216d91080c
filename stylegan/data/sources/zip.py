"""List and read a .zip of images at any depth, such as the archives of StyleGAN2 and 3 with their dataset.json."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from stylegan.data.cache import local_copy
from stylegan.data.sources.access.links import Link, follow
from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import open_file
from stylegan.data.sources.base import (
    DAMAGE,
    NO_PICTURES,
    Files,
    Listing,
    Read,
    SourceImage,
    is_image,
    require_size,
    safe_path,
)
from stylegan.errors import StepError, one_line

NAMES = re.compile(r".*\.zip", re.IGNORECASE)
_UNIX, _UTF_8, _UNICODE_PATH = 3, 0x800, 0x7075  # a system, a flag, and an extra field of the directory
_LONGEST_TARGET = 4096  # bytes of the path that a link leads to
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def list_images(files: Files) -> Listing:
    """List the members of one archive from the directory at its end.

    A token consists of the size and the checksum of the member. The time does not matter.

    Raises:
        StepError: the archive cannot be read, is encrypted or compressed in an unknown way, or a member has an unsafe
            name.
    """
    ((name, archive_token),) = files.tokens.items()
    uri = files.uri(name)
    images, label_files, locator = [], {}, Locator(5)

    def add(path: str, member: zipfile.ZipInfo) -> None:
        _require_readable(files.source, path, member)
        locator.add(path, *_place(member))
        token = f"{member.file_size}-{member.CRC:08x}"
        if is_image(path):
            images.append(SourceImage(path, None, token))
        else:
            label_files[path] = token

    links: dict[str, zipfile.ZipInfo] = {}
    for member in _members(uri, archive_token):
        path = _path(files.source, member)
        kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == _UNIX else 0
        links.pop(path, None)  # the last member of a name counts
        if kind == stat.S_IFLNK:
            links[path] = member
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            files.left_out["pipes, sockets and devices"] += 1
        elif files.wants(path):
            add(path, member)
        elif not path.endswith("/"):
            files.left_out[NO_PICTURES] += 1
    if links:
        targets = _targets(files.source, uri, archive_token, links)
        for path, member in follow(files, targets, partial(_find, files, uri, archive_token), files.wants):
            add(path, member)
    opener = partial(_open_archive, uri, archive_token, locator.seal())
    return Listing(images, opener, reader="zip", files=label_files, folders=True)


def _members(uri: str, token: str) -> Iterator[zipfile.ZipInfo]:
    """Yield the entries of the directory of an archive.

    Raises:
        StepError: the archive cannot be read.
    """
    try:
        with open_file(uri, token) as file, zipfile.ZipFile(file) as archive:
            # An entry takes half a kilobyte, so drop each one once it is used.
            members = archive.filelist[::-1]
            archive.NameToInfo.clear()
            archive.filelist.clear()
            while members:
                yield members.pop()
    except DAMAGE as error:
        raise StepError(
            f"data.source={uri}: not a readable .zip ({one_line(error)}); copy or make the archive again"
        ) from error


def _path(source: str, member: zipfile.ZipInfo) -> str:
    """Return the name of a member as a path.

    A name without the flag for UTF-8 counts as UTF-8 if it can be decoded, because `zip` on Linux and macOS does not set
    the flag; otherwise as code page 437, as the format says. A backslash separates folders unless the archive was made
    on Unix, where it is a letter. Behind a byte of another code page it is the second byte of a letter, as in Shift-JIS.
    """
    backslash = member.create_system != _UNIX
    if member.flag_bits & _UTF_8:
        return safe_path(source, member.orig_filename.partition("\0")[0], backslash=backslash)
    raw = member.orig_filename.encode("cp437").partition(b"\0")[0]
    given = _unicode_path(member.extra, raw)
    if given is not None:
        return safe_path(source, given, backslash=backslash)
    try:
        return safe_path(source, raw.decode(), backslash=backslash)
    except UnicodeDecodeError:
        separated = re.sub(rb"(?<![\x80-\xff])\\", b"/", raw) if backslash else raw
        return safe_path(source, separated.decode("cp437"), backslash=False)


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in Info-ZIP's extra field for Unicode names, if it belongs to this name; None without one."""
    while len(extra) >= 4:
        tag, size = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if tag == _UNICODE_PATH and content[:5] == b"\1" + zlib.crc32(raw).to_bytes(4, "little"):
            with suppress(UnicodeDecodeError):  # `zip` writes no UTF-8 for some control characters
                return content[5:].decode()
    return None


def _require_readable(source: str, path: str, member: zipfile.ZipInfo) -> None:
    """Raise StepError if `_read_member` cannot read a member."""
    encrypted = bool(member.flag_bits & 1)
    if encrypted or member.compress_type not in _METHODS:
        state = "encrypted" if encrypted else f"compressed by method {member.compress_type}"
        raise StepError(
            f"data.source={source}: {path} is {state}; make the archive again, stored or deflated, without a password"
        )


def _place(member: zipfile.ZipInfo) -> tuple[int, int, int, int, int]:
    """Return the facts that `_read_member` needs: offset, bytes in the archive, bytes of the content, method and CRC-32."""
    return member.header_offset, member.compress_size, member.file_size, member.compress_type, member.CRC


def _targets(source: str, uri: str, token: str, links: dict[str, zipfile.ZipInfo]) -> list[Link]:
    """Return the links of an archive. The content of such a member is the path that it leads to."""
    found = []
    with local_copy(uri, token) as local, open(local, "rb") as file:
        for path, member in links.items():
            _require_readable(source, path, member)
            if member.file_size > _LONGEST_TARGET:
                raise StepError(
                    f"data.source={uri}: {path} is a link of {member.file_size} bytes; make the archive again"
                )
            try:
                target = _read_member(file.fileno(), *_place(member)).decode(errors="surrogateescape")
            except zipfile.BadZipFile as error:
                raise StepError(
                    f"data.source={uri}: {path} cannot be read ({one_line(error)}); copy or make the archive again"
                ) from error
            found.append(Link(path, target))
    return found


def _find(files: Files, uri: str, token: str, paths: set[str]) -> tuple[dict[str, zipfile.ZipInfo], set[str]]:
    """Return the members with these paths, and those of the paths that are folders with images or label files."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for member in _members(uri, token):
        path = _path(files.source, member)
        if path in paths:
            found[path] = member
        if files.wants(path):
            parts = path.split("/")
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))} & paths
    return found, folders


@contextmanager
def _open_archive(uri: str, token: str, locator: Locator) -> Iterator[Read]:
    """Yield a function that reads one member.

    Members are read in any order, so a remote archive is copied to this machine first.
    """
    with local_copy(uri, token) as path, open(path, "rb") as file:
        yield lambda name: _read_member(file.fileno(), *locator[name])


def _read_member(archive: int, start: int, packed: int, size: int, method: int, crc: int) -> bytes:
    """Return the unpacked bytes of one member. The arguments after `archive` are those of its directory.

    Args:
        archive: descriptor of the open archive.
        start: offset of the header of the member.
        packed: its bytes in the archive.
        size: its bytes after unpacking.
        method: its compression method, one of _METHODS.
        crc: CRC-32 of the unpacked bytes.

    Raises:
        UnreadableImage: the member is larger than any picture.
        zipfile.BadZipFile: it is damaged.
    """
    require_size(size)
    # A damaged directory may promise any number of bytes, so nothing is read that cannot be there.
    if start < 0 or start + packed > os.fstat(archive).st_size:
        raise zipfile.BadZipFile("the member is not where the directory says; the archive is damaged")

    # Skip the header: 30 bytes, the name and extra fields.
    header = os.pread(archive, 30, start)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("no member begins where the directory says; the archive is damaged")
    start += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")

    # Unpack no more than the directory says, and check the result. A stored member has its size twice.
    data = os.pread(archive, packed if method == zipfile.ZIP_DEFLATED else min(packed, size + 1), start)
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as error:
            raise zipfile.BadZipFile(f"damaged member ({error})") from error
    if len(data) != size or zlib.crc32(data) != crc:
        raise zipfile.BadZipFile("the checksum of the member is wrong; the archive is damaged")
    return data
