"""What every source is made of: records of images, rules for names, tokens of files and the signature of a listing."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from stylegan import storage
from stylegan.errors import StepError

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
LABEL_FILES = ("dataset.json", "list_attr_celeba.txt", "list_attr_celeba.csv")  # found without being named

ABOVE = "../"  # before the path of a label file that lies above the folder of all images; no image has such a path

Label = int | tuple[int, ...] | None
Read = Callable[[str], bytes | np.ndarray]
Opener = Callable[[], AbstractContextManager[Read]]


class SourceImage(NamedTuple):
    """One image that was listed.

    Attributes:
        path: unique in its source, parts separated by `/`, relative, never with `..`.
        label: a class number from 0, a vector of attributes 0 and 1, or None.
        token: another one when the image may have changed.
    """

    path: str
    label: Label
    token: str


@dataclass(frozen=True)
class Source:
    """A listed source; no image was opened.

    Attributes:
        uri: `data.source`.
        signature: digest of the listing with its labels.
        images: sorted by path.
        label_names: of the classes; empty if images carry no class numbers.
        attribute_names: of the entries of attribute vectors; empty if images carry none. Never both.
        open: gives a context with a function from `SourceImage.path` to the bytes of an encoded image, or to uint8 pixels [H, W]
            or [H, W, 3]. It can be pickled and opened in any process; the function may be called from several threads, and raises
            StepError if the store does not answer. Any other exception is about that one image.
        reader: name of what `open` reads with, part of the key under which the newest set of a source is found; must never change.
    """

    uri: str
    signature: str
    images: Sequence[SourceImage]
    label_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    open: Opener
    reader: str


class Files(NamedTuple):
    """The files that a format is given to read: one, those of a pattern, or all of a folder that are no images.

    Attributes:
        source: `data.source`, for messages.
        root: URI of the folder that paths are relative to.
        tokens: path -> what changes when the file changes.
        label_file: `data.label_file`.
        labels: whether labels that the format itself has are wanted.
        query: what stands after the path of a URL, with its `?`.
    """

    source: str
    root: str
    tokens: dict[str, str]
    label_file: str | None = None
    labels: bool = True
    query: str = ""

    def uri(self, path: str) -> str:
        """The whole URI of one file."""
        return storage.join(self.root, path) + self.query

    def wants(self, path: str) -> bool:
        """Whether a member of an archive is an image or may be a file of labels."""
        return not is_junk(path) and (is_image(path) or is_label_file(path, self.label_file))


@dataclass(frozen=True)
class Listing:
    """What a format found.

    Attributes:
        images: in any order; of equal paths the last one counts. Labels are those that the format knows.
        open: as `Source.open`, for images and `files`.
        reader: as `Source.reader`.
        files: path -> token of files that may hold labels.
        folders: the paths are those of files, so folders above all of them are left out and the first one may be a class.
    """

    images: list[SourceImage]
    open: Opener
    reader: str
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    folders: bool = False


def is_image(path: str) -> bool:
    """Whether the ending is that of an image."""
    return posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_label_file(path: str, label_file: str | None) -> bool:
    """Whether a path in a source is one that labels are looked for in."""
    return posixpath.basename(path) in LABEL_FILES or bool(label_file and path.endswith(label_file))


def is_junk(path: str) -> bool:
    """Files of operating systems, not of the data set: hidden ones and those in `__MACOSX`."""
    return "/." in path or path.startswith((".", "__MACOSX/")) or "/__MACOSX/" in path


def safe_path(source: str, name: str) -> str:
    """The name of a member of an archive in the form of a path.

    Raises:
        StepError: absolute or with `..`: whoever unpacks such an archive has files written elsewhere, so none of it is used.
    """
    if "\\" in name:
        name = name.replace("\\", "/")
    if name.startswith("./") or "//" in name or "/./" in name:
        name = "/".join(part for part in name.split("/") if part not in ("", ".")) if not name.startswith("/") else name
    if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:/", name):
        raise StepError(
            f"data.source={source}: has a member named {name[:100]!r}, which leads out of the archive; members must have relative names "
            "without `..`: make the archive again"
        )
    return name


def stat_token(stat: os.stat_result) -> str:
    """The token of a local file."""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def info_token(info: dict[str, Any]) -> str:
    """The token of a file as fsspec describes it."""
    marks = (info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
    return f"{info.get('size')}-{next((mark for mark in marks if mark is not None), '')}"


def _common_folder(paths: Iterable[str]) -> str:
    """The folders that lie above every path, with a slash at the end, or nothing."""
    folders = {path.rpartition("/")[0] for path in paths}
    common = os.path.commonpath(folders) if folders and all(folders) else ""
    return f"{common}/" if common else ""


def relative(listing: Listing) -> Listing:
    """The listing without the folders that lie above all its images and its label files."""
    if not listing.folders:
        return listing
    tops = [path for path in listing.files if posixpath.basename(path) in LABEL_FILES]
    prefix = _common_folder(chain((image.path for image in listing.images), tops))
    if not prefix:
        return listing
    cut = len(prefix)
    images = [SourceImage(image.path[cut:], image.label, image.token) for image in listing.images]
    # A label file that was named may lie beside the images, above their folder.
    files = {
        path[cut:] if path.startswith(prefix) else f"{ABOVE}{path}": token for path, token in listing.files.items()
    }
    return replace(listing, images=images, files=files, open=partial(_open_below, listing.open, prefix), reader="base")


@contextmanager
def _open_below(opener: Opener, prefix: str) -> Iterator[Read]:
    with opener() as read:
        yield lambda path: read(path.removeprefix(ABOVE) if path.startswith(ABOVE) else prefix + path)


def in_order(images: Iterable[SourceImage]) -> list[SourceImage]:
    """Sorted by path; of several with the same path the last one, as unpacking would leave it."""
    ordered = sorted(images, key=lambda image: image.path)
    if any(image.path == after.path for image, after in pairwise(ordered)):
        ordered = list({image.path: image for image in ordered}.values())
    return ordered


def signature(images: Iterable[SourceImage], names: Sequence[Sequence[str]]) -> str:
    """Digest of paths, tokens and labels of images in order, and of the names of labels.

    Raises:
        StepError: a name is not UTF-8.
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
