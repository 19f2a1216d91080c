"""A list of URLs, one in a line or in the column `url` of a table, of images that lie anywhere."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from stylegan import storage
from stylegan.data.cache import local_copy
from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import whole
from stylegan.data.sources.access.uris import is_secret, require_package, without_secrets
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage
from stylegan.errors import StepError, UnavailableError, one_line

NAMES = re.compile(r".*\.(txt|csv|tsv)", re.IGNORECASE)
PAUSES = (
    1.0,
    4.0,
    10.0,
)  # seconds before a web server is asked again: one of many that never answers must not hold up the rest
_LOCAL = re.compile(
    r"^(file|local)://|::"
)  # a list from elsewhere must not reach files of this machine, chained or not
_PASSING = (408, 425, 429)


class _Line(NamedTuple):
    """A URL of a list, where it stands in the file, and its label as text."""

    url: str
    start: int
    label: str | None


def list_images(files: Files) -> Listing:
    """Images are named by server and path of their URL. What signs a URL changes neither name nor token."""
    ((name, token),) = files.tokens.items()
    where = f"data.source={files.source}"
    with local_copy(files.uri(name), token) as path:
        content = path.read_bytes()
    images, texts, locator, protocols = [], [], Locator(2), set()
    for line in _lines(where, name, content):
        protocol = line.url.partition("://")[0]
        if protocol not in protocols:
            require_package(where, f"{protocol}://")
            protocols.add(protocol)
        unsigned = _unsigned(line.url)
        path_of = _path(unsigned)
        locator.add(path_of, line.start, len(line.url.encode()))
        images.append((path_of, f"{zlib.crc32(unsigned.encode()):08x}"))
        texts.append(line.label)
    labels, names = _labels(texts)
    found = [SourceImage(shown, label, mark) for (shown, mark), label in zip(images, labels, strict=True)]
    return Listing(found, partial(_open, files.uri(name), token, locator.seal()), reader="urls", label_names=names)


def _lines(where: str, name: str, content: bytes) -> Iterator[_Line]:
    """The lines with a URL. A first line with a column `url` makes it a table; `#` begins a remark."""
    start, header = 0, None
    delimiter = "\t" if name.lower().endswith(".tsv") else ","
    for number, raw in enumerate(content.splitlines(keepends=True)):
        text = raw.decode("utf-8-sig" if number == 0 else "utf-8", errors="replace").strip("\r\n")
        fields = next(csv.reader([text], delimiter=delimiter), []) if delimiter in text or header else [text]
        if number == 0 and "url" in [field.strip().lower() for field in fields]:
            header = [field.strip().lower() for field in fields]
        elif text.strip() and not text.startswith("#"):
            url, label = _fields(header, fields, text)
            place = raw.find(url.encode())
            if not re.match(r"[a-z][a-z0-9+.-]*://[^/]", url) or place < 0 or _LOCAL.search(url):
                raise StepError(
                    f"{where}: line {number + 1} holds no URL such as https://host/image.png but {_shown(url)!r}; mend that line"
                )
            yield _Line(url, start + place, label)
        start += len(raw)


def _fields(header: list[str] | None, fields: list[str], text: str) -> tuple[str, str | None]:
    """URL and label of a line."""
    if header is None:
        return text.strip(), None  # a URL may hold commas
    named = dict(zip(header, fields, strict=False))
    return named.get("url", "").strip(), named.get("label", "").strip() or None


def _shown(url: str) -> str:
    return without_secrets(url)[:80]


def _unsigned(url: str) -> str:
    """A URL without what signs it and when that expires, and without who asks."""
    parts = urlsplit(url)
    query = urlencode(
        [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if not is_secret(key)]
    )
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" + (f"?{query}" if query else "")


def _path(url: str) -> str:
    """The name of an image: server and path; what a query asks for as a digest, so that it stays apart."""
    parts = urlsplit(url)
    steps = [part for part in unquote(parts.path).split("/") if part not in ("", ".", "..")]
    path = "/".join([parts.netloc.replace("..", "_"), *steps])
    return f"{path}-{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}" if parts.query else path


def _labels(texts: list[str | None]) -> tuple[list[Label], tuple[str, ...]]:
    """Whole numbers are class numbers; other texts are names of classes, which count in their order."""
    given = {text for text in texts if text is not None}
    if all(re.fullmatch(r"\d{1,9}", text) for text in given):
        return [None if text is None else int(text) for text in texts], ()
    numbers = {name: number for number, name in enumerate(sorted(given))}
    return [None if text is None else numbers[text] for text in texts], tuple(sorted(given))


@contextmanager
def _open(uri: str, token: str, locator: Locator) -> Iterator[Read]:
    """The URLs stay in the list, since they may be signed."""
    with local_copy(uri, token) as path, open(path, "rb") as file:

        def read(name: str) -> bytes:
            start, size = locator[name]
            return _fetch(whole(os.pread(file.fileno(), size, start), size).decode())

        yield read


def _fetch(url: str) -> bytes:
    """Raises OSError if this one cannot be had, StepError if its store (not a web server) does not answer."""
    if url.startswith(("http://", "https://")):
        return _fetch_web(url)
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        raise OSError(f"{_shown(url)}: no such file") from None
    except UnavailableError as error:
        raise UnavailableError(_redacted(url, error)) from None


def _fetch_web(url: str) -> bytes:
    fs, path = storage.filesystem(url)
    for pause in (*PAUSES, None):
        try:
            return fs.cat_file(path)
        except Exception as error:  # of aiohttp, asyncio or the socket; whichever, it is about this URL
            status = getattr(error, "status", 404 if isinstance(error, FileNotFoundError) else None)
            refused = status is not None and 400 <= status < 500 and status not in _PASSING
            if refused or pause is None:
                raise OSError(_redacted(url, error)) from None
        time.sleep(pause)
    raise AssertionError


def _redacted(url: str, error: Exception) -> str:
    """Which URL failed and how. What the exception says may repeat the query, which may sign the URL."""
    status = getattr(error, "status", None)
    how = f"HTTP {status}" if status is not None else type(error).__name__ if urlsplit(url).query else one_line(error)
    return f"{_shown(url)}: {how}"
