"""Unpack archives into files of the local cache, once per machine and within the limit of the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stylegan import storage
from stylegan.data.cache import Entry, alone, cache_root, explain_disk_errors, is_whole, mark_whole, reserve
from stylegan.errors import StepError


@contextmanager
def unpacked(name: str, num_bytes: int, make: Callable[[IO[bytes]], None]) -> Iterator[Path]:
    """Yield the path of a cached file, which is kept during the block. `make` writes the file if this machine does not have it.

    Args:
        name: identifies the content: the format, the URI and the token of the archive.
        num_bytes: size of the file.
        make: writes the content to an open file.

    Raises:
        StepError: the file is larger than the cache may be, or the cache folder cannot be written.
    """
    with kept(name) as folder:
        yield made(folder, "content", num_bytes, make)


@contextmanager
def kept(name: str) -> Iterator[Path]:
    """Yield a folder of the cache, which is not removed during the block.

    Args:
        name: identifies the content, as for `unpacked`.

    Raises:
        StepError: the cache folder cannot be written.
    """
    with explain_disk_errors():
        entry = Entry("archives", hashlib.sha256(f"unpacked\n{name}".encode()).hexdigest()[:24])
    with entry as folder:
        yield folder


def made(folder: Path, name: str, num_bytes: int, make: Callable[[IO[bytes]], None]) -> Path:
    """Return the path of a file in a folder of `kept`. `make` writes the file if it is missing.

    Args:
        num_bytes: size in bytes that the whole folder will have.

    Raises:
        StepError: the folder would be larger than the cache may be, or it cannot be written.
    """
    path = folder / name
    if is_whole(path):
        return path
    with explain_disk_errors(), alone(folder / f"making-{name}"):
        if not is_whole(path):  # another process may have made it while this one waited
            granted = reserve(folder, num_bytes)
            if granted < num_bytes:
                raise StepError(
                    f"{num_bytes / 1e9:.2f} GB unpacked do not fit into the cache {cache_root()} with room for {granted / 1e9:.2f} GB; "
                    "raise storage.cache_gb or set STYLEGAN_CACHE to a folder on a larger disk"
                )
            with storage.replacing(path) as partial, open(partial, "wb") as file:
                make(file)
            mark_whole(path)
    return path
