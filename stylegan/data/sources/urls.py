"""List and read the images of a list of URLs: one URL in each line, or a table with the column `url`.

A URL may be signed. Signatures and other secrets stay in the list; they never become part of paths, tokens, pickles or
messages.
"""

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
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from fsspec.asyn import sync

from stylegan import storage
from stylegan.data.cache import local_copy
from stylegan.data.decode import UnreadableImage
from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import whole
from stylegan.data.sources.access.uris import require_package
from stylegan.data.sources.base import LARGEST, Files, Label, Listing, Read, SourceImage, require_size
from stylegan.errors import StepError, UnavailableError, one_line, shown
from stylegan.uris import is_secret, without_secrets

NAMES = re.compile(r".*\.(txt|csv|tsv)", re.IGNORECASE)
# Seconds between attempts to read from a web server. They are few, because one of many servers may never answer, and
# the other images must not wait for it.
PAUSES = (1.0, 4.0, 10.0)
# URLs of files on this machine, and chained URLs, which may contain them. A list from elsewhere must not read such
# files.
_LOCAL = re.compile(r"^(file|local)://|::(?![0-9a-fA-F:.%]*\])")  # the latter is no IPv6 address
_LONGEST_LINE = 2**24  # bytes
_TEMPORARY = (408, 425, 429)  # HTTP statuses 4xx after which the same request may work


class _Line(NamedTuple):
    """One URL of a list.

    Attributes:
        url: the URL as in the list.
        start: its offset in the file, in bytes.
        label: its label as text, or None.
    """

    url: str
    start: int
    label: str | None


def list_images(files: Files) -> Listing:
    """List the images under the server and path of their URLs. The signature of a URL changes neither path nor token.

    Raises:
        ConfigError: a URL belongs to an unknown store, or its store needs a package that is not installed.
        StepError: a line does not contain a URL, or contains one of a file on this machine.
    """
    ((name, token),) = files.tokens.items()
    where = f"data.source={files.source}"

    # Name the images, and note where their URLs are.
    unlabelled, texts, locator, protocols = [], [], Locator(2), set()
    urls: dict[str, tuple[str, str | None]] = {}  # path -> URL without its signature, and label
    for line in _lines(where, name, files.uri(name), token):
        protocol = line.url.partition("://")[0]
        if protocol not in protocols:
            require_package(where, f"{protocol}://")
            protocols.add(protocol)
        unsigned = _unsigned(line.url)
        path = _distinct(_path(unsigned), unsigned, urls)
        other = urls.setdefault(path, (unsigned, line.label))[1]
        if files.labels and other != line.label:
            raise StepError(
                f"{where}: gives {shown(path)} two labels, {shown(repr(other))} and {shown(repr(line.label))}; remove one of "
                "its lines or set data.labels=none"
            )
        locator.add(path, line.start, len(line.url.encode()))
        unlabelled.append(SourceImage(path, None, f"{zlib.crc32(unsigned.encode()):08x}"))
        texts.append(line.label)

    # Number the labels.
    labels, names = _labels(texts)
    images = [SourceImage(image.path, label, image.token) for image, label in zip(unlabelled, labels, strict=True)]
    opener = partial(_open_list, files.uri(name), token, locator.seal())
    return Listing(images, opener, reader="urls", label_names=names)


def _lines(where: str, name: str, uri: str, token: str) -> Iterator[_Line]:
    """Yield the lines with a URL. The list is a table if its first line has a column `url`. A `#` begins a remark.

    Args:
        where: beginning of error messages.
        name: name of the list; `.tsv` means that tabs separate the columns of a table.
        uri: of the list.
        token: of the list.

    Raises:
        StepError: a line does not contain a URL, or contains one of a file on this machine.
    """
    start, header = 0, None
    delimiter = "\t" if name.lower().endswith(".tsv") else ","
    for number, raw in enumerate(_raw_lines(where, uri, token)):
        # Split the line into fields. Only the first line may begin with a byte order mark.
        text = raw.decode("utf-8-sig" if number == 0 else "utf-8", errors="replace").strip("\r\n")
        fields = _fields(f"{where}: line {number + 1}", text, delimiter) if delimiter in text or header else [text]

        # The header of a table, or a line with a URL; remarks and empty lines are skipped.
        if number == 0 and "url" in [field.strip().lower() for field in fields]:
            header = [field.strip().lower() for field in fields]
        elif text.strip() and not text.startswith("#"):
            url, label = _url_and_label(header, fields, text)
            offset = raw.find(url.encode())  # -1 if the line was quoted or decoded in a way that changed the URL
            if not re.match(r"[a-z][a-z0-9+.-]*://[^/]", url) or offset < 0 or _LOCAL.search(url) or _is_split(url):
                raise StepError(
                    f"{where}: line {number + 1} contains {_shown(url)!r}; must be a URL such as https://host/image.png, not a file of "
                    "this machine: mend that line"
                )
            if storage.is_metadata_address(urlsplit(url).hostname or ""):
                raise StepError(
                    f"{where}: line {number + 1} contains {_shown(url)!r}, an address at which clouds give credentials to their machines; "
                    "remove that line"
                )
            yield _Line(url, start + offset, label)
        start += len(raw)


def _raw_lines(where: str, uri: str, token: str) -> Iterator[bytes]:
    """Yield the lines of a list with their ends. Raise StepError if one is longer than any URL."""
    with local_copy(uri, token) as local, open(local, "rb") as file:
        while part := file.readline(_LONGEST_LINE + 1):
            if len(part) > _LONGEST_LINE:
                raise StepError(f"{where}: has a line of more than {_LONGEST_LINE:,} bytes; it is no list of URLs")
            yield from part.splitlines(keepends=True)  # an end may also be a carriage return alone


def _fields(where: str, text: str, delimiter: str) -> list[str]:
    """Return the fields of a line of a table. Raise StepError if it is none."""
    try:
        return next(csv.reader([text], delimiter=delimiter), [])
    except csv.Error as error:
        raise StepError(f"{where} is no line of a table ({one_line(error)}); mend that line") from None


def _is_split(url: str) -> bool:
    """Return whether a URL cannot be parsed, such as one with half an IPv6 address."""
    try:
        return not urlsplit(url).netloc
    except ValueError:
        return True


def _url_and_label(header: list[str] | None, fields: list[str], text: str) -> tuple[str, str | None]:
    """Return the URL and the label of a line."""
    if header is None:
        return text.strip(), None  # the whole line, because a URL may contain commas
    named = dict(zip(header, fields, strict=False))
    return named.get("url", "").strip(), named.get("label", "").strip() or None


def _shown(url: str) -> str:
    """Return the beginning of a URL without its secrets, for messages."""
    try:
        return without_secrets(url)[:80]
    except ValueError:  # it cannot be parsed, so nobody knows where its secrets are
        return url.partition("://")[0] + "://..."


def _unsigned(url: str) -> str:
    """Return a URL without its signature, the time when that expires, and user names or passwords."""
    parts = urlsplit(url)
    query = urlencode(
        [(key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if not is_secret(key)]
    )
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" + (f"?{query}" if query else "")


def _path(url: str) -> str:
    """Return the path of an image: the server and path of its URL, then a digest of the query if there is one."""
    parts = urlsplit(url)
    folders = [part for part in unquote(parts.path).split("/") if part not in ("", ".", "..")]
    path = "/".join([parts.netloc.replace("..", "_"), *folders])
    return f"{path}-{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}" if parts.query else path


def _distinct(path: str, url: str, known: dict[str, tuple[str, str | None]]) -> str:
    """Return the path, with a digest of the URL if another URL has that path already: `http://` or `//` make no path."""
    if known.get(path, (url,))[0] == url:
        return path
    return f"{path}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _labels(texts: list[str | None]) -> tuple[list[Label], tuple[str, ...]]:
    """Return the labels and the names of their classes.

    If all texts are whole numbers, they are class numbers without names. Otherwise the texts are the names of the
    classes, which are numbered in sorted order.
    """
    given = {text for text in texts if text is not None}
    if all(re.fullmatch(r"\d{1,9}", text) for text in given):
        return [None if text is None else int(text) for text in texts], ()
    numbers = {name: number for number, name in enumerate(sorted(given))}
    return [None if text is None else numbers[text] for text in texts], tuple(sorted(given))


@contextmanager
def _open_list(uri: str, token: str, locator: Locator) -> Iterator[Read]:
    """Yield a function that reads one image.

    It takes the URL from the list each time. URLs may be signed, so they are not copied.
    """
    with local_copy(uri, token) as path, open(path, "rb") as file:

        def read(name: str) -> bytes:
            start, size = locator[name]
            return _fetch(whole(os.pread(file.fileno(), size, start), size).decode())

        yield read


def _fetch(url: str) -> bytes:
    """Return the bytes at a URL.

    Raises:
        OSError: this file cannot be read, or its web server does not answer.
        UnavailableError: its store, which is not a web server, does not answer.
    """
    if url.startswith(("http://", "https://")):
        return _fetch_web(url)
    try:
        data = storage.read_range(url, 0, LARGEST + 1)
        require_size(len(data))
        return data
    except FileNotFoundError:
        raise OSError(f"{_shown(url)}: no such file") from None
    except UnavailableError as error:
        raise type(error)(_redacted(url, error)) from None


def _fetch_web(url: str) -> bytes:
    """Return the bytes at a URL of a web server, with retries, or raise OSError."""
    fs, path = storage.filesystem(url, cautious=True)
    for pause in (*PAUSES, None):
        try:
            return sync(fs.loop, _get, fs, path)
        except UnreadableImage:
            raise
        except Exception as error:  # from aiohttp, asyncio or the socket: all of them concern only this URL
            status = getattr(error, "status", None)
            refused = (status is not None and 400 <= status < 500 and status not in _TEMPORARY) or isinstance(
                getattr(error, "os_error", error), PermissionError
            )
            if refused or pause is None:
                raise OSError(_redacted(url, error)) from None
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


async def _get(fs: Any, url: str) -> bytes:
    """Return the bytes at a URL.

    Raises:
        OSError: it is answered with a page, such as one that asks for a login or says that the server is busy.
        UnreadableImage: it is answered with more bytes than any picture has. These are not read.
    """
    session = await fs.set_session()
    async with session.get(fs.encode_url(url)) as answer:
        answer.raise_for_status()
        require_size(answer.content_length or 0)
        parts, num_bytes = [], 0
        async for part in answer.content.iter_any():
            parts.append(part)
            num_bytes += len(part)
            require_size(num_bytes)
    data = b"".join(parts)
    if data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise OSError("the answer is a page, not an image")
    return data


def _redacted(url: str, error: Exception) -> str:
    """Return a message with the URL and the reason of a failure, without secrets."""
    status = getattr(error, "status", None)
    if status is not None:
        reason = f"HTTP {status}"
    elif urlsplit(url).query:
        reason = type(error).__name__  # the text may repeat the query, which may contain a signature
    else:
        reason = one_line(error)
    return f"{_shown(url)}: {reason}"
