"""What an archive unpacks to, as one local file: made once per machine, within the limit of the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stylegan import storage
from stylegan.data.cache import Entry, alone, cache_root, disk_told, reserve
from stylegan.errors import StepError


@contextmanager
def unpacked(name: str, num_bytes: int, make: Callable[[IO[bytes]], None]) -> Iterator[Path]:
    """A file that `make` writes if this machine does not have it, kept while the block runs.

    Args:
        name: tells the content from that of all other files: the format, the URI and the token of the archive.
        num_bytes: how large the file will be.

    Raises:
        StepError: it is larger than the cache may be, or the cache folder cannot be written.
    """
    with kept(name) as folder:
        yield made(folder, "content", num_bytes, make)


@contextmanager
def kept(name: str) -> Iterator[Path]:
    """A folder of the cache that is not removed while the block runs."""
    with disk_told():
        entry = Entry("archives", hashlib.sha256(f"unpacked\n{name}".encode()).hexdigest()[:24])
    with entry as folder:
        yield folder


def made(folder: Path, name: str, num_bytes: int, make: Callable[[IO[bytes]], None]) -> Path:
    """A file in a kept folder that may take `num_bytes` in all, made if it is not there."""
    path = folder / name
    if path.exists():
        return path
    with disk_told(), alone(folder / f"making-{name}"):
        if not path.exists():
            granted = reserve(folder, num_bytes)
            if granted < num_bytes:
                raise StepError(
                    f"{num_bytes / 1e9:.2f} GB unpacked do not fit into the cache {cache_root()} with room for {granted / 1e9:.2f} GB; "
                    "raise storage.cache_gb or set STYLEGAN_CACHE to a folder on a larger disk"
                )
            with storage.replacing(path) as partial, open(partial, "wb") as file:
                make(file)
    return path
