"""LSUN: LMDB environments whose values are encoded images."""

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
_COUNTERS = frozenset({b"length", b"num-samples", b"__len__", b"__keys__"})  # that other tools keep beside the images
_HEX = "hex-"

_lock = threading.Lock()
_environments: dict[str, lmdb.Environment] = {}  # LMDB forbids a process to open the same file twice
_users: Counter[str] = Counter()


def list_images(files: Files) -> Listing:
    """The keys of one environment as paths, or of several below the name of the folder or file that each is in.

    A token is that of the whole file: LMDB keeps no checksums or times.
    """
    paths = [
        path for path in files.tokens if NAMES.fullmatch(path.rpartition("/")[2]) and not path.endswith("lock.mdb")
    ]
    above = {path: f"{_name(path)}/" if len(paths) > 1 else "" for path in paths}
    images = []
    for path in paths:
        try:
            with _environment(files.uri(path), files.tokens[path]) as environment, environment.begin() as transaction:
                for key in transaction.cursor().iternext(keys=True, values=False):
                    if key not in _COUNTERS:
                        images.append(SourceImage(above[path] + _path(key), None, files.tokens[path]))
        except _errors() as error:
            raise StepError(
                f"data.source={files.source}: {path} is no LMDB environment ({one_line(error)}); copy it again"
            ) from error
    places = {above[path]: (files.uri(path), files.tokens[path]) for path in paths}
    return Listing(images, partial(_open, places), reader="lsun")


def _name(path: str) -> str:
    """`bedroom_train_lmdb/data.mdb` is told by its folder, `cars.lmdb` by its name."""
    folder, _, name = path.rpartition("/")
    return folder if name == "data.mdb" else f"{folder}/{name}".lstrip("/")


def _path(key: bytes) -> str:
    """A key as a path: as it is if that is safe and can be told from hexadecimal."""
    try:
        text = key.decode("ascii")
    except UnicodeDecodeError:
        return _HEX + key.hex()
    plain = re.fullmatch(r"[\w.,=@+-]+(/[\w.,=@+-]+)*", text) and ".." not in text.split("/")
    return text if plain and not text.startswith(_HEX) else _HEX + key.hex()


def _key(path: str) -> bytes:
    return bytes.fromhex(path.removeprefix(_HEX)) if path.startswith(_HEX) else path.encode()


@contextmanager
def _open(places: dict[str, tuple[str, str]]) -> Iterator[Read]:
    """From several threads: each read has a transaction of its own."""
    with ExitStack() as stack:
        opened = {above: stack.enter_context(_environment(*place)) for above, place in places.items()}

        def read(path: str) -> bytes:
            above = (
                next(iter(opened)) if len(opened) == 1 else next(above for above in opened if path.startswith(above))
            )
            with opened[above].begin() as transaction:
                value = transaction.get(_key(path.removeprefix(above)))
            if value is None:
                raise KeyError(path)
            return value

        yield read


@contextmanager
def _environment(uri: str, token: str) -> Iterator[lmdb.Environment]:
    """An environment of this process, shared by all that use it at the same time; a remote one is copied here first."""
    import lmdb

    with local_copy(uri, token) as local:
        path = str(local)
        with _lock:
            if not _users[path]:
                # One file without its lock: the source may be read-only, and nobody writes to it.
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


def _errors() -> type[Exception]:
    import lmdb

    return lmdb.Error
