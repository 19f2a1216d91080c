"""A .zip of images at any depth, such as those of StyleGAN2 and 3 with their dataset.json."""

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
LARGEST = 2**30  # bytes of one encoded image
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def list_images(files: Files) -> Listing:
    """The members of one archive, from the directory at its end."""
    ((name, archive_token),) = files.tokens.items()
    uri = files.uri(name)
    images, others, locator = [], {}, Locator(5)
    for member in _members(uri, archive_token):
        path = safe_path(files.source, member.filename)
        if not files.wants(path):
            continue
        token = f"{member.file_size}-{member.CRC:08x}"
        locator.add(
            path, member.header_offset, member.compress_size, member.file_size, member.compress_type, member.CRC
        )
        if member.flag_bits & 1 or member.compress_type not in _METHODS:
            what = "encrypted" if member.flag_bits & 1 else f"compressed by method {member.compress_type}"
            raise StepError(
                f"data.source={files.source}: {path} is {what}; make the archive again, stored or deflated, without a password"
            )
        if is_image(path):
            images.append(SourceImage(path, None, token))
        else:
            others[path] = token
    return Listing(images, partial(_open, uri, archive_token, locator.seal()), reader="zip", files=others, folders=True)


def _members(uri: str, token: str) -> Iterator[zipfile.ZipInfo]:
    try:
        with open_file(uri, token) as file, zipfile.ZipFile(file) as archive:
            members = archive.filelist[::-1]
            archive.NameToInfo.clear()  # half a kilobyte each: none is kept longer than needed
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
def _open(uri: str, token: str, locator: Locator) -> Iterator[Read]:
    """Members come in any order, so an archive from elsewhere is copied here first."""
    with (
        local_copy(uri, token) as path,
        open(path, "rb") as file,
        closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content,
    ):
        yield lambda name: _member(content, *locator[name])


def _member(content: mmap.mmap, start: int, packed: int, size: int, method: int, crc: int) -> bytes:
    """Raises zipfile.BadZipFile if the member is damaged."""
    if size > LARGEST:
        raise zipfile.BadZipFile(f"unpacks to {size} bytes; no image has more than {LARGEST}")
    header = content[start : start + 30]
    if header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile("no member begins where the directory says; the archive is damaged")
    start += 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    data = content[start : start + packed]
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)  # never more than it claims
        except zlib.error as error:
            raise zipfile.BadZipFile(f"damaged member ({error})") from error
    if len(data) != size or zlib.crc32(data) != crc:
        raise zipfile.BadZipFile("the checksum of the member is wrong; the archive is damaged")
    return data
