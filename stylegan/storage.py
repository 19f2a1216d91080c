"""Every byte of storage, through fsspec: a URI is a local path or any fsspec URL.

Writes are whole and atomic (a temporary file and a rename locally, one put on object stores), so a reader sees the old
bytes or the new ones. A folder counts as complete once its marker file exists, and the marker is written last.
Credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...), never from a config.
"""

from __future__ import annotations

import json
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

import fsspec

from stylegan.errors import StepError, UnavailableError

P = ParamSpec("P")
R = TypeVar("R")


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
        options = {"use_listings_cache": False}  # s3fs caches listings per process: with several writers they go stale
    elif uri.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout

        # By default aiohttp gives up on any file after five minutes, and leaves HTTPS_PROXY unread.
        options = {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60), "trust_env": True}}
    try:
        return cast(tuple[fsspec.AbstractFileSystem, str], fsspec.url_to_fs(uri, **options))
    except (ValueError, ImportError) as error:  # no such protocol, or its package is not installed
        raise StepError(f"storage: cannot use {uri}: {error}; give a folder or a URL such as s3://bucket/path") from error


def _one_line(action: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Turn what a file system raises into one line; a file missing for reading stays `FileNotFoundError`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                missing = isinstance(error, FileNotFoundError) and action not in ("write", "upload to")
                if missing or isinstance(error, StepError) or not _is_storage_error(error):
                    raise
                reason = " ".join(str(error).split()) or type(error).__name__
                uri = str(args[-1] if action == "upload to" else args[0])
                kind = StepError if is_local(uri) else UnavailableError
                raise kind(
                    f"storage: cannot {action} {uri}: {reason}; check free space, permissions and credentials of that store, "
                    "then run the same command again"
                ) from error

        return guarded

    return decorate


def _is_storage_error(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in {"botocore", "aiobotocore", "aiohttp", "s3fs"}


@_one_line("read")
def read_bytes(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError if there is none, StepError if the store does not answer."""
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path))


@_one_line("write")
def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole object; readers never see a part of it. Raises StepError if the store refuses."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def read_json(uri: str) -> Any:
    """The object parsed as JSON. Raises as `read_bytes`, and StepError if it is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StepError(f"storage: {uri} is not valid JSON ({error}); delete it and run the same command again") from error


def write_json(uri: str, value: Any) -> None:
    """Write a value as readable JSON."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


@_one_line("look up")
def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


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
    """Copy one file here, atomically."""
    fs, path = filesystem(uri)
    target = Path(local)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        fs.get_file(path, str(partial))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@_one_line("read")
def open_read(uri: str) -> IO[bytes]:
    """An open binary file for reading in pieces."""
    fs, path = filesystem(uri)
    return cast(IO[bytes], fs.open(path, "rb"))


@_one_line("upload to")
def publish(local: str | Path, uri: str) -> None:
    """Move a finished local folder to `uri`. Its files arrive in the order of their names except `manifest.json`, which is last."""
    source = Path(local)
    fs, path = filesystem(uri)
    if is_local(uri):
        if Path(path).exists():  # an earlier attempt that was cut short, or the same content
            shutil.rmtree(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(source), path)
        return
    files = sorted((file for file in source.rglob("*") if file.is_file()), key=lambda file: (file.name == "manifest.json", file))
    for file in files:
        fs.put_file(str(file), posixpath.join(path, file.relative_to(source).as_posix()))
    shutil.rmtree(source)
