"""List and read a .zip of images at any depth, such as the archives of StyleGAN2 and 3 with their dataset.json."""

from __future__ import annotations

import mmap
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

from stylegan.data.cache import local_copy
from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import open_file
from stylegan.data.sources.base import Files, Listing, Read, SourceImage, is_image, safe_path
from stylegan.errors import StepError, one_line

NAMES = re.compile(r".*\.zip", re.IGNORECASE)
LARGEST = 2**30  # allowed bytes of one encoded image
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
    for member in _members(uri, archive_token):
        # Skip what is neither an image nor a label file.
        path = safe_path(files.source, member.filename)
        if not files.wants(path):
            continue

        # Refuse members that `_read_member` cannot read.
        encrypted = bool(member.flag_bits & 1)
        if encrypted or member.compress_type not in _METHODS:
            state = "encrypted" if encrypted else f"compressed by method {member.compress_type}"
            raise StepError(
                f"data.source={files.source}: {path} is {state}; make the archive again, stored or deflated, without a password"
            )

        # Note where the member is.
        locator.add(
            path, member.header_offset, member.compress_size, member.file_size, member.compress_type, member.CRC
        )
        token = f"{member.file_size}-{member.CRC:08x}"
        if is_image(path):
            images.append(SourceImage(path, None, token))
        else:
            label_files[path] = token
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
    except zipfile.BadZipFile as error:
        raise StepError(
            f"data.source={uri}: not a readable .zip ({one_line(error)}); copy or make the archive again"
        ) from error
    except OSError as error:
        raise StepError(f"data.source={uri}: cannot be read: {one_line(error)}; check its permissions") from error


@contextmanager
def _open_archive(uri: str, token: str, locator: Locator) -> Iterator[Read]:
    """Yield a function that reads one member.

    Members are read in any order, so a remote archive is copied to this machine first.
    """
    with (
        local_copy(uri, token) as path,
        open(path, "rb") as file,
        closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content,
    ):
        yield lambda name: _read_member(content, *locator[name])


def _read_member(content: mmap.mmap, start: int, packed: int, size: int, method: int, crc: int) -> bytes:
    """Return the unpacked bytes of one member. The arguments after `content` are those of the directory of the archive.

    Args:
        content: the archive.
        start: offset of the header of the member.
        packed: its bytes in the archive.
        size: its bytes after unpacking.
        method: its compression method, one of _METHODS.
        crc: CRC-32 of the unpacked bytes.

    Raises:
        zipfile.BadZipFile: the member is damaged or too large.
    """
    if size > LARGEST:
        raise zipfile.BadZipFile(f"unpacks to {size} bytes; at most {LARGEST} are allowed for one image")

    # Skip the header: 30 bytes, the name and extra fields.
    header = content[start : start + 30]
    if header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("no member begins where the directory says; the archive is damaged")
    start += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")

    # Unpack no more than the directory says, and check the result.
    data = content[start : start + packed]
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as error:
            raise zipfile.BadZipFile(f"damaged member ({error})") from error
    if len(data) != size or zlib.crc32(data) != crc:
        raise zipfile.BadZipFile("the checksum of the member is wrong; the archive is damaged")
    return data
