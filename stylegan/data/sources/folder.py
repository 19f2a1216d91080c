"""A folder, here or at any fsspec URL, with images at any depth."""

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

PAGE = 1000  # objects of a bucket that are listed at once; S3 gives no more


def list_images(files: Files, images: list[SourceImage]) -> Listing:
    """The images that `walk` found, and which of the other files may hold labels."""
    others = {path: token for path, token in files.tokens.items() if is_label_file(path, files.label_file)}
    return Listing(images, partial(_open, files.root), reader="folder", files=others, folders=True)


def walk(root: str) -> Iterator[tuple[str, str]]:
    """Relative path and token of every file at any depth, but for junk.

    Raises:
        StepError: a folder cannot be listed.
    """
    return _walk_local(root) if storage.is_local(root) else _walk_remote(root)


def _walk_local(root: str) -> Iterator[tuple[str, str]]:
    def refuse(error: OSError) -> None:
        raise StepError(f"data.source={root}: cannot be listed: {error}; check its permissions") from error

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        inside = Path(os.path.realpath(folder))  # a link back to a folder above would never end
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name != "__MACOSX"
            and not inside.is_relative_to(os.path.realpath(os.path.join(folder, name)))
        ]
        above = os.path.relpath(folder, root)
        prefix = "" if above == "." else f"{above}/"
        for name in names:
            if not name.startswith("."):
                try:
                    yield prefix + name, stat_token(os.stat(f"{folder}/{name}"))
                except FileNotFoundError:
                    continue  # a link to nothing


def _walk_remote(root: str) -> Iterator[tuple[str, str]]:
    try:
        fs, top = storage.filesystem(root)
        found = _walk_s3(fs, top, root) if root.startswith(("s3://", "s3a://")) else _find(fs, top, root)
        for name, token in found:
            path = name.removeprefix(top).lstrip("/")
            if path and not is_junk(path):
                yield path, token
    except OSError as error:
        raise StepError(f"data.source={root}: cannot be listed: {one_line(error)}; check its permissions") from error


def _find(fs: Any, top: str, root: str) -> Iterator[tuple[str, str]]:
    found = patient(lambda: fs.find(top, detail=True), root)
    while found:
        name, info = found.popitem()
        yield name, info_token(info)


def _walk_s3(fs: Any, top: str, root: str) -> Iterator[tuple[str, str]]:
    """A page of a thousand after the other: `find` holds 1.5 kB for each object until it has them all."""
    bucket, _, prefix = top.partition("/")
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", "MaxKeys": PAGE}
    while True:
        page = patient(partial(fs.call_s3, "list_objects_v2", **request), root)
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # the marker of a folder
                yield f"{bucket}/{entry['Key']}", info_token({"size": entry["Size"], "ETag": entry["ETag"]})
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


@contextmanager
def _open(root: str) -> Iterator[Read]:
    if storage.is_local(root):
        yield lambda path: Path(root, path).read_bytes()
    else:
        yield lambda path: storage.read_bytes(storage.join(root, path))
