"""Open `data.source`: find out its format and list its images with their labels.

A source is a listing of paths, labels and tokens. No image is opened before `Source.open` is called. Each format has a
module with a function that lists its images and a reader for them. The URL and the names of the files decide which
format is used.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import urlsplit

from stylegan import storage
from stylegan.commands import shell_command
from stylegan.config.sections import DataConfig
from stylegan.data.sources import cifar, digits, folder, lsun, mnist, own, parquet, photos, tar, tfrecords, urls, zip
from stylegan.data.sources.access.own_folders import OwnFolders, own_folders
from stylegan.data.sources.access.uris import check_uri, expand, file_token, is_pattern
from stylegan.data.sources.base import (
    IMAGE_SUFFIXES,
    Files,
    Listing,
    Source,
    SourceImage,
    explained,
    in_order,
    is_image,
    open_explained,
    relative,
    signature,
)
from stylegan.data.sources.labels import label_images
from stylegan.errors import ConfigError, StepError

logger = logging.getLogger("stylegan")
_logged: set[str] = set()


DATE = "{date}"  # in `data.source`: a day, which a retraining puts there


class _Format(NamedTuple):
    """A format of data files.

    Attributes:
        names: matches the names of its files, without their folders.
        list_images: lists the images in them.
        in_folders: True if several files in a folder may form one source. Files of the other formats must be given by
            name.
    """

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
_PART = re.compile(r"train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval(uation)?|holdout", re.IGNORECASE)
# Readers whose listings may name an image twice: the last member of an archive counts, and a URL is a URL.
_REPEATING = {"zip", "tar", "urls"}
_ALLOWED = (
    "give a folder of images; a .zip, .tar, .tar.gz or shards such as train-{000000..000009}.tar; CIFAR, MNIST, LSUN (LMDB), .tfrecords, "
    ".parquet or .arrow; a list of URLs (.txt, .csv, .tsv); each local or at an fsspec URL; or `digits` or `photos`"
)


def open_source(data: DataConfig, root: str | None = None) -> Source:
    """List the images of `data.source`, with the labels that `data.labels` and `data.label_file` ask for.

    Folders that contain all images (`cifar10` if every path is like `cifar10/cat/1.png`) are not classes. They are
    removed from the paths.

    Args:
        root: `storage.root`. If it is below the source, nothing in it becomes an image.

    Raises:
        ConfigError: the source does not exist or is `root`, or it does not have the labels that are asked for.
        StepError: the source cannot be read, contains no image, or its label file does not fit its images.
    """
    with explained(data.source):
        return _open(data, root)


def _open(data: DataConfig, root: str | None) -> Source:
    listing = _list(data, root)
    if not listing.images:
        raise StepError(
            f"data.source={data.source}: contains no image; known endings are {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    ordered = in_order(listing.images)
    if len(ordered) < len(listing.images) and listing.reader not in _REPEATING:
        paths = sorted(image.path for image in listing.images)
        first = next(path for path, after in pairwise(paths) if path == after)
        raise StepError(
            f"data.source={data.source}: two of its images would have the path {first}; rename one of the files that contain them"
        )
    listing = relative(replace(listing, images=ordered))  # a folder that all paths share does not change their order
    labelled = label_images(data, listing, listing.images)
    _refuse_parts(data, labelled.label_names, labelled.images)
    return Source(
        uri=data.source,
        signature=signature(labelled.images, (labelled.label_names, labelled.attribute_names)),
        images=labelled.images,
        label_names=labelled.label_names,
        attribute_names=labelled.attribute_names,
        open=partial(open_explained, listing.open, data.source),
        reader=listing.reader,
    )


def _refuse_parts(data: DataConfig, names: Sequence[str], images: Sequence[SourceImage]) -> None:
    """Raise StepError if the classes are folders for training and test, which nobody wants a network to tell apart."""
    parts = len(names) > 1 and all(_PART.fullmatch(name) for name in names)
    if (
        data.labels == "auto"
        and parts
        and all(image.path.startswith(tuple(f"{name}/" for name in names)) for image in images)
    ):
        raise StepError(
            f"data.source={data.source}: its folders {', '.join(names)} look like parts of a set, not like classes; give one of them, set "
            "data.labels=none to use them all, or data.labels=folder if they are classes"
        )


def _list(data: DataConfig, root: str | None) -> Listing:
    """List the images of a source in whatever form it has."""
    # The images inside scikit-learn have no URI.
    if data.source == "digits":
        return digits.list_images()
    if data.source == "photos":
        return photos.list_images()
    if DATE in data.source:
        raise ConfigError(
            f"data.source={data.source}: {DATE} stands for a day, which `{shell_command('stylegan', 'retrain', 'CONFIG')}` puts "
            f"there; other commands need one, such as --set data.source={data.source.replace(DATE, '2026-03-31')}"
        )
    uri = check_uri("data.source", data.source)
    own_labels = data.labels == "auto" and data.label_file is None
    files = Files(data.source, uri, {}, Counter(), data.label_file, own_labels)
    listing = _list_uri(files, root)
    _log_left_out(files)
    return listing


def _log_left_out(files: Files) -> None:
    """Log how many files the listing leaves out, once for each process: a run lists its source several times."""
    counts = ", ".join(f"{what} ({number:,})" for what, number in sorted(files.left_out.items()) if number)
    line = f"data.source={files.source}: left out: {counts}"
    if counts and line not in _logged:
        _logged.add(line)
        logger.info(line)


def _list_uri(files: Files, root: str | None) -> Listing:
    """List the images at an absolute path or URL."""
    uri = files.root

    # Several files that a pattern names.
    if is_pattern(uri):
        folder_uri, found = expand(uri)
        ours = own_folders(folder_uri, root, part=True)
        tokens = found
        if "*" in uri or "[" in uri:  # names in braces are what the user wants
            tokens = {path: token for path, token in found.items() if not ours.contain_file(f"{folder_uri}/{path}")}
        if not tokens:
            raise ConfigError(
                f"data.source={uri}: all {len(found)} files of such names are in folders that this program writes; name files elsewhere, "
                "or one set in {storage.root}/datasets"
            )
        files.left_out["files that this program writes"] += len(found) - len(tokens)
        return _list_files(files._replace(root=folder_uri, tokens=tokens))

    # A folder.
    if not _exists(uri):
        raise ConfigError(f"data.source={uri}: no such folder or file; {_ALLOWED}")
    if _is_folder(uri):
        return _list_folder(files, own_folders(uri, root))

    # One file. A local name may contain a question mark; in a URL it begins the query.
    address, mark, query = (uri, "", "") if storage.is_local(uri) else uri.partition("?")
    folder_uri, _, name = address.rpartition("/")
    return _list_files(files._replace(root=folder_uri, tokens={name: file_token(uri)}, query=mark + query))


def _exists(uri: str) -> bool:
    """Return True if there is a file or folder. Raises OSError if the path of a local one cannot be followed."""
    if not storage.is_local(uri):
        return storage.exists(uri)
    try:
        os.stat(uri)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        return False
    return True


def _is_folder(uri: str) -> bool:
    """Return True if the URI is a folder."""
    if storage.is_local(uri):
        return os.path.isdir(uri)
    # A web server does not say whether a URL is a folder, so everything without the name of a known format is one.
    if uri.startswith(("http://", "https://")):
        return _format(urlsplit(uri).path) is None
    fs, path = storage.filesystem(uri)
    return bool(fs.isdir(path))


def _format(path: str) -> _Format | None:
    """Return the format of a file by its name, or None if no format has such names."""
    name = posixpath.basename(path)
    return next((known for known in _FORMATS if known.names.fullmatch(name)), None)


def _list_files(files: Files) -> Listing:
    """List the images in one file, or in all files of a pattern.

    Raises:
        ConfigError: a file has no known format, or several files do not form one source.
    """
    formats = {path: _format(path) for path in files.tokens}
    unknown = next((path for path, known in formats.items() if known is None), None)
    chosen = next(iter(formats.values()))
    if unknown is not None or chosen is None:
        raise ConfigError(f"data.source={files.source}: {unknown} has no known format; {_ALLOWED}")
    if any(known is not chosen for known in formats.values()) or not (chosen.in_folders or len(formats) == 1):
        raise ConfigError(
            f"data.source={files.source}: names {len(formats)} files that do not form one set; give one of them"
        )
    return chosen.list_images(files)


def _list_folder(files: Files, ours: OwnFolders) -> Listing:
    """List the images in a folder.

    The images are those inside its data files if one format has at least as many files as there are image files.
    Otherwise they are the image files themselves.

    Raises:
        ConfigError: the folder contains no image, only archives that must be given by name.
    """
    # Separate image files from all others.
    images: list[SourceImage] = []
    for path, token in folder.walk(files, ours):
        if is_image(path):
            images.append(SourceImage(path, None, token))
        else:
            files.tokens[path] = token

    # A set of shards with a manifest.
    if own.is_set(files):
        return own.list_images(files)

    # Data files of the most frequent format.
    formats = {path: known for path in files.tokens if (known := _format(path)) is not None}
    counts = Counter(known for known in formats.values() if known.in_folders)
    if counts and max(counts.values()) >= len(images):
        chosen = counts.most_common(1)[0][0]
        return chosen.list_images(_training_part(files, [path for path, known in formats.items() if known is chosen]))

    # Image files. Lists of URLs do not count as archives: any folder may contain a text file.
    archives = [path for path, known in formats.items() if known.list_images is not urls.list_images]
    if archives and not images:
        raise ConfigError(
            f"data.source={files.source}: is a folder without images; give one of its files, such as {min(archives)}"
        )
    return folder.list_images(files, images)


def _training_part(files: Files, data: list[str]) -> Files:
    """Leave out the files of test and validation sets if other files belong to the training set.

    Args:
        files: all files of a folder.
        data: paths of its data files.
    """
    held_out = {path for path in data if _HELD_OUT.search(path)}
    if not held_out or not any(_TRAINING.search(path) for path in data):
        return files
    return files._replace(tokens={path: token for path, token in files.tokens.items() if path not in held_out})
