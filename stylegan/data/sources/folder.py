"""List and read the images at any depth of a folder, which may be local or at any fsspec URL."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from stylegan import storage
from stylegan.data.sources.access.own_folders import OwnFolders
from stylegan.data.sources.base import (
    DEAD_LINKS,
    LARGEST,
    NO_PICTURES,
    Files,
    Listing,
    Read,
    SourceImage,
    info_token,
    is_image,
    is_junk,
    is_label_file,
    require_size,
    stat_token,
)
from stylegan.errors import StepError
from stylegan.retry import patient

PAGE = 1000  # objects of a bucket in one answer to a listing request; S3 allows no more


def list_images(files: Files, images: list[SourceImage]) -> Listing:
    """Return the listing of a folder.

    Args:
        files: all files of the folder that are no images; some may be label files.
        images: the images that `walk` found.
    """
    label_files = {path: token for path, token in files.tokens.items() if is_label_file(path, files.label_file)}
    files.left_out[NO_PICTURES] += len(files.tokens) - len(label_files)
    large = {image.path: size for image in images if (size := _size(image.token)) > LARGEST}
    opener = partial(_open_folder, files.root, large)
    return Listing(images, opener, reader="folder", files=label_files, folders=True)


def _size(token: str) -> int:
    """Return the size in bytes that the token of a file begins with; 0 if its store does not tell sizes."""
    size = token.partition("-")[0]
    return int(size) if size.isdigit() else 0


def walk(files: Files, own: OwnFolders) -> Iterator[tuple[str, str]]:
    """Yield the relative path and the token of every file at any depth, except hidden files and those in `__MACOSX`.

    Args:
        files: the folder; what is left out of it is counted there.
        own: folders to leave out.

    Raises:
        OSError: a folder cannot be listed, or a file in it cannot be looked up.
        StepError: two files would have the same path.
    """
    return _walk_local(files, own) if storage.is_local(files.root) else _walk_remote(files, own)


def _walk_local(files: Files, own: OwnFolders) -> Iterator[tuple[str, str]]:
    """Do the work of `walk` for a local folder, following links."""

    def refuse(error: OSError) -> None:
        raise error

    # Each folder on the way -> the places of all folders above it and of itself, without links.
    places: dict[str, tuple[str, ...]] = {files.root: (os.path.realpath(files.root),)}
    for folder, folders, names in os.walk(files.root, onerror=refuse, followlinks=True):
        above = places.pop(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        for name in list(folders):
            path = os.path.join(folder, name)
            linked = os.path.islink(path)
            place = os.path.realpath(path) if linked else os.path.join(above[-1], name)
            # Do not enter a link back to a folder above, which would never end, nor what this program writes.
            if linked and any(Path(known).is_relative_to(place) for known in above):
                folders.remove(name)
            elif own.contain(LocalFileSystem, place):
                folders.remove(name)
                files.left_out["folders that this program writes"] += 1
            else:
                places[path] = (*above, place)

        prefix = os.path.relpath(folder, files.root) + "/" if folder != files.root else ""
        for name in names:
            facts = None if name.startswith(".") else _facts(files, os.path.join(folder, name))
            if facts is not None:
                yield prefix + name, stat_token(facts)


def _facts(files: Files, path: str) -> os.stat_result | None:
    """Return the facts about a local file; None for links to nothing, pipes, sockets and devices, which are counted."""
    try:
        facts = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        files.left_out[DEAD_LINKS] += 1
        return None
    if not stat.S_ISREG(facts.st_mode):
        files.left_out["pipes, sockets and devices"] += 1
        return None
    return facts


def _walk_remote(files: Files, own: OwnFolders) -> Iterator[tuple[str, str]]:
    """Do the work of `walk` for a folder at a URL."""
    fs, top = storage.filesystem(files.root)
    s3 = files.root.startswith(("s3://", "s3a://"))
    for name, token in _walk_s3(fs, top, files.root) if s3 else _find(fs, top, files.root):
        path = name.removeprefix(top).removeprefix("/")
        if own.contain(type(fs), name):
            files.left_out["files that this program writes"] += 1
        elif path and not is_junk(path):
            if s3 and is_image(path) and "" in path.split("/"):
                raise StepError(
                    f"data.source={files.source}: the key {name!r} has nothing between two slashes, as no file of a folder can have; "
                    "copy that object to another key, or delete it"
                )
            yield path, token


def _find(fs: Any, top: str, root: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the token of every file below `top`, with fsspec's own listing."""
    infos = patient(lambda: fs.find(top, detail=True), root)
    while infos:  # frees each description once it is used
        name, info = infos.popitem()
        yield name, info_token(info)


def _walk_s3(fs: Any, top: str, root: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the token of every object below `top`, one page of a thousand at a time.

    fsspec's `find` would keep 1.5 kB for each object until the listing is complete.
    """
    bucket, _, prefix = top.partition("/")
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", "MaxKeys": PAGE}
    while True:
        page = patient(partial(fs.call_s3, "list_objects_v2", **request), root)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # a name with a slash at its end only marks a folder
                yield f"{bucket}/{entry['Key']}", info_token({"size": entry["Size"], "ETag": entry["ETag"]})
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


@contextmanager
def _open_folder(root: str, large: dict[str, int]) -> Iterator[Read]:
    """Yield a function that returns the bytes of one file.

    Args:
        large: path of each file that is larger than any picture -> its size. These are not read.
    """

    def read(path: str) -> bytes:
        require_size(large.get(path, 0))
        return storage.read_bytes(f"{root}/{path}")

    yield read if not storage.is_local(root) else partial(_read_local, root)


def _read_local(root: str, path: str) -> bytes:
    with storage.open_regular(f"{root}/{path}") as file:
        require_size(os.fstat(file.fileno()).st_size)
        return file.read(LARGEST)
