"""Read pieces of many large files: with range requests to their store, or from whole copies on this machine."""

from __future__ import annotations

import gzip
import os
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
from stylegan.data.sources.base import require_size
from stylegan.errors import StepError, one_line

# Bytes. If the mean piece is smaller, one copy of the whole file costs less than a request for every piece.
COPY_BELOW = 64 * 1024

ReadRange = Callable[[int, int, int], bytes]


class Packed(NamedTuple):
    """A file that pieces are read from.

    Attributes:
        uri: where the file is stored.
        token: changes when the file changes.
        unpacked: size in bytes of the content of a .gz; 0 for any other file.
    """

    uri: str
    token: str
    unpacked: int = 0


@contextmanager
def open_file(uri: str, token: str) -> Iterator[IO[bytes]]:
    """Open a file of which only parts are needed.

    A remote file is read from its store, or from a local copy if the store may be unable to return parts, as many web
    servers are.

    Raises:
        FileNotFoundError: no such file.
        StepError: the store does not answer, or a copy does not fit into the cache.
    """
    if storage.is_local(uri) or _only_whole(uri):
        with local_copy(uri, token) as path, open(path, "rb", 2**20) as file:
            yield file
    else:
        with storage.open_read(uri) as file:
            yield file


def _only_whole(uri: str) -> bool:
    """Return True if the store of a URI may be unable to return parts of a file."""
    return uri.startswith(("http://", "https://"))


@contextmanager
def open_ranges(files: Sequence[Packed], *, copy: bool) -> Iterator[ReadRange]:
    """Yield a function from (number of the file, offset, size) to bytes, which several threads may call.

    The function raises UnreadableImage if the piece is larger than any picture, EOFError if the file ends too early,
    FileNotFoundError if it is missing, and StepError if the store does not answer.

    Args:
        files: the files, which the function knows by their numbers from 0.
        copy: copy every remote file to this machine when it is first read.
    """
    copies: dict[int, Path] = {}
    lock = threading.Lock()
    with ExitStack() as stack:

        def local_path(number: int) -> Path:
            with lock:
                if number not in copies:
                    copies[number] = stack.enter_context(_local(files[number]))
                return copies[number]

        def read(number: int, offset: int, size: int) -> bytes:
            require_size(size)
            file = files[number]
            if not (copy or file.unpacked or storage.is_local(file.uri) or _only_whole(file.uri)):
                return whole(storage.read_range(file.uri, offset, size), size)
            with storage.open_regular(local_path(number)) as opened:  # a pipe in its place would never answer
                return whole(os.pread(opened.fileno(), size, offset), size)

        yield read


def whole(data: bytes, size: int) -> bytes:
    """Return the data if it has `size` bytes, else raise EOFError."""
    if len(data) != size:
        raise EOFError(f"{len(data)} bytes of {size}: the file is cut short or has changed since it was listed")
    return data


@contextmanager
def _local(file: Packed) -> Iterator[Path]:
    """Yield the path of a file on this machine, unpacked if it is a .gz."""
    if not file.unpacked:
        with local_copy(file.uri, file.token) as path:
            yield path
        return
    with unpacked(f"gz\n{file.uri}\n{file.token}", file.unpacked, partial(_gunzip, file)) as path:
        yield path


def _gunzip(file: Packed, out: IO[bytes]) -> None:
    """Write as many bytes of a .gz as its members take: more may follow without end. Raise StepError if it is damaged."""
    left = file.unpacked
    try:
        with local_copy(file.uri, file.token) as path, gzip.open(path) as content:
            while left and (piece := content.read(min(left, 2**20))):
                left -= out.write(piece)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StepError(f"{file.uri}: cannot be unpacked ({one_line(error)}); copy or make it again") from error
