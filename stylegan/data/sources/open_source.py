"""Where images come from. A source is a listing: paths, labels and tokens; no image is opened until `Source.open` is used.

Each format has a file of its own: a listing of what it holds, and a reader. Which one a source is in is told by its URL and by
the files that are there.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.sources import cifar, digits, folder, lsun, mnist, own, parquet, tar, tfrecords, urls, zip
from stylegan.data.sources.access.uris import check_uri, expand, file_token, is_pattern
from stylegan.data.sources.base import (
    IMAGE_SUFFIXES,
    Files,
    Listing,
    SourceImage,
    in_order,
    is_image,
    relative,
    signature,
)
from stylegan.data.sources.base import Source as Source
from stylegan.data.sources.labels import label_images
from stylegan.data.sources.unaltered import measured as measured
from stylegan.data.sources.unaltered import unaltered as unaltered
from stylegan.errors import ConfigError, StepError


class _Format(NamedTuple):
    """What reads files with such names (without their folders); a format counts in a folder if its data may be files of one."""

    names: re.Pattern[str]
    list_images: Callable[[Files], Listing]
    in_folders: bool = True


_FORMATS = (
    _Format(zip.NAMES, zip.list_images, in_folders=False),
    _Format(cifar.ARCHIVES, cifar.list_images, in_folders=False),
    _Format(cifar.BATCHES, cifar.list_images),
    _Format(mnist.NAMES, mnist.list_images),
    _Format(tfrecords.NAMES, tfrecords.list_images),
    _Format(lsun.NAMES, lsun.list_images),
    _Format(parquet.NAMES, parquet.list_images),
    _Format(tar.NAMES, tar.list_images),
    _Format(urls.NAMES, urls.list_images, in_folders=False),
)
_TRAINING = re.compile(r"(^|[^a-z])(train|training|data_batch)([^a-z]|$)", re.IGNORECASE)
_HELD_OUT = re.compile(r"(^|[^a-z])(test|val|valid|validation|t10k)([^a-z]|$)", re.IGNORECASE)
KINDS = (
    "give a folder of images; a .zip, .tar, .tar.gz or shards such as train-{000000..000009}.tar; CIFAR, MNIST, LSUN (LMDB), .tfrecords, "
    ".parquet or .arrow; a list of URLs (.txt, .csv, .tsv); each local or at an fsspec URL; or `digits`"
)


def open_source(data: DataConfig) -> Source:
    """List the images that `data.source` names, with the labels that `data.labels` and `data.label_file` ask for.

    Folders above all images (`cifar10/cat/1.png` for every image) are no classes and are left out of the paths.

    Raises:
        ConfigError: there is no such source, or it does not have the labels that are asked for.
        StepError: the source cannot be read, holds no image, or its label file does not fit its images.
    """
    listing = _list(data)
    if not listing.images:
        raise StepError(
            f"data.source={data.source}: holds no image; known endings are {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    listing = relative(listing)
    found = label_images(data, listing, in_order(listing.images))
    digest = signature(found.images, (found.label_names, found.attribute_names))
    return Source(
        data.source, digest, found.images, found.label_names, found.attribute_names, listing.open, listing.reader
    )


def _list(data: DataConfig) -> Listing:
    if data.source == "digits":
        return digits.list_images()
    uri = check_uri("data.source", data.source)
    files = Files(data.source, uri, {}, data.label_file, labels=data.labels == "auto" and data.label_file is None)
    if is_pattern(uri):
        root, tokens = expand(uri)
        return _list_files(files._replace(root=root, tokens=tokens))
    if not storage.exists(uri):
        raise ConfigError(f"data.source={uri}: no such folder or file; {KINDS}")
    if _is_folder(uri):
        return _list_folder(files)
    place, mark, query = (uri, "", "") if storage.is_local(uri) else uri.partition("?")
    root, _, name = place.rpartition("/")
    return _list_files(files._replace(root=root, tokens={name: file_token(uri)}, query=mark + query))


def _is_folder(uri: str) -> bool:
    """A web server does not tell a folder from a file, but for its name."""
    if storage.is_local(uri):
        return os.path.isdir(uri)
    if uri.startswith(("http://", "https://")):
        return _format(urlsplit(uri).path) is None
    fs, path = storage.filesystem(uri)
    return bool(fs.isdir(path))


def _format(path: str) -> _Format | None:
    name = posixpath.basename(path)
    return next((known for known in _FORMATS if known.names.fullmatch(name)), None)


def _list_files(files: Files) -> Listing:
    """The images in one file, or in those of a pattern."""
    formats = {path: _format(path) for path in files.tokens}
    unknown = next((path for path, known in formats.items() if known is None), None)
    chosen = next(iter(formats.values()))
    if unknown is not None or chosen is None:
        raise ConfigError(f"data.source={files.source}: {unknown} is a file of no known format; {KINDS}")
    if any(known is not chosen for known in formats.values()) or not (chosen.in_folders or len(formats) == 1):
        raise ConfigError(
            f"data.source={files.source}: names {len(formats)} files that are not one set; give one of them"
        )
    return chosen.list_images(files)


def _list_folder(files: Files) -> Listing:
    """The images in a folder, or in its data files if those are as many as the images."""
    images: list[SourceImage] = []
    for path, token in folder.walk(files.root):
        if is_image(path):
            images.append(SourceImage(path, None, token))
        else:
            files.tokens[path] = token
    if own.is_set(files):
        return own.list_images(files)
    formats = {path: known for path in files.tokens if (known := _format(path)) is not None}
    counts = Counter(known for known in formats.values() if known.in_folders)
    if counts and max(counts.values()) >= len(images):
        chosen = counts.most_common(1)[0][0]
        return chosen.list_images(_training_part(files, [path for path, known in formats.items() if known is chosen]))
    archives = [path for path, known in formats.items() if known.list_images is not urls.list_images]
    if archives and not images:
        raise ConfigError(
            f"data.source={files.source}: a folder without images; give one of its files, such as {min(archives)}"
        )
    return folder.list_images(files, images)


def _training_part(files: Files, data: list[str]) -> Files:
    """Without the files of test and validation sets, if others are of the training set."""
    held_out = {path for path in data if _HELD_OUT.search(path)}
    if not held_out or not any(_TRAINING.search(path) for path in data):
        return files
    return files._replace(tokens={path: token for path, token in files.tokens.items() if path not in held_out})
