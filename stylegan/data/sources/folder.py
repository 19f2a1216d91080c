"""List and read the images at any depth of a folder, which may be local or at any fsspec URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from stylegan import storage
from stylegan.data.sources.base import (
    Files,
    Listing,
    Read,
    SourceImage,
    info_token,
    is_junk,
    is_label_file,
    stat_token,
)
from stylegan.errors import StepError, one_line
from stylegan.retry import patient

PAGE = 1000  # objects of a bucket in one answer to a listing request; S3 allows no more


def list_images(files: Files, images: list[SourceImage]) -> Listing:
    """Return the listing of a folder.

    Args:
        files: all files of the folder that are no images; some may be label files.
        images: the images that `walk` found.
    """
    label_files = {path: token for path, token in files.tokens.items() if is_label_file(path, files.label_file)}
    return Listing(images, partial(_open_folder, files.root), reader="folder", files=label_files, folders=True)


def walk(root: str) -> Iterator[tuple[str, str]]:
    """Yield the relative path and the token of every file at any depth, except hidden files and those in `__MACOSX`.

    Raises:
        StepError: a folder cannot be listed.
    """
    return _walk_local(root) if storage.is_local(root) else _walk_remote(root)


def _walk_local(root: str) -> Iterator[tuple[str, str]]:
    """Do the work of `walk` for a local folder, following links."""

    def refuse(error: OSError) -> None:
        raise StepError(f"data.source={root}: cannot be listed: {error}; check its permissions") from error

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        # Do not enter junk, nor a link back to a folder above, which would never end.
        here = Path(os.path.realpath(folder))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name != "__MACOSX"
            and not here.is_relative_to(os.path.realpath(os.path.join(folder, name)))
        ]

        # Yield the files, except links to a missing file.
        above = os.path.relpath(folder, root)
        prefix = "" if above == "." else f"{above}/"
        for name in names:
            if not name.startswith("."):
                try:
                    yield prefix + name, stat_token(os.stat(f"{folder}/{name}"))
                except FileNotFoundError:
                    continue


def _walk_remote(root: str) -> Iterator[tuple[str, str]]:
    """Do the work of `walk` for a folder at a URL."""
    try:
        fs, top = storage.filesystem(root)
        listed = _walk_s3(fs, top, root) if root.startswith(("s3://", "s3a://")) else _find(fs, top, root)
        for name, token in listed:
            path = name.removeprefix(top).lstrip("/")
            if path and not is_junk(path):
                yield path, token
    except OSError as error:
        raise StepError(f"data.source={root}: cannot be listed: {one_line(error)}; check its permissions") from error


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
def _open_folder(root: str) -> Iterator[Read]:
    """Yield a function that returns the bytes of one file."""
    if storage.is_local(root):
        yield lambda path: Path(root, path).read_bytes()
    else:
        yield lambda path: storage.read_bytes(storage.join(root, path))
