"""Every byte of storage, through fsspec: a URI is a local path or any fsspec URL.

Writes are whole and atomic (a temporary file and a rename locally, one put on object stores), so a reader sees the old
bytes or the new ones. A folder counts as complete once its marker file exists, and the marker is written last.
Credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), never from a config.

A store that throttles, times out or breaks off is waited for, see retry.py.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

import fsspec

from stylegan.errors import StepError, UnavailableError, one_line
from stylegan.retry import answer_of, patient, text_of

P = ParamSpec("P")
R = TypeVar("R")
PIECE = 16 * 2**20  # bytes: larger files come in pieces, so that a reset costs one of them


def is_local(uri: str) -> bool:
    """Whether the URI is a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI."""
    return posixpath.join(uri, *parts)


def name(uri: str) -> str:
    """The last part of a URI."""
    return posixpath.basename(uri.rstrip("/"))


def absolute(uri: str) -> str:
    """A local path made absolute, any other URI as it is."""
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))) if is_local(uri) else uri.rstrip("/")


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a URI, and the path in it."""
    options: dict[str, Any] = {}
    if uri.startswith(("s3://", "s3a://")):
        # s3fs caches listings per process: with several writers they go stale. A dead connection is given up after a minute.
        config = {"connect_timeout": 10, "read_timeout": 60, "retries": {"mode": "standard"}}
        options = {"use_listings_cache": False, "config_kwargs": config}
    elif uri.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout

        # By default aiohttp gives up on any file after five minutes, and leaves HTTPS_PROXY unread.
        options = {
            "client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60), "trust_env": True}
        }
    try:
        fs, path = cast(tuple[fsspec.AbstractFileSystem, str], fsspec.url_to_fs(uri, **options))
        fs.retries = 1  # s3fs has a loop of its own, without an end to its patience that could be told
        return fs, path
    except (ValueError, ImportError) as error:  # no such protocol, or its package is not installed
        raise StepError(
            f"storage: cannot use {uri}: {error}; give a folder or a URL such as s3://bucket/path"
        ) from error


def _one_line(action: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Wait while the store fails, and turn what it raises into one line; a file missing for reading stays `FileNotFoundError`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            uri = str(args[-1] if action == "upload to" else args[0])
            try:
                return function(*args, **kwargs) if is_local(uri) else patient(lambda: function(*args, **kwargs), uri)
            except Exception as error:
                missing = isinstance(error, FileNotFoundError) and action not in ("write", "upload to")
                if missing or isinstance(error, StepError) or not _is_storage_error(error):
                    raise
                kind = StepError if is_local(uri) else UnavailableError
                raise kind(
                    f"storage: cannot {action} {uri}: {text_of(error)}; check free space, permissions and credentials of that store, "
                    "then run the same command again"
                ) from error

        return guarded

    return decorate


def _is_storage_error(error: Exception) -> bool:
    packages = {
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
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in packages


@_one_line("read")
def read_bytes(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError if there is none, StepError if the store does not answer."""
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path))


@_one_line("read")
def read_range(uri: str, start: int, length: int) -> bytes:
    """`length` bytes of a file from a place on; fewer at its end, none behind it."""
    fs, path = filesystem(uri)
    try:
        return cast(bytes, fs.cat_file(path, start=start, end=start + length))
    except Exception as error:
        if answer_of(error)[0] == 416:  # range not satisfiable
            return b""
        raise


@_one_line("write")
def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object; readers never see a part of it. Raises StepError if the store refuses."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_local(target, data)


def write_local(path: Path, data: bytes) -> None:
    """Atomically write and fsync a local file outside storage.root. Raises OSError."""
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a partial file that takes the place of `path` at the end of the block.

    Nobody sees a half-written file under its name. If the block fails the partial file is removed and `path` stays.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(uri: str) -> Any:
    """The object parsed as JSON. Raises as `read_bytes`, and StepError if it is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StepError(
            f"storage: {uri} is not valid JSON ({error}); delete it and run the same command again"
        ) from error


def write_json(uri: str, value: Any) -> None:
    """Write a value as readable JSON."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json_lines(uri: str, limit: int | None = None) -> list[Any]:
    """Read a file of one JSON value per line, at most the first `limit`; a last line without its end is not complete yet.

    Raises:
        FileNotFoundError: no such file.
        StepError: a line is not JSON, or storage refuses.
    """
    if limit is None:
        lines = read_bytes(uri).splitlines(keepends=True)
    else:
        with open_read(uri) as file:
            lines = list(islice(file, limit))
    try:
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except ValueError as error:
        raise StepError(
            f"storage: {uri} has a line that is not JSON ({one_line(error)}); delete it and run the same command again"
        ) from error


@_one_line("look up")
def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


@_one_line("look up")
def size(uri: str) -> int:
    """Bytes of a file. Raises FileNotFoundError if there is none."""
    fs, path = filesystem(uri)
    found = fs.size(path)
    if found is None:
        raise StepError(
            f"storage: the store of {uri} does not tell its size; copy the file to a folder or bucket first"
        )
    return int(found)


@_one_line("list")
def names(uri: str) -> list[str]:
    """The names directly below a folder, sorted; empty if there is no such folder."""
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    if entries == [path]:  # a file lists itself
        return []
    found = [posixpath.basename(entry.rstrip("/")) for entry in entries]
    return sorted(name for name in found if name and not name.endswith(".partial"))


@_one_line("delete")
def delete(uri: str) -> None:
    """Remove a file or a whole folder; nothing happens if it is not there."""
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


@_one_line("read")
def download(uri: str, local: str | Path) -> None:
    """Copy one file here, atomically and whole: its length is compared with what the store says."""
    fs, path = filesystem(uri)
    target = Path(local)
    target.parent.mkdir(parents=True, exist_ok=True)
    about = fs.info(path)
    num_bytes, in_ranges = about.get("size"), about.get("partial", not uri.startswith("http"))  # http servers tell
    with replacing(target) as partial:
        if is_local(uri) or not in_ranges or not num_bytes or num_bytes <= PIECE:
            fs.get_file(path, str(partial))
        else:
            _download_pieces(uri, partial, num_bytes)
        found = partial.stat().st_size
        if num_bytes is not None and found != num_bytes:
            raise ConnectionError(f"{found:,} bytes came, the store says {num_bytes:,}")


def _download_pieces(uri: str, target: Path, num_bytes: int) -> None:
    """Four at a time: one connection seldom fills a network. Each has a patience of its own, so it counts from the last progress."""

    def fetch(start: int) -> None:
        length = min(PIECE, num_bytes - start)
        data = patient(lambda: _whole_range(uri, start, length), uri)
        os.pwrite(file.fileno(), data, start)

    with open(target, "wb") as file, ThreadPoolExecutor(4, "download") as pool:
        for _ in pool.map(fetch, range(0, num_bytes, PIECE)):
            pass


def _whole_range(uri: str, start: int, length: int) -> bytes:
    fs, path = filesystem(uri)
    data = cast(bytes, fs.cat_file(path, start=start, end=start + length))
    if len(data) != length:
        raise ConnectionError(f"{len(data):,} bytes came, {length:,} were asked for")
    return data


@_one_line("read")
def open_read(uri: str) -> IO[bytes]:
    """An open binary file for reading in pieces; each waits for the store as `read_bytes` does."""
    fs, path = filesystem(uri)
    file = cast(IO[bytes], fs.open(path, "rb"))
    return file if is_local(uri) else cast(IO[bytes], io.BufferedReader(_PatientFile(uri, file), 2**16))


class _PatientFile(io.RawIOBase):
    """A remote file that is opened again where it broke off."""

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self._uri, self._file, self._position = uri, file, 0

    def readinto(self, buffer: Any) -> int:
        data = _read_some(self._uri, self, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def attempt(self, count: int) -> bytes:
        """The next bytes; whatever goes wrong, the next attempt begins with a new connection."""
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

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (
            self._file.seek(offset, whence) if whence == 2 else offset + (self._position if whence == 1 else 0)
        )
        self._file.seek(self._position)
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        with suppress(Exception):
            self._file.close()
        super().close()


@_one_line("read")
def _read_some(uri: str, file: _PatientFile, count: int) -> bytes:
    return file.attempt(count)


@_one_line("upload to")
def upload(local: str | Path, uri: str) -> None:
    """Copy one file there; readers never see a part of it."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.put_file(str(local), path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        shutil.copyfile(local, partial)
