"""Reading pieces of many large files: by ranges where they lie, or from whole copies on this machine."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from stylegan import storage
from stylegan.data.cache import local_copy
from stylegan.data.sources.access.unpacked import unpacked
from stylegan.errors import StepError, one_line

COPY_BELOW = 64 * 1024  # bytes: pieces smaller than this cost more to ask for one by one than to copy with their file

ReadRange = Callable[[int, int, int], bytes]


class Packed(NamedTuple):
    """A file with its token; `unpacked` is the size of what a .gz unpacks to, 0 for any other file."""

    uri: str
    token: str
    unpacked: int = 0


@contextmanager
def open_file(uri: str, token: str) -> Iterator[IO[bytes]]:
    """A file for reading some of it: where it lies, or a copy if its store may not give pieces, as many web servers."""
    if storage.is_local(uri) or _only_whole(uri):
        with local_copy(uri, token) as path, open(path, "rb", 2**20) as file:
            yield file
    else:
        with storage.open_read(uri) as file:
            yield file


def _only_whole(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


@contextmanager
def open_ranges(files: Sequence[Packed], *, copy: bool) -> Iterator[ReadRange]:
    """A function of (number of the file, offset, size) to bytes, for several threads.

    Args:
        copy: remote files are copied here whole when they are first asked for.
    """
    places: dict[int, Path] = {}
    lock = threading.Lock()
    with ExitStack() as stack:

        def place(number: int) -> Path:
            with lock:
                if number not in places:
                    places[number] = stack.enter_context(_local(files[number]))
                return places[number]

        def read(number: int, offset: int, size: int) -> bytes:
            file = files[number]
            if not (copy or file.unpacked or storage.is_local(file.uri) or _only_whole(file.uri)):
                return whole(storage.read_range(file.uri, offset, size), size)
            with open(place(number), "rb", buffering=0) as opened:
                return whole(os.pread(opened.fileno(), size, offset), size)

        yield read


def whole(data: bytes, size: int) -> bytes:
    """Raises EOFError if some of it is missing."""
    if len(data) != size:
        raise EOFError(f"{len(data)} bytes of {size}: the file is cut short or has changed since it was listed")
    return data


@contextmanager
def _local(file: Packed) -> Iterator[Path]:
    """The file on this machine, unpacked."""
    if not file.unpacked:
        with local_copy(file.uri, file.token) as path:
            yield path
        return
    with unpacked(f"gz\n{file.uri}\n{file.token}", file.unpacked, partial(_gunzip, file)) as path:
        yield path


def _gunzip(file: Packed, out: IO[bytes]) -> None:
    try:
        with local_copy(file.uri, file.token) as path, gzip.open(path) as content:
            shutil.copyfileobj(content, out, 2**20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StepError(f"{file.uri}: cannot be unpacked ({one_line(error)}); copy or make it again") from error
