"""Local copies of what is elsewhere or costly to make, in $STYLEGAN_CACHE, within one limit for all of it.

{cache}/{kind}/{name}/   an entry: a folder with a file `.stylegan-lock`, and `.stylegan-size` if it will grow to a known size

Who uses an entry shares the lock of its folder, so it ends with the process, however that ends. When there is no room the
entries that nobody holds are removed, the least recently used first; nothing else below the cache is ever touched. The limit is
$STYLEGAN_CACHE_GB (`storage.cache_gb`); without it, half of what the disk would have free if the cache were empty.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import posixpath
import shutil
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from platformdirs import user_cache_dir

from stylegan import storage
from stylegan.errors import StepError

LOCK, RESERVED = ".stylegan-lock", ".stylegan-size"
KINDS = ("images", "archives")


def cache_root() -> Path:
    """$STYLEGAN_CACHE, else the user's cache folder."""
    return Path(os.environ.get("STYLEGAN_CACHE") or user_cache_dir("stylegan"))


class Entry:
    """A folder of the cache that stays while it is held; empty (but for its lock) if nobody has made it yet.

        with Entry("images", "0a1b-r0032") as folder: ...

    Or without a block, until `close` or the end of the object. Any number of threads and processes may hold the same entry.

    Raises:
        OSError: the disk refuses.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.folder = cache_root() / kind / name
        descriptor = _acquire(self.folder)
        os.utime(descriptor)
        self.close = weakref.finalize(self, _release, descriptor)

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _acquire(folder: Path) -> int:
    """A share of an entry's lock; made again if the entry was removed before it could be had."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, FileExistsError):  # removed between two looks
            if folder.is_file():
                raise
            continue
        if _locked(descriptor, folder, fcntl.LOCK_SH):
            return descriptor


def _locked(descriptor: int, folder: Path, operation: int) -> bool:
    """Whether the open lock was had and is still that of the folder; otherwise it is closed."""
    try:
        fcntl.flock(descriptor, operation)
        if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
            return True
    except (FileNotFoundError, BlockingIOError):  # removed; or held, and it was not to be waited for
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return False


def _release(descriptor: int) -> None:
    with suppress(OSError):
        os.utime(descriptor)  # last used now
    os.close(descriptor)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other thread or process is in a block for the same file; the file is made, and stays."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def limit(cache_gb: float | None = None) -> int:
    """How many bytes the whole cache may take; unset: $STYLEGAN_CACHE_GB, else half of the disk's free space without the cache."""
    given = os.environ.get("STYLEGAN_CACHE_GB")
    if cache_gb is None and given:
        cache_gb = float(given)
    if cache_gb is not None:
        return int(cache_gb * 1e9)
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    return (shutil.disk_usage(root).free + sum(_occupied(folder) for folder in _entries())) // 2


def reserve(folder: Path, num_bytes: int, *, cache_gb: float | None = None) -> int:
    """Make room for an entry that will grow to `num_bytes`, by removing what nobody holds; the entry must be held.

    Returns:
        The bytes that it may have: fewer than asked if the limit does not allow more. What it had before is not added.

    Raises:
        OSError: the disk refuses.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with alone(root / ".stylegan-lock"):
        room = limit(cache_gb) - sum(_size(other) for other in _entries() if other != folder)
        for other in sorted((other for other in _entries() if other != folder), key=_last_used):
            if room >= num_bytes:
                break
            size = _size(other)
            room += size if _remove(other) else 0
        granted = max(min(num_bytes, room), 0)
        (folder / RESERVED).write_text(str(granted))
        return granted


def _entries() -> list[Path]:
    return [lock.parent for kind in KINDS for lock in (cache_root() / kind).glob(f"*/{LOCK}")]


def _size(folder: Path) -> int:
    """What an entry takes of the limit: its blocks on the disk, or what was promised to it if that is more."""
    try:
        reserved = int((folder / RESERVED).read_text())
    except (OSError, ValueError):
        reserved = 0
    return max(reserved, _occupied(folder))


def _occupied(folder: Path) -> int:
    total = 0
    for path in folder.glob("**/*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def _last_used(folder: Path) -> float:
    try:
        return (folder / LOCK).stat().st_mtime
    except OSError:
        return 0.0  # gone by now


def _remove(folder: Path) -> bool:
    """Whether the entry is gone; not if somebody holds it."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return True
    if not _locked(descriptor, folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        return False
    trash = cache_root() / ".removed" / uuid.uuid4().hex  # a rename, so that nobody finds half of it
    try:
        trash.parent.mkdir(exist_ok=True)
        os.replace(folder, trash)
    finally:
        os.close(descriptor)
    shutil.rmtree(trash.parent, ignore_errors=True)  # also what a killed process left there
    return True


@contextmanager
def local_copy(uri: str, token: str) -> Iterator[Path]:
    """A whole file of a store as a local file, copied once per machine and kept while the block runs; a local one as it is.

    Args:
        token: another one for each version of the file, such as its ETag or size and time.

    Raises:
        FileNotFoundError: there is none.
        StepError: it is larger than the cache may be, the cache folder cannot be written, or the store does not answer.
    """
    if storage.is_local(uri):
        yield Path(storage.absolute(uri))
        return
    with _held("archives", hashlib.sha256(f"{uri}\n{token}".encode()).hexdigest()[:24]) as folder:
        path = folder / (posixpath.basename(urlsplit(uri).path)[-100:] or "archive")
        if not path.exists():
            num_bytes = storage.size(uri)
            with disk_told(), alone(folder / "making"):
                if not path.exists():
                    _clear_partial(folder)
                    _require(folder, uri, num_bytes)
                    storage.download(uri, path)
        yield path


@contextmanager
def _held(kind: str, name: str) -> Iterator[Path]:
    with disk_told():
        entry = Entry(kind, name)
    with entry as folder:
        yield folder


def _require(folder: Path, uri: str, num_bytes: int) -> None:
    granted = reserve(folder, num_bytes)
    if granted < num_bytes:
        (folder / RESERVED).unlink()
        raise StepError(
            f"{uri}: its {num_bytes / 1e9:.2f} GB do not fit into the cache {cache_root()}, which has room for {granted / 1e9:.2f} GB; "
            "raise storage.cache_gb or set STYLEGAN_CACHE to a folder on a larger disk"
        )


def _clear_partial(folder: Path) -> None:
    """Remove what killed downloads left in an entry."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


@contextmanager
def disk_told() -> Iterator[None]:
    """An OSError of the cache's disk becomes one line."""
    try:
        yield
    except OSError as error:
        raise StepError(
            f"cannot write the cache {cache_root()}: {error}; free some space or set STYLEGAN_CACHE to another folder"
        ) from error
