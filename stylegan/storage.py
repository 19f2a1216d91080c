"""Read and write every byte of storage through fsspec; a URI is a local path or any fsspec URL.

Writes are whole, atomic and durable. Locally that is a temporary file, a rename, and a sync of the file and of the folder
that names it; on object stores it is one put. So a reader sees the old bytes or the new ones, and a power cut leaves one
or the other. A folder counts as complete once its marker file exists, and the marker is written last.

Several processes and machines write to the same store, so nothing here remembers what a store contained a moment ago.

Credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), never from a config.
Requests to a store that throttles, times out or drops connections are repeated, see retry.py.
"""

from __future__ import annotations

import errno
import io
import ipaddress
import json
import os
import posixpath
import shutil
import socket
import stat
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache, wraps
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, ParamSpec, TypeVar, cast

import fsspec
from fsspec.dircache import DirCache
from fsspec.implementations.local import LocalFileSystem

from stylegan.errors import DamagedError, ExhaustedError, StepError, one_line
from stylegan.records import parse
from stylegan.retry import answer_of, patient
from stylegan.uris import MAX_NAME, local_path
from stylegan.uris import is_local as is_local

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
PARTIAL = ".partial"  # ending of local files that are still being written
# Folder below the working folder for what cannot be in a remote storage.root, such as MLflow's SQLite file.
EMBEDDED = "stylegan-local"
PIECE = 16 * 2**20  # bytes; larger files are downloaded in pieces, so that a reset costs one of them
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}  # that have a listings cache and an option for it
# Addresses of metadata services that are not link-local: of AWS (IPv6), Alibaba, Oracle and Azure.
METADATA_ADDRESSES = {"fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"}
# Packages whose errors are those of a store.
STORE_PACKAGES = {
    "botocore",
    "aiobotocore",
    "aiohttp",
    "s3fs",
    "gcsfs",
    "google",
    "azure",
    "adlfs",
    "requests",
    "httpx",
    "huggingface_hub",
}


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI."""
    return posixpath.join(uri, *parts)


def name(uri: str) -> str:
    """Return the last part of a URI."""
    return posixpath.basename(uri.rstrip("/"))


def absolute(uri: str) -> str:
    """Return the absolute path of a local URI, and any other URI without a slash at its end."""
    return local_path(uri) if is_local(uri) else uri.rstrip("/")


def filesystem(uri: str, *, cautious: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec file system of a URI, and the path in it. It caches no listings.

    Args:
        cautious: whether a web server at an address of `is_metadata_address` is refused, also behind a name or a redirect.

    Raises:
        StepError: no such protocol, or its package is not installed.
    """
    if is_local(uri):
        return LocalFileSystem(), local_path(uri)  # as it is: fsspec splits a path at `::`
    try:
        fs, path = cast(tuple[fsspec.AbstractFileSystem, str], fsspec.url_to_fs(uri, **_options(uri, cautious)))
    except (ValueError, ImportError, TypeError, AttributeError) as error:  # the last two: it lacks an option of its own
        raise StepError(
            f"storage: cannot use {uri}: {one_line(error)}; give a folder or a URL such as s3://bucket/path"
        ) from error
    _forget_listings(fs)
    return fs, path


def _options(uri: str, cautious: bool) -> dict[str, Any]:
    """Return the options of the stores of a URI, by protocol: a chained URL such as `simplecache::s3://...` has several."""
    options: dict[str, Any] = {}
    for part in uri.split("::"):
        protocol = part.partition("://")[0]
        if protocol in OBJECT_STORES:
            options[protocol] = {"use_listings_cache": False}  # so it is off in a process that a copy is sent to, too
        if protocol in ("s3", "s3a"):
            # A dead connection ends after a minute.
            config = {"connect_timeout": 10, "read_timeout": 60, "retries": {"mode": "standard"}}
            options[protocol]["config_kwargs"] = config
        elif protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            # By default aiohttp gives up on any file after five minutes, and ignores HTTPS_PROXY.
            timeout = ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options[protocol] = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
            if cautious:
                options[protocol]["get_client"] = _cautious_client
    return options


def _forget_listings(fs: Any) -> None:
    """Switch off the listings cache of a file system, and of those that it is chained to.

    fsspec shares one instance among all users of a store in a process. Its listings also answer questions about single
    files, and never expire, so another writer's files would not exist here. The switch is set on the instance, because
    not every store takes it as an option.
    """
    while fs is not None:
        fs.retries = 1  # s3fs retries without a configurable deadline; the retry is ours
        cache = getattr(fs, "dircache", None)
        if not isinstance(cache, DirCache):
            if cache:
                fs.invalidate_cache()  # a store with a cache of its own kind
        elif cache.use_listings_cache:
            cache.use_listings_cache = False
            cache.clear()
        fs = getattr(fs, "fs", None)


def is_metadata_address(host: str) -> bool:
    """Return whether a host is an address, link-local or known, at which clouds give credentials to their machines."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_link_local or str(address) in METADATA_ADDRESSES


async def _cautious_client(**options: Any) -> Any:
    """Return a client whose sockets refuse addresses of metadata services, after names and redirects are resolved."""
    import aiohttp

    def connect(facts: Any) -> socket.socket:
        family, kind, protocol, _, address = facts
        if is_metadata_address(address[0]):
            raise PermissionError(
                errno.EACCES, f"{address[0]} is an address of a metadata service, which is never read"
            )
        return socket.socket(family, kind, protocol)

    options.pop("loop", None)  # the running one
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=connect), **options)


def _guarded(action: str, *, writes: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of the argument `uri`: wait while its store fails, and report an error in one line.

    Args:
        action: what the function does, for the message: `cannot {action} {uri}`.
        writes: whether FileNotFoundError becomes a line too: for a writer it is a bucket that does not exist. Where it
            is False the caller handles a missing file.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        position = list(signature(function).parameters).index("uri")

        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            uri = str(kwargs["uri"] if "uri" in kwargs else args[position])
            try:
                if is_local(uri):
                    return function(*args, **kwargs)
                return patient(lambda: function(*args, **kwargs), uri)
            except Exception as error:
                missing = isinstance(error, FileNotFoundError) and not writes
                if missing or isinstance(error, StepError) or not is_storage_error(error):
                    raise
                if isinstance(error, IsADirectoryError):
                    raise DamagedError(
                        f"storage: cannot {action} {uri}: a folder is in the place of this file; move it away, then run "
                        "the same command again"
                    ) from error
                # A remote store has been waited for if that could help, so nothing waits for it again.
                kind = StepError if is_local(uri) else ExhaustedError
                raise kind(
                    f"storage: cannot {action} {uri}: {one_line(error)}; check free space, permissions and credentials "
                    "of that store, then run the same command again"
                ) from error

        return guarded

    return decorate


def is_storage_error(error: BaseException) -> bool:
    """Return whether an exception is one of a disk or a store, not of what was read."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in STORE_PACKAGES


@_guarded("read")
def read_bytes(uri: str) -> bytes:
    """Read a whole file. Raise FileNotFoundError if it does not exist, StepError if the store does not answer."""
    fs, path = filesystem(uri)
    if is_local(uri):
        with open_regular(path) as file:
            return file.read()
    return cast(bytes, fs.cat_file(path))


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a local file for reading.

    Raises:
        OSError: it cannot be opened, or is a pipe, a socket or a device: reading one may never end.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "is a pipe, a socket or a device, not a file", str(path))


@_guarded("read")
def read_range(uri: str, start: int, length: int) -> bytes:
    """Read `length` bytes from the byte `start` on: fewer at the end of the file, none beyond it."""
    fs, path = filesystem(uri)
    try:
        return cast(bytes, fs.cat_file(path, start=start, end=start + length))
    except Exception as error:
        if answer_of(error)[0] == 416:  # range not satisfiable
            return b""
        raise


@_guarded("read")
def read_from(uri: str, start: int) -> bytes:
    """Read a file from the byte `start` on to its end; nothing beyond it."""
    fs, path = filesystem(uri)
    try:
        return cast(bytes, fs.cat_file(path, start=start))
    except Exception as error:
        if answer_of(error)[0] == 416:  # range not satisfiable
            return b""
        raise


@_guarded("write", writes=True)
def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file; readers never see a part of it. Raise StepError if the store refuses."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, data)
        return
    target = Path(path)
    make_folder(target.parent)
    write_local(target, data)


@_guarded("write", writes=True)
def create(uri: str, data: bytes) -> bool:
    """Write a whole file unless it exists; of several writers exactly one succeeds.

    Local folders, S3 and Google decide that by themselves. In other stores, and on servers that imitate S3 without
    `If-None-Match`, two writers of the same moment may both get True; the content is then that of the last one.

    Args:
        uri: of the file.
        data: what nobody else writes there, since a file with the same content counts as our own: the answer of the store
            may have been lost, and the request repeated.

    Returns:
        Whether the file is ours. False: it existed.

    Raises:
        StepError: the store refuses.
    """
    fs, path = filesystem(uri)
    try:
        if is_local(uri):
            make_folder(Path(path).parent)
            _create_local(Path(path), data)
        elif fs.exists(path):  # some servers ignore the condition below
            raise FileExistsError(path)
        else:
            fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        with suppress(FileNotFoundError):  # deleted meanwhile
            return read_bytes(uri) == data
        return False
    return True


def _create_local(target: Path, data: bytes) -> None:
    """Write a local file, whole and durable from its first moment on. Raise FileExistsError if it exists."""
    partial = _partial(target)
    try:
        partial.write_bytes(data)
        _sync(partial)
        try:
            os.link(partial, target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            with open(target, "xb") as file:  # no links here, as on FAT: its name is there a moment before its content
                file.write(data)
            _sync(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_local(path: Path, data: bytes) -> None:
    """Write a local file outside storage.root, atomically and durably. Raise OSError if the disk refuses."""
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a partial file that takes the place of `path` at the end of the block, atomically and durably.

    Nobody sees a half-written file under its name, not even after a power cut. If the block fails, the partial file is
    removed and `path` stays as it was. Every local file that counts as whole once it exists is written here or by
    `place`.
    """
    partial = _partial(path)
    try:
        yield partial
        place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """Return a name beside a path for its partial file."""
    ending = f".{boot_id()[:8]}-{uuid.uuid4().hex[:8]}{PARTIAL}"
    beginning = os.fsencode(f".{path.name}")[: MAX_NAME - len(ending)]  # `path.name` may be as long as names can be
    return path.with_name(f"{os.fsdecode(beginning)}{ending}")


def place(file: Path, target: Path) -> None:
    """Rename a finished local file to its place on the same disk, atomically and durably."""
    _sync(file)
    os.replace(file, target)
    _sync(target.parent)


def make_folder(folder: Path) -> None:
    """Create a local folder and those above it, durably; do nothing if it exists."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for part in reversed(missing):
        _sync(part.parent)


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # file systems without it for folders
            raise
    finally:
        os.close(descriptor)


def own_partials(folder: Path) -> Iterator[Path]:
    """Yield the partial files in a local folder that processes of this machine have begun since it started.

    Others may belong to another machine that shares the folder and is still writing them.
    """
    yield from folder.glob(f".*.{boot_id()[:8]}-*{PARTIAL}")


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return an identifier of this machine since it was started: no other machine and no later start has the same."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    import psutil

    return f"{uuid.getnode():012x}-{psutil.boot_time():.0f}"


def read_json(uri: str, kind: type[T], *, cure: str) -> T:
    """Read a JSON file that a step wrote, and check that it is what was written.

    Args:
        uri: of the file.
        kind: a `Record`, or any other type that pydantic validates.
        cure: how to get the file again if it is damaged, for the error message: `delete it and ...`.

    Raises:
        FileNotFoundError: no such file.
        DamagedError: it is not JSON, or not of that kind.
        StepError: storage refuses.
    """
    return parse(read_bytes(uri), kind, origin=uri, cure=cure)


def write_json(uri: str, value: Any) -> None:
    """Write a value as readable JSON."""
    write_bytes(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return a value as the bytes of a readable JSON file."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def read_json_lines(uri: str, kind: type[T], *, cure: str, limit: int | None = None) -> list[T]:
    """Read a file of one JSON value per line, or its first `limit` lines; arguments and errors as for `read_json`.

    A last line without a newline is left out: it is still being written.
    """
    if limit is None:
        lines = read_bytes(uri).splitlines(keepends=True)
    else:
        with open_read(uri) as file:
            lines = list(islice(file, limit))
    return _parse_lines(uri, lines, kind, cure=cure)


def _parse_lines(uri: str, lines: list[bytes], kind: type[T], *, cure: str, first: int = 1) -> list[T]:
    """Parse lines of a file; `first` is the number of the first one."""
    return [
        parse(line, kind, origin=f"{uri}, line {number}", cure=cure)
        for number, line in enumerate(lines, start=first)
        if line.endswith(b"\n")
    ]


class GrowingLines(Generic[T]):
    """A file of one JSON value per line that others extend, or write anew from some line on.

    Attributes:
        values: the values read until now.
    """

    def __init__(self, uri: str, kind: type[T], *, cure: str) -> None:
        self.uri, self._kind, self._cure = uri, kind, cure
        self._forget()

    def _forget(self) -> None:
        self.values: list[T] = []
        self._end, self._last = 0, b""  # offset behind the last line read, and that line

    def read(self) -> list[T]:
        """Read what was added since the last call, or all of a file that was written anew; return all values.

        A file that does not exist has none. A last line without a newline is left out: it is still being written.

        Raises:
            DamagedError: a line is not such a value.
            StepError: storage refuses.
        """
        try:
            added = read_from(self.uri, self._end - len(self._last))
            if not added.startswith(self._last):  # another line stands there now
                self._forget()
                added = read_bytes(self.uri)
        except FileNotFoundError:
            self._forget()
            return self.values
        lines = [line for line in added[len(self._last) :].splitlines(keepends=True) if line.endswith(b"\n")]
        if lines:
            first = len(self.values) + 1
            self.values += _parse_lines(self.uri, lines, self._kind, cure=self._cure, first=first)
            self._end += sum(map(len, lines))
            self._last = lines[-1]
        return self.values


@_guarded("look up")
def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


@_guarded("look up")
def size(uri: str) -> int:
    """Return the size of a file in bytes.

    Raises:
        FileNotFoundError: no such file.
        StepError: the store does not report sizes, or does not answer.
    """
    fs, path = filesystem(uri)
    num_bytes = fs.size(path)
    if num_bytes is None:
        raise StepError(
            f"storage: the store of {uri} does not report its size; copy the file to a folder or bucket first"
        )
    return int(num_bytes)


@_guarded("list")
def names(uri: str) -> list[str]:
    """Return the names directly below a folder, sorted, without partial files; empty if there is no such folder."""
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    if entries == [path]:  # a file lists itself
        return []
    last_parts = [name(entry) for entry in entries]
    return sorted(part for part in last_parts if part and not part.endswith(PARTIAL))


class FileFacts(NamedTuple):
    """Size of a file in bytes, and the time of its last change in seconds since 1970; 0 if the store has none."""

    num_bytes: int
    changed: float


@_guarded("list")
def files(uri: str) -> dict[str, FileFacts]:
    """Return all files below a folder by their paths relative to it; empty if there is no such folder.

    An object store is asked for one listing, not for each file.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        return dict(_local_files(path))
    found = cast(dict[str, dict[str, Any]], fs.find(path, detail=True))
    return {
        posixpath.relpath(place, path): FileFacts(int(facts.get("size") or 0), _changed(facts))
        for place, facts in found.items()
    }


def _local_files(folder: str) -> Iterator[tuple[str, FileFacts]]:
    """Yield the files below a local folder; links are not followed."""
    for above, _, names in os.walk(folder):
        for name in names:
            place = os.path.join(above, name)
            with suppress(FileNotFoundError):  # deleted meanwhile
                facts = os.lstat(place)
                yield os.path.relpath(place, folder), FileFacts(facts.st_size, facts.st_mtime)


def _changed(facts: dict[str, Any]) -> float:
    """Return the time in the entry of a listing, for which every store has another name."""
    for key in ("LastModified", "last_modified", "updated", "mtime"):
        value = facts.get(key)
        with suppress(ValueError, TypeError):
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            if value is not None:
                return value.timestamp() if isinstance(value, datetime) else float(value)
    return 0.0


@_guarded("delete")
def delete(uri: str) -> None:
    """Remove a file or a whole folder; do nothing if it does not exist."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@contextmanager
def probe(root: str) -> Iterator[tuple[str, bytes]]:
    """Write a small file below a root for the block, and yield its URI and content.

    A local root that did not exist is deleted afterwards, unless somebody else has written there meanwhile.
    """
    existed = exists(root)
    content = uuid.uuid4().hex
    uri = join(root, f".probe-{content[:8]}")
    write_bytes(uri, content.encode())
    try:
        yield uri, content.encode()
    finally:
        delete(uri)
        if not existed and is_local(root):
            with suppress(OSError):
                Path(absolute(root)).rmdir()


@_guarded("read")
def download(uri: str, local: str | Path) -> None:
    """Copy one file to this machine, atomically. Its length must be what the store reports."""
    fs, path = filesystem(uri)
    target = Path(local)
    make_folder(target.parent)
    info = fs.info(path)
    num_bytes = info.get("size")
    # HTTP servers say whether they serve ranges (`partial`); other stores always do.
    serves_ranges = info.get("partial", not uri.startswith("http"))
    with replacing(target) as partial:
        if is_local(uri) or not serves_ranges or not num_bytes or num_bytes <= PIECE:
            fs.get_file(path, str(partial))
        else:
            _download_pieces(uri, partial, num_bytes)
        received = partial.stat().st_size
        if num_bytes is not None and received != num_bytes:
            raise ConnectionError(f"{received:,} bytes came, the store says {num_bytes:,}")


def _download_pieces(uri: str, target: Path, num_bytes: int) -> None:
    """Download a file in pieces, four at a time, since one connection seldom fills a network.

    Every piece is retried on its own, so the patience counts from the last progress.
    """

    def fetch(start: int) -> None:
        length = min(PIECE, num_bytes - start)
        data = patient(lambda: _read_whole_range(uri, start, length), uri)
        os.pwrite(file.fileno(), data, start)

    with open(target, "wb") as file, ThreadPoolExecutor(4, "download") as pool:
        for _ in pool.map(fetch, range(0, num_bytes, PIECE)):
            pass


def _read_whole_range(uri: str, start: int, length: int) -> bytes:
    fs, path = filesystem(uri)
    data = cast(bytes, fs.cat_file(path, start=start, end=start + length))
    if len(data) != length:
        raise ConnectionError(f"{len(data):,} bytes came, {length:,} were asked for")
    return data


@_guarded("read")
def open_read(uri: str) -> IO[bytes]:
    """Open a binary file for reading in pieces; each read waits for the store as `read_bytes` does."""
    fs, path = filesystem(uri)
    file = cast(IO[bytes], fs.open(path, "rb"))
    return file if is_local(uri) else cast(IO[bytes], io.BufferedReader(_PatientFile(uri, file), 2**16))


class _PatientFile(io.RawIOBase):
    """A remote file that is opened again, at the same position, after its connection broke."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self._uri, self._file, self._position = uri, file, 0

    def readinto(self, buffer: Any) -> int:
        data = _read_some(self._uri, self, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def attempt(self, count: int) -> bytes:
        """Read the next bytes. After any error the next attempt begins with a new connection."""
        try:
            if self._file.closed:
                fs, path = filesystem(self._uri)
                self._file = fs.open(path, "rb")
                self._file.seek(self._position)
            data = self._file.read(count)
        except Exception:
            with suppress(Exception):
                self._file.close()
            raise
        self._position += len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self._position = self._file.seek(offset, whence)
        elif whence == os.SEEK_CUR:
            self._position += offset
        else:
            self._position = offset
        self._file.seek(self._position)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        with suppress(Exception):
            self._file.close()
        super().close()


@_guarded("read")
def _read_some(uri: str, file: _PatientFile, count: int) -> bytes:
    return file.attempt(count)


@_guarded("upload to", writes=True)
def upload(local: str | Path, uri: str) -> None:
    """Copy one local file to a URI; readers never see a part of it."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.put_file(str(local), path)
        return
    target = Path(path)
    make_folder(target.parent)
    with replacing(target) as partial:
        shutil.copyfile(local, partial)
