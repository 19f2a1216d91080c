"""Where images come from: a folder, a .zip, an fsspec URL of either, or the digits inside scikit-learn.

A source is a listing: paths, labels and a cheap signature. No image is opened here; `Source.reader` hands out the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from stylegan import storage
from stylegan.config import DataConfig
from stylegan.data.decode import UnreadableImage, measure
from stylegan.errors import ConfigError, StepError

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in ("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "tga", "jp2", "avif")
)
LABEL_FILE = "dataset.json"
MAX_CLASSES = 100_000
_SOURCE_KINDS = "give a folder, a .zip, an fsspec URL of either, or `digits`"

ReadPath = Callable[[str], bytes]


class SourceImage(NamedTuple):
    """One image file; `label` counts from 0 and is None in an unlabelled source."""

    path: str
    label: int | None


@dataclass(frozen=True)
class _Listing:
    """Paths with a token that changes when the file changes, and the way to open the whole."""

    tokens: dict[str, str]
    open: Callable[[], AbstractContextManager[ReadPath]]


@dataclass(frozen=True)
class Source:
    """A listed source. `images` are sorted by path; `label_names` is empty if they carry no labels."""

    uri: str
    signature: str
    images: Sequence[SourceImage]
    label_names: tuple[str, ...]
    _listing: _Listing
    _prefix: str

    @contextmanager
    def reader(self) -> Iterator[Callable[[SourceImage], bytes]]:
        """A function from image to the bytes of its file, safe to call from several threads.

        Raises (the function):
            StepError: the store does not answer. Any other exception is about that one file.
        """
        with self._listing.open() as read:
            yield lambda image: read(self._prefix + image.path)


def unaltered(source: Source, data: DataConfig) -> Source:
    """The same images, of which none may be cropped, resized or converted on the way into shards.

    Its reader raises StepError at an image that is not `data.resolution` pixels square or has not `data.channels` channels.
    """
    wanted = (data.resolution, data.resolution, data.channels)

    @contextmanager
    def opened() -> Iterator[ReadPath]:
        with source._listing.open() as read:
            yield lambda path: _require_shape(read(path), storage.join(source.uri, path), wanted)

    signature = hashlib.sha256(f"unaltered {source.signature}".encode()).hexdigest()[:16]  # shards of resized images are others
    return replace(source, signature=signature, _listing=replace(source._listing, open=opened))


def _require_shape(content: bytes, path: str, wanted: tuple[int, int, int]) -> bytes:
    try:
        found = measure(content)
    except UnreadableImage:
        return content  # is told where images are decoded
    if found != wanted:
        shown = ["{}x{} with {} channel(s)".format(*shape) for shape in (found, wanted)]
        raise StepError(f"{path}: is {shown[0]}, expected {shown[1]}; images are measured as they are: resize or convert them first")
    return content


def open_source(data: DataConfig) -> Source:
    """List the images and labels that `data.source` and `data.labels` name.

    Folders above all images (`cifar10/cat/1.png` for every image) are no classes and are left out of the paths.

    Raises:
        ConfigError: there is no such source, or it does not have the labels that `data.labels` asks for.
        StepError: the source cannot be read, holds no image, or its label file does not fit its images.
    """
    listing = _list(data.source)
    kept = [path for path in listing.tokens if _is_image(path) or PurePosixPath(path).name == LABEL_FILE]
    prefix = _common_folder(kept)
    paths = sorted(path.removeprefix(prefix) for path in kept if _is_image(path))
    if not paths:
        raise StepError(f"data.source={data.source}: holds no image; known endings are {' '.join(sorted(IMAGE_SUFFIXES))}")
    labels, names = _labels(data, paths, _read_labels(data, listing, prefix))
    images = [SourceImage(path, labels[path] if labels else None) for path in paths]
    return Source(data.source, _signature(images, names, [listing.tokens[prefix + path] for path in paths]), images, names, listing, prefix)


def _signature(images: Sequence[SourceImage], names: Sequence[str], tokens: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(names).encode())
    for image, token in zip(images, tokens, strict=True):
        digest.update(f"{image.path}\0{token}\0{image.label}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def _is_junk(path: str) -> bool:
    """Files of operating systems, not of the data set."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _common_folder(paths: Sequence[str]) -> str:
    """The folders that lie above every path, with a slash at the end, or nothing."""
    folders = {path.rpartition("/")[0] for path in paths}
    common = os.path.commonpath(folders) if folders and all(folders) else ""
    return f"{common}/" if common else ""


# --- listings ---------------------------------------------------------------------------------------------------------


def _list(uri: str) -> _Listing:
    if uri == "digits":
        return _digits()
    uri = storage.absolute(uri)
    if not storage.exists(uri):
        raise ConfigError(f"data.source={uri}: no such folder or file; {_SOURCE_KINDS}")
    local = storage.is_local(uri)
    if uri.lower().endswith(".zip") and not (local and os.path.isdir(uri)):
        return _zip(uri)
    if not local:
        return _Listing(_remote_tokens(uri), lambda: _file_reader(lambda path: storage.read_bytes(storage.join(uri, path))))
    if not os.path.isdir(uri):
        raise ConfigError(f"data.source={uri}: a file that is no .zip; {_SOURCE_KINDS}")
    return _Listing(_local_tokens(uri), lambda: _file_reader(lambda path: Path(uri, path).read_bytes()))


@contextmanager
def _file_reader(read: ReadPath) -> Iterator[ReadPath]:
    yield read


def _local_tokens(root: str) -> dict[str, str]:
    def refuse(error: OSError) -> None:
        raise StepError(f"data.source={root}: cannot be listed: {error}; check its permissions") from error

    tokens = {}
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        inside = Path(os.path.realpath(folder))  # a link back to a folder above would never end
        folders[:] = [name for name in folders if not inside.is_relative_to(os.path.realpath(os.path.join(folder, name)))]
        for name in files:
            path = os.path.relpath(os.path.join(folder, name), root)
            if not _is_junk(path) and os.path.exists(os.path.join(folder, name)):
                stat = os.stat(os.path.join(folder, name))
                tokens[path] = f"{stat.st_size}-{stat.st_mtime_ns}"
    return tokens


def _remote_tokens(uri: str) -> dict[str, str]:
    fs, root = storage.filesystem(uri)
    try:
        found = fs.find(root, detail=True)
    except OSError as error:
        raise StepError(f"data.source={uri}: cannot be listed: {' '.join(str(error).split())}; check its permissions") from error
    relative = {name.removeprefix(root).lstrip("/"): info for name, info in found.items()}
    return {path: _remote_token(info) for path, info in relative.items() if path and not _is_junk(path)}


def _remote_token(info: dict[str, Any]) -> str:
    marks = (info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
    return f"{info.get('size')}-{next((mark for mark in marks if mark is not None), '')}"


def _zip(uri: str) -> _Listing:
    try:
        with _open(uri) as file, zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir() and not _is_junk(entry.filename)}
    except zipfile.BadZipFile as error:
        raise StepError(f"data.source={uri}: not a readable .zip ({error}); copy or make the archive again") from error
    except OSError as error:
        raise StepError(f"data.source={uri}: cannot be read: {error}; check its permissions") from error
    return _Listing({name: f"{entry.file_size}-{entry.CRC:08x}" for name, entry in entries.items()}, lambda: _zip_reader(uri))


def _open(uri: str) -> IO[bytes]:
    return open(uri, "rb") if storage.is_local(uri) else storage.open_read(uri)


@contextmanager
def _zip_reader(uri: str) -> Iterator[ReadPath]:
    """Members come in any order, so an archive from elsewhere is copied here first."""
    with tempfile.TemporaryDirectory(prefix="stylegan-zip-") as folder:
        path = uri
        if not storage.is_local(uri):
            path = os.path.join(folder, "source.zip")
            storage.download(uri, path)
        with zipfile.ZipFile(path) as archive:
            yield archive.read


def _digits() -> _Listing:
    """The 1,797 scans of the Optical Recognition of Handwritten Digits set: 8x8 pixels, 17 grey levels, 10 classes."""
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = (scans.images * (255 / 16)).round().astype("uint8")
    arrays = {f"{label}/{number:04d}.png": array for number, (label, array) in enumerate(zip(scans.target, pixels, strict=True))}

    def read(path: str) -> bytes:
        file = BytesIO()
        Image.fromarray(arrays[path]).save(file, "PNG")
        return file.getvalue()

    tokens = {path: hashlib.sha256(array.tobytes()).hexdigest()[:16] for path, array in arrays.items()}
    return _Listing(tokens, lambda: _file_reader(read))


# --- labels -----------------------------------------------------------------------------------------------------------


def _read_labels(data: DataConfig, listing: _Listing, prefix: str) -> bytes | None:
    """The label file at the top of the source, if the config lets it count."""
    path = prefix + LABEL_FILE
    if data.labels in ("none", "folder") or path not in listing.tokens:
        return None
    try:
        with listing.open() as read:
            return read(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise StepError(f"data.source={data.source}: {path} cannot be read: {error}; repair it or set data.labels=none") from error


def _labels(data: DataConfig, paths: Sequence[str], label_file: bytes | None) -> tuple[dict[str, int] | None, tuple[str, ...]]:
    """Label of each path and the names of the labels; (None, ()) for an unlabelled source."""
    if label_file is not None:
        return _file_labels(data.source, paths, label_file)
    if data.labels == "dataset.json":
        raise ConfigError(f"data.labels=dataset.json: {data.source} has no {LABEL_FILE} at its top; add it or set data.labels=auto")
    outside = [path for path in paths if "/" not in path]
    if data.labels == "folder" and outside:
        raise ConfigError(
            f"data.labels=folder: {len(outside)} of {len(paths)} images of {data.source} lie in no class folder, such as {outside[0]}; "
            "move them into one or set data.labels=none"
        )
    if data.labels == "none" or outside:
        return None, ()
    names = sorted({path.split("/")[0] for path in paths})
    numbers = {name: number for number, name in enumerate(names)}
    return {path: numbers[path.split("/")[0]] for path in paths}, tuple(names)


def _file_labels(source: str, paths: Sequence[str], label_file: bytes) -> tuple[dict[str, int] | None, tuple[str, ...]]:
    where = f"data.source={source}: {LABEL_FILE}"
    labels = _parse_labels(where, label_file)
    if labels is None:
        return None, ()
    known = set(paths)
    for path in labels:
        if path not in known:
            raise StepError(f"{where} names {path}, which is not there; add the image, remove its line or set data.labels=none")
    for path in paths:
        if path not in labels:
            raise StepError(f"{where} has no label for {path}; every image needs one: add it or set data.labels=none")
    return labels, tuple(str(number) for number in range(max(labels.values()) + 1))


def _parse_labels(where: str, label_file: bytes) -> dict[str, int] | None:
    """The pairs of a label file in the form of StyleGAN2-ADA: {"labels": [["00000/img.png", 6], ...]} or {"labels": null}."""
    shape = '{"labels": [["00000/img.png", 6], ...]} with whole numbers from 0'
    try:
        entries = json.loads(label_file)["labels"]
        if entries is None:
            return None
        labels = {path.replace("\\", "/"): label for path, label in entries}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StepError(f"{where} is not of the form {shape}; mend it or set data.labels=none") from None
    for path, label in labels.items():
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            raise StepError(f"{where} gives {path} the label {label!r}; must be a whole number from 0 to {MAX_CLASSES - 1}")
    return labels or None
