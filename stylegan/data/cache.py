"""The local cache of files that are remote or costly to make, and the locks of files and folders that processes share.

{cache}/{kind}/{name}/   one entry: a folder with its lock file `.stylegan-lock`, and with `.stylegan-size` if bytes
                         were reserved for it

The cache folder is $STYLEGAN_CACHE. One limit holds for all entries together: $STYLEGAN_CACHE_GB (`storage.cache_gb`),
or, if that is unset, half of the space that the disk would have free with an empty cache.

A process that uses an entry holds a shared lock on its folder. The lock ends with the process, however the process
ends. When room is needed, entries that nobody holds are removed, the least recently used one first. Nothing else below
the cache folder is ever touched.

Machines may share the cache folder, such as one in a home on NFS, whose locks hold between machines. What a machine has
not finished carries the machine in its name, and no other machine removes it. Beside a finished file stands its size,
without which the file does not count as whole.

Exclusive locks are those of `filelock`. Shared locks are made here, because an entry is removed together with its lock
file.
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

from filelock import FileLock
from platformdirs import user_cache_dir

from stylegan import storage
from stylegan.config.sections import StorageConfig
from stylegan.errors import ConfigError, StepError

LOCK, RESERVED = ".stylegan-lock", ".stylegan-size"
ENTRY_KINDS = ("images", "archives")


def cache_root() -> Path:
    """Return the cache folder: $STYLEGAN_CACHE, or the user's cache folder if that is unset."""
    return Path(storage.absolute(os.environ.get("STYLEGAN_CACHE") or user_cache_dir("stylegan")))


# --- locks ------------------------------------------------------------------------------------------------------------


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file during the block; wait while another thread or process holds it.

    The file is created if it is missing, and it stays. The lock ends with its process, even at `kill -9`.

    Raises:
        OSError: the disk refuses, or its file system has no such locks.
    """
    with FileLock(path, fallback_to_soft=False):  # the fallback, a marker file, would outlive a killed process
        yield


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[Path]:
    """Create an empty folder for this block only; wait while another thread or process holds it.

    It serves as scratch space for work that is moved to its place once it is complete. The lock ends with its process,
    even at `kill -9`; the next holder clears what a killed process left. Afterwards neither the folder nor its lock
    file exists.

    Raises:
        OSError: the disk refuses.
    """
    lock = folder.with_name(folder.name + ".lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(lock):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            # While the lock is held: FileLock refuses a lock on a removed file, so a waiting process creates a new one.
            lock.unlink(missing_ok=True)


# --- entries ----------------------------------------------------------------------------------------------------------


class Entry:
    """A folder of the cache that is not removed while it is held. A new entry contains only its lock file.

        with Entry("images", "0a1b-r0032") as folder: ...

    Without a `with` block the entry is held until `close` is called or the object is deleted. Any number of threads and
    processes may hold the same entry.

    Raises:
        OSError: the disk refuses.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.folder = cache_root() / kind / name
        descriptor = _share_lock(self.folder)
        os.utime(descriptor)  # the time of the lock file is the time of last use
        self.close = weakref.finalize(self, _release, descriptor)

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _share_lock(folder: Path) -> int:
    """Return the descriptor of an entry's lock file with a shared lock on it; create the entry if it is missing."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, FileExistsError):  # another process removed the entry between the two calls
            if folder.is_file():
                raise
            continue
        if _lock_or_close(descriptor, folder, fcntl.LOCK_SH):
            return descriptor


def _lock_or_close(descriptor: int, folder: Path, operation: int) -> bool:
    """Lock an open lock file, and return whether that succeeded; otherwise it is closed.

    It fails if the folder has another lock file or none by now, or if the lock is held and LOCK_NB forbids waiting.
    """
    try:
        fcntl.flock(descriptor, operation)
        if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
            return True
    except (FileNotFoundError, BlockingIOError):
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


def _entries() -> list[Path]:
    return [lock.parent for kind in ENTRY_KINDS for lock in (cache_root() / kind).glob(f"*/{LOCK}")]


def _remove(folder: Path) -> bool:
    """Remove an entry unless somebody holds it; return whether it is gone."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return True
    if not _lock_or_close(descriptor, folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        return False
    trash = cache_root() / ".removed" / uuid.uuid4().hex  # renamed first, so that nobody sees half of the entry
    try:
        trash.parent.mkdir(exist_ok=True)
        os.replace(folder, trash)
    finally:
        os.close(descriptor)
    shutil.rmtree(trash.parent, ignore_errors=True)  # including what a killed process left there
    return True


# --- the limit --------------------------------------------------------------------------------------------------------


def limit(cache_gb: float | None = None) -> int:
    """Return the bytes that the whole cache may take.

    Args:
        cache_gb: the limit in GB. If unset, $STYLEGAN_CACHE_GB; if that is unset too, half of the space that the disk
            would have free with an empty cache.

    Raises:
        ConfigError: $STYLEGAN_CACHE_GB is no number.
    """
    given = os.environ.get("STYLEGAN_CACHE_GB")
    if cache_gb is None and given:
        try:
            cache_gb = StorageConfig(cache_gb=float(given)).cache_gb
        except ValueError:
            raise ConfigError(f"STYLEGAN_CACHE_GB={given}: must be GB from 0 on; correct it or unset it") from None
    if cache_gb is not None:
        return int(cache_gb * 1e9)
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    return (shutil.disk_usage(root).free + sum(_occupied(folder) for folder in _entries())) // 2


def reserve(folder: Path, num_bytes: int, *, cache_gb: float | None = None) -> int:
    """Make room for an entry that will grow to `num_bytes`, by removing entries that nobody holds.

    The caller must hold the entry.

    Returns:
        The bytes that the entry may take in all, what it takes already included: fewer than `num_bytes` if the limit
            does
        not allow more.

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
            if _remove(other):
                room += size
        granted = max(min(num_bytes, room), 0)
        (folder / RESERVED).write_text(str(granted))
        return granted


def _size(folder: Path) -> int:
    """Return the bytes that an entry counts for: its blocks on the disk, or its reservation if that is more."""
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
        return 0.0  # removed in the meantime


# --- copies of remote files -------------------------------------------------------------------------------------------


@contextmanager
def local_copy(uri: str, token: str) -> Iterator[Path]:
    """Yield a local path of a whole file, which is kept during the block.

    A remote file is copied once per machine; a local file is its own copy.

    Args:
        token: differs for every version of the file, such as its ETag or its size and time.

    Raises:
        FileNotFoundError: no such file.
        StepError: it is larger than the cache may be, the cache folder cannot be written, or the store does not answer.
    """
    if storage.is_local(uri):
        yield Path(storage.absolute(uri))
        return
    with _hold_entry("archives", hashlib.sha256(f"{uri}\n{token}".encode()).hexdigest()[:24]) as folder:
        path = folder / (posixpath.basename(urlsplit(uri).path)[-100:] or "archive")
        if not is_whole(path):
            num_bytes = storage.size(uri)
            with explain_disk_errors(), alone(folder / "making"):
                if not is_whole(path):  # another process may have copied it while this one waited
                    _clear_partial(folder)
                    _require(folder, uri, num_bytes)
                    storage.download(uri, path)
                    mark_whole(path)
        yield path


def mark_whole(path: Path) -> None:
    """Record the size of a finished file of an entry, for `is_whole`. Raise OSError if the disk refuses."""
    storage.write_local(_size_file(path), str(path.stat().st_size).encode())


def is_whole(path: Path) -> bool:
    """Return whether a file of an entry was finished and still has the size that it had then."""
    try:
        return path.stat().st_size == int(_size_file(path).read_text())
    except (OSError, ValueError):
        return False


def _size_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.size")


@contextmanager
def _hold_entry(kind: str, name: str) -> Iterator[Path]:
    with explain_disk_errors():
        entry = Entry(kind, name)
    with entry as folder:
        yield folder


def _require(folder: Path, uri: str, num_bytes: int) -> None:
    """Reserve `num_bytes` for an entry. Raise StepError if the limit allows less."""
    granted = reserve(folder, num_bytes)
    if granted < num_bytes:
        (folder / RESERVED).unlink()
        raise StepError(
            f"{uri}: its {num_bytes / 1e9:.2f} GB do not fit into the cache {cache_root()}, which has room for {granted / 1e9:.2f} GB; "
            "raise storage.cache_gb or set STYLEGAN_CACHE to a folder on a larger disk"
        )


def _clear_partial(folder: Path) -> None:
    """Remove the partial files that killed downloads of this machine left in an entry."""
    for partial in storage.own_partials(folder):
        partial.unlink(missing_ok=True)


@contextmanager
def explain_disk_errors() -> Iterator[None]:
    """Raise StepError, in one line with the cure, for every OSError of the block, which writes the cache."""
    try:
        yield
    except OSError as error:
        raise StepError(
            f"cannot write the cache {cache_root()}: {error}; free some space or set STYLEGAN_CACHE to another folder"
        ) from error
