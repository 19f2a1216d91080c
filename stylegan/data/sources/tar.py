"""List and read tars: of image files, gzipped or not, and WebDataset shards with labels in `.cls` and `.json`.

The files of one sample share a key, by webdataset's own rule (`base_plus_ext`): everything up to the first dot of the
last part of the name. In three points this module stays more permissive than `webdataset.tariterators.group_by_keys`,
because existing data sets would lose or change labels otherwise (see `_sample_key` for a fourth, about unusual names):

- The files of a sample may be anywhere in their tar. webdataset joins only files that follow each other, so a tar with
  all images first and all labels after them would have no labels.
- Only the last extension decides, and in lower case only: `0001.left.png` and `0001.right.png` are two images with one
  label, `0001.info.cls` is a label, and `0001.CLS` is not. webdataset takes all extensions together, after lower-casing
  them.
- Of two labels of one sample the last one counts. webdataset refuses such a tar.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import COPY_BELOW, Packed, open_ranges
from stylegan.data.sources.access.tarwalk import DamagedTar, Member, is_packed, open_tar, walk
from stylegan.data.sources.base import Files, Label, Listing, Read, SourceImage, is_image, is_junk, is_label_file
from stylegan.data.sources.labels import binary
from stylegan.errors import StepError

NAMES = re.compile(r".*\.(tar|tar\.gz|tgz)", re.IGNORECASE)
_ENDING = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_LARGEST_LABEL = 2**20  # bytes of a .cls or .json


@dataclass
class _Shard:
    """The content of one tar that matters here.

    Attributes:
        images: the images, in the order of the tar.
        files: files that may contain the labels of all images, such as `dataset.json`.
        labels: label of each sample by its key.
        num_bytes: size of the unpacked tar, without its end.
    """

    images: list[Member] = field(default_factory=list)
    files: list[Member] = field(default_factory=list)
    labels: dict[str, Label] = field(default_factory=dict)
    num_bytes: int = 0


def list_images(files: Files) -> Listing:
    """List the images of one tar by their names, or the images of several tars by `{tar without its ending}/{name}`.

    Raises:
        StepError: a tar cannot be read or is damaged, a name leads out of it, or a label is wrong.
    """
    tars = [path for path in files.tokens if NAMES.fullmatch(path)]
    images: list[SourceImage] = []
    label_files: dict[str, str] = {}
    locator, packed, image_bytes = Locator(3), [], 0
    with ThreadPoolExecutor(8) as pool:  # scanning a remote tar mostly waits
        for number, shard in enumerate(pool.map(partial(_scan, files), tars)):
            tar, token = tars[number], files.tokens[tars[number]]
            packed.append(Packed(files.uri(tar), token, shard.num_bytes if is_packed(tar) else 0))
            above = f"{_ENDING.sub('', tar)}/" if len(tars) > 1 else ""
            mark = (
                f"{zlib.crc32(token.encode()):08x}"  # members have no checksum, so a changed tar changes all its tokens
            )

            for member in shard.images:
                label = shard.labels.get(_sample_key(member.name)) if shard.labels else None
                images.append(SourceImage(above + member.name, label, f"{member.size}-{member.mtime}-{mark}"))
                locator.add(above + member.name, number, member.offset, member.size)
                image_bytes += member.size

            for member in shard.files:
                label_files[above + member.name] = f"{member.size}-{member.mtime}-{mark}"
                locator.add(above + member.name, number, member.offset, member.size)
    opener = partial(_open_members, tuple(packed), locator.seal(), image_bytes < COPY_BELOW * len(images))
    return Listing(images, opener, reader="tar", files=label_files, folders=len(tars) == 1)


@contextmanager
def _open_members(tars: tuple[Packed, ...], locator: Locator, copy: bool) -> Iterator[Read]:
    """Yield a function from the path of a member to its bytes.

    Args:
        locator: number of the tar, offset and size of each member.
        copy: copy remote tars to this machine as a whole.
    """
    with open_ranges(tars, copy=copy) as read:
        yield lambda path: read(*locator[path])


def _scan(files: Files, tar: str) -> _Shard:
    """Read the headers of one tar, and the labels of its samples if they are wanted."""
    shard = _Shard()
    with open_tar(files.source, files.uri(tar), files.tokens[tar]) as content:
        for member in walk(files.source, content):
            shard.num_bytes = member.offset + member.size
            if is_junk(member.name):
                continue
            if is_image(member.name):
                shard.images.append(member)
            elif is_label_file(member.name, files.label_file):
                shard.files.append(member)
            elif files.labels and member.name.endswith((".cls", ".json")) and member.size <= _LARGEST_LABEL:
                shard.labels[_sample_key(member.name)] = _read_label(files.source, member, content)
    return shard


def _sample_key(name: str) -> str:
    """Return the part of a member's name that all files of its sample share.

    webdataset's rule finds no key for a few names, such as one with a line break in a folder that has a dot. Their key
    is everything up to the first dot of the last part.
    """
    from webdataset.tariterators import base_plus_ext  # imports torch, which takes a second: only for tars with labels

    key, _ = base_plus_ext(name)
    if key is None:
        folder, slash, last = name.rpartition("/")
        return folder + slash + last.partition(".")[0]
    return str(key)


def _read_label(source: str, member: Member, content: IO[bytes]) -> Label:
    """Read the label of a sample; `content` is at the first byte of its file.

    A `.cls` contains a class number as text. A `.json` may contain an object with a class number or a vector of
    attributes as `label`, `cls`, `class` or `attributes`; None without any of these.

    Raises:
        DamagedTar: the tar ends within the label.
        StepError: the file contains something else.
    """
    data = content.read(member.size)
    if len(data) < member.size:
        raise DamagedTar("it is cut short")
    where = f"data.source={source}: {member.name} gives"
    try:
        value = json.loads(data)
    except ValueError:
        raise StepError(
            f"{where} no label but {data[:40]!r}; a .cls must hold a number, a .json an object; mend it or set data.labels=none"
        ) from None
    if isinstance(value, dict):
        keys = ("label", "cls", "class", "attributes")
        value = next((value[key] for key in keys if value.get(key) is not None), None)
    if isinstance(value, list):
        return binary(where, value, set())
    return _check_class(where, value)


def _check_class(where: str, value: Any) -> int | None:
    """Return a class number, or None for None. Raise StepError for any other value."""
    if value is not None and (type(value) is not int or value < 0):
        raise StepError(
            f"{where} the label {str(value)[:40]!r}; must be a whole number from 0, or 0s and 1s; mend it or set data.labels=none"
        )
    return value
