"""List and read LSUN: LMDB environments whose values are encoded images."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from stylegan.data.cache import local_copy
from stylegan.data.sources.base import Files, Listing, Read, SourceImage
from stylegan.errors import StepError, one_line

if TYPE_CHECKING:
    import lmdb

NAMES = re.compile(r"data\.mdb|.*\.(lmdb|mdb)", re.IGNORECASE)
_COUNTERS = frozenset({b"length", b"num-samples", b"__len__", b"__keys__"})  # keys of other tools, which are not images
_HEX = "hex-"  # prefix of a path that is a key in hexadecimal

_lock = threading.Lock()
# LMDB forbids a process to open the same file twice, so all users of a file share one environment.
_environments: dict[str, lmdb.Environment] = {}  # local path -> open environment
_users: Counter[str] = Counter()  # local path -> number of users


def list_images(files: Files) -> Listing:
    """List the keys of the environments as paths.

    With several environments each path begins with the name of its environment. The token of an image is the token of
    its whole file: LMDB stores no checksums or times.

    Raises:
        StepError: a file is not an LMDB environment.
    """
    # Find the environments, and what their paths begin with.
    paths = [
        path for path in files.tokens if NAMES.fullmatch(path.rpartition("/")[2]) and not path.endswith("lock.mdb")
    ]
    prefixes = {path: f"{_name(path)}/" if len(paths) > 1 else "" for path in paths}

    # List their keys.
    images = []
    for path in paths:
        try:
            with _environment(files.uri(path), files.tokens[path]) as environment, environment.begin() as transaction:
                for key in transaction.cursor().iternext(keys=True, values=False):
                    if key not in _COUNTERS:
                        images.append(SourceImage(prefixes[path] + _path(key), None, files.tokens[path]))
        except _lmdb_error() as error:
            raise StepError(
                f"data.source={files.source}: {path} is not an LMDB environment ({one_line(error)}); copy it again"
            ) from error

    files_by_prefix = {prefixes[path]: (files.uri(path), files.tokens[path]) for path in paths}
    return Listing(images, partial(_open_environments, files_by_prefix), reader="lsun")


def _name(path: str) -> str:
    """Return the name of an environment: the folder of `bedroom_lmdb/data.mdb`, but the whole path of `cars.lmdb`."""
    folder, _, name = path.rpartition("/")
    return folder if name == "data.mdb" else f"{folder}/{name}".lstrip("/")


def _path(key: bytes) -> str:
    """Return a key as a path.

    The path is the text of the key if that is a safe path which does not begin with `hex-`. Otherwise it is `hex-` and
    the hexadecimal digits of the key.
    """
    try:
        text = key.decode("ascii")
    except UnicodeDecodeError:
        return _HEX + key.hex()
    plain = re.fullmatch(r"[\w.,=@+-]+(/[\w.,=@+-]+)*", text) and ".." not in text.split("/")
    return text if plain and not text.startswith(_HEX) else _HEX + key.hex()


def _key(path: str) -> bytes:
    """Return the key of a path that `_path` made."""
    return bytes.fromhex(path.removeprefix(_HEX)) if path.startswith(_HEX) else path.encode()


@contextmanager
def _open_environments(files_by_prefix: dict[str, tuple[str, str]]) -> Iterator[Read]:
    """Yield a function that reads the value of one key, in a transaction of its own so that threads can share it.

    Args:
        files_by_prefix: prefix of the paths of an environment -> URI and token of its file.
    """
    with ExitStack() as stack:
        opened = {
            prefix: stack.enter_context(_environment(uri, token)) for prefix, (uri, token) in files_by_prefix.items()
        }

        def read(path: str) -> bytes:
            prefix = next(
                prefix for prefix in opened if path.startswith(prefix)
            )  # that of a single environment is empty
            with opened[prefix].begin() as transaction:
                value = transaction.get(_key(path.removeprefix(prefix)))
            if value is None:
                raise KeyError(path)
            return value

        yield read


@contextmanager
def _environment(uri: str, token: str) -> Iterator[lmdb.Environment]:
    """Yield an open environment, which all users in this process share. A remote file is copied to this machine."""
    import lmdb

    with local_copy(uri, token) as local:
        path = str(local)
        with _lock:
            if not _users[path]:
                # Without LMDB's lock file: the source may be read-only, and nobody writes to it.
                _environments[path] = lmdb.open(
                    path, subdir=False, readonly=True, lock=False, readahead=False, max_readers=1
                )
            _users[path] += 1
        try:
            yield _environments[path]
        finally:
            with _lock:
                _users[path] -= 1
                if not _users[path]:
                    _environments.pop(path).close()


def _lmdb_error() -> type[Exception]:
    """Return the class of LMDB's exceptions; the package is imported only when it is used."""
    import lmdb

    return lmdb.Error
