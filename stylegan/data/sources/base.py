"""Records and rules that all source formats share: listed images, safe names, tokens of files, signatures of listings.

A token is a short text that changes when an image or a file may have changed. Paths, labels and tokens of all images
together give the signature of a source, which is part of the key of its shards.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import posixpath
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from stylegan import storage
from stylegan.data.decode import UnreadableImage
from stylegan.errors import StepError, UnavailableError, UserError, one_line

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        "png",
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "webp",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "tga",
        "jp2",
        "avif",
    )
)
LABEL_FILES = ("dataset.json", "list_attr_celeba.txt", "list_attr_celeba.csv")  # used without `data.label_file`
LARGEST = 2**30  # bytes of one encoded image, or of one file with labels; more would fill the memory
NO_PICTURES, DEAD_LINKS = "files without the ending of a picture", "links to nothing"  # counted in `Files.left_out`

# What parsers raise at damaged bytes. Reading the same bytes again would end in the same way.
DAMAGE = (
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    UnreadableImage,
)

# Prefix for the path of a label file above the common folder of all images. No path of an image begins with it.
ABOVE = "../"

Label = int | tuple[int, ...] | None
Read = Callable[[str], bytes | np.ndarray]
Opener = Callable[[], AbstractContextManager[Read]]


class SourceImage(NamedTuple):
    """One listed image.

    Attributes:
        path: relative path, unique in its source; its parts are separated by `/`, and none is `..`.
        label: a class number from 0, a vector of attributes that are 0 or 1, or None.
        token: changes when the image may have changed.
    """

    path: str
    label: Label
    token: str


@dataclass(frozen=True)
class Source:
    """A listed source. Listing opens no image.

    Only one of `label_names` and `attribute_names` has entries.

    Attributes:
        uri: `data.source`.
        signature: digest of the listing with its labels.
        images: sorted by path.
        label_names: names of the classes; empty if the images have no class numbers.
        attribute_names: names of the entries of the attribute vectors; empty if the images have no attributes.
        open: returns a context manager that yields a read function. The function takes a `SourceImage.path` and returns
            the bytes of an encoded image, or uint8 pixels [H, W] or [H, W, 3]. `open` can be pickled and called in any
            process. The read function may be called from several threads. It raises StepError if the store does not
            answer. Any other exception concerns only the image that was read: one of `DAMAGE` proves that its bytes are
            unusable, and after any other a later attempt may succeed.
        reader: name of the code that `open` reads with. It is part of the key under which the newest set of a source is
            found, so it must never change.
    """

    uri: str
    signature: str
    images: Sequence[SourceImage]
    label_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    open: Opener
    reader: str


class Files(NamedTuple):
    """The files that a format lists: one file, the files of a pattern, or all files of a folder except its images.

    Attributes:
        source: `data.source`, for messages.
        root: URI of the folder that the paths are relative to.
        tokens: path of each file -> its token.
        left_out: counts what this listing leaves out on purpose, by a few words for it.
        label_file: `data.label_file`.
        labels: whether the format should read its own labels.
        query: query of the URL including its `?`, or nothing.
    """

    source: str
    root: str
    tokens: dict[str, str]
    left_out: Counter[str]
    label_file: str | None = None
    labels: bool = True
    query: str = ""

    def uri(self, path: str) -> str:
        """Return the complete URI of one file."""
        return storage.join(self.root, path) + self.query

    def wants(self, path: str) -> bool:
        """Return True if a member of an archive is an image or may be a label file."""
        return not is_junk(path) and (is_image(path) or is_label_file(path, self.label_file))


@dataclass(frozen=True)
class Listing:
    """The images and possible label files that one format listed.

    Attributes:
        images: in any order, with the labels that the format itself contains. Of several images with one path the last
            one counts.
        open: as `Source.open`, for the images and for `files`.
        reader: as `Source.reader`.
        files: path of each file that may contain labels -> its token.
        folders: True if the paths are paths of files. Folders that all images share are then removed from the paths,
            and the first folder of what remains may be a class.
    """

    images: list[SourceImage]
    open: Opener
    reader: str
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    folders: bool = False


def is_image(path: str) -> bool:
    """Return True if the path has the ending of an image."""
    return posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_label_file(path: str, label_file: str | None) -> bool:
    """Return True if a path in a source may be its label file."""
    return posixpath.basename(path) in LABEL_FILES or bool(label_file and path.endswith(label_file))


def is_junk(path: str) -> bool:
    """Return True for files of the operating system, not of the data set: hidden ones and those in `__MACOSX`."""
    return "/." in path or path.startswith((".", "__MACOSX/")) or "/__MACOSX/" in path


def safe_path(source: str, name: str, *, backslash: bool) -> str:
    """Return the name of an archive member as a path: parts separated by `/`, without `./` and empty parts.

    Args:
        backslash: whether a backslash separates parts too, as on Windows. Elsewhere it is a letter as any other.

    Raises:
        StepError: the name is absolute or contains `..`, here or on Windows. Unpacking such an archive would write files
            outside the target folder, so none of it is used.
    """
    if "\\" in name:
        separated = name.replace("\\", "/")
        if not backslash:
            safe_path(source, separated, backslash=True)
        else:
            name = separated
    if not name.startswith("/") and (name.startswith("./") or "//" in name or "/./" in name):
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:/", name):
        raise StepError(
            f"data.source={source}: has a member named {name[:100]!r}, which leads out of the archive; members must have relative names "
            "without `..`: make the archive again"
        )
    return name


def stat_token(facts: os.stat_result) -> str:
    """Return the token of a local file, from its size and modification time."""
    return f"{facts.st_size}-{facts.st_mtime_ns}"


def require_regular(path: str, facts: os.stat_result) -> None:
    """Raise StepError if a local path is neither a file nor a folder: reading a pipe or a device may never end."""
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        raise StepError(
            f"data.source={path}: is a pipe, a socket or a device; copy its content to a file and give that"
        )


def require_size(num_bytes: int) -> None:
    """Raise UnreadableImage if a file, member or row is larger than any picture, before it is read."""
    if num_bytes > LARGEST:
        raise UnreadableImage(f"{num_bytes:,} bytes; at most {LARGEST:,} are allowed for one image", "too large")


def read_whole(uri: str, most: int = LARGEST) -> bytes:
    """Read a whole file that is no image, such as a table of labels.

    Raises:
        FileNotFoundError: no such file.
        StepError: it has more than `most` bytes, or its store does not answer.
    """
    web = uri.startswith(("http://", "https://"))  # does not always say how long a file is
    if not web and (num_bytes := storage.size(uri)) > most:
        raise StepError(
            f"{uri}: has {num_bytes:,} bytes, where at most {most:,} are read; it is another kind of file, or damaged: get it again"
        )
    return storage.read_bytes(uri)


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Raise StepError, in one line with the cure, for every failure of the block to list or open a source.

    Args:
        source: `data.source`, for messages.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise StepError(
            f"data.source={source}: does not fit into the memory of this machine; give a part of it, or use a machine with more"
        ) from error
    except DAMAGE as error:
        raise StepError(
            f"data.source={source}: is damaged, or not what its name says ({type(error).__name__}: {one_line(error)}); "
            "copy or make it again"
        ) from error
    except Exception as error:
        if not storage.is_storage_error(error):
            raise
        kind = StepError if storage.is_local(source) else UnavailableError
        raise kind(
            f"data.source={source}: cannot be read: {one_line(error)}; check that it is there and may be read, "
            "then run the same command again"
        ) from error


@contextmanager
def open_explained(opener: Opener, source: str) -> Iterator[Read]:
    """Yield the read function of an opener. Failures to open become StepError, as `explained` says."""
    with ExitStack() as stack:
        with explained(source):
            read = stack.enter_context(opener())
        yield read


def info_token(info: dict[str, Any]) -> str:
    """Return the token of a remote file, from the description of fsspec: its size and its ETag, MD5 or time."""
    marks = (info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
    return f"{info.get('size')}-{next((mark for mark in marks if mark is not None), '')}"


def _common_folder(paths: Iterable[str]) -> str:
    """Return the folders that all paths share, with a slash at the end, or an empty string."""
    folders = {path.rpartition("/")[0] for path in paths}
    common = os.path.commonpath(folders) if folders and all(folders) else ""
    return f"{common}/" if common else ""


def relative(listing: Listing) -> Listing:
    """Return the listing with paths relative to the innermost folder that contains all its images and label files."""
    if not listing.folders:
        return listing

    # Find the folder. It must also contain the label files that are used without being named.
    label_files = [path for path in listing.files if posixpath.basename(path) in LABEL_FILES]
    prefix = _common_folder(chain((image.path for image in listing.images), label_files))
    if not prefix:
        return listing

    # Remove the folder from the paths. The file that `data.label_file` names may be outside of it.
    cut = len(prefix)
    images = [SourceImage(image.path[cut:], image.label, image.token) for image in listing.images]
    files = {
        path[cut:] if path.startswith(prefix) else f"{ABOVE}{path}": token for path, token in listing.files.items()
    }
    return replace(listing, images=images, files=files, open=partial(_open_below, listing.open, prefix), reader="base")


@contextmanager
def _open_below(opener: Opener, prefix: str) -> Iterator[Read]:
    """Yield a read function that takes the paths of `relative`."""
    with opener() as read:
        yield lambda path: read(path.removeprefix(ABOVE) if path.startswith(ABOVE) else prefix + path)


def in_order(images: Iterable[SourceImage]) -> list[SourceImage]:
    """Sort the images by path. Of several with the same path, keep only the last one, as unpacking an archive would."""
    ordered = sorted(images, key=lambda image: image.path)
    if any(image.path == after.path for image, after in pairwise(ordered)):
        ordered = list({image.path: image for image in ordered}.values())
    return ordered


def signature(images: Iterable[SourceImage], names: Sequence[Sequence[str]]) -> str:
    """Return a digest of the paths, tokens and labels of images in this order, and of the names of labels.

    Returns:
        16 hexadecimal digits of a SHA-256.

    Raises:
        StepError: the path of an image is not UTF-8.
    """
    digest = hashlib.sha256(json.dumps(names).encode())
    for image in images:
        try:
            digest.update(f"{image.path}\0{image.token}\0{image.label}\n".encode())
        except UnicodeEncodeError:
            shown = image.path.encode(errors="surrogateescape")
            raise StepError(
                f"data.source: the name {shown!r} is not UTF-8, as all names must be; rename that file"
            ) from None
    return digest.hexdigest()[:16]
