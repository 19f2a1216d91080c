"""Tars: of image files, packed or not, and shards of WebDataset with labels in `.cls` and `.json`."""

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
    """What one tar holds; `labels` by the key of their sample."""

    images: list[Member] = field(default_factory=list)
    files: list[Member] = field(default_factory=list)
    labels: dict[str, Label] = field(default_factory=dict)
    num_bytes: int = 0


def list_images(files: Files) -> Listing:
    """The images of one tar under their names, or of several under `{tar}/{name}`."""
    tars = [path for path in files.tokens if NAMES.fullmatch(path)]
    images: list[SourceImage] = []
    found: dict[str, str] = {}
    locator, packed, payload = Locator(3), [], 0
    with ThreadPoolExecutor(8) as pool:  # remote tars are waited for
        for number, shard in enumerate(pool.map(partial(_scan, files), tars)):
            token = files.tokens[tars[number]]
            packed.append(Packed(files.uri(tars[number]), token, shard.num_bytes if is_packed(tars[number]) else 0))
            above = f"{_ENDING.sub('', tars[number])}/" if len(tars) > 1 else ""
            mark = f"{zlib.crc32(token.encode()):08x}"  # no checksums of members here, so the token is that of the whole tar
            for member in shard.images:
                label = shard.labels.get(_key(member.name))
                images.append(SourceImage(above + member.name, label, f"{member.size}-{member.mtime}-{mark}"))
                locator.add(above + member.name, number, member.offset, member.size)
                payload += member.size
            for member in shard.files:
                found[above + member.name] = f"{member.size}-{member.mtime}-{mark}"
                locator.add(above + member.name, number, member.offset, member.size)
    opener = partial(_open, tuple(packed), locator.seal(), payload < COPY_BELOW * len(images))
    return Listing(images, opener, reader="tar", files=found, folders=len(tars) == 1)


@contextmanager
def _open(tars: tuple[Packed, ...], locator: Locator, copy: bool) -> Iterator[Read]:
    with open_ranges(tars, copy=copy) as read:
        yield lambda path: read(*locator[path])


def _scan(files: Files, tar: str) -> _Shard:
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
                shard.labels[_key(member.name)] = _label(files.source, member, content)
    return shard


def _key(name: str) -> str:
    """What the files of one sample share: all up to the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _label(source: str, member: Member, content: IO[bytes]) -> Label:
    """A class number as text in `.cls`; `label` (number or vector) or `attributes` (vector) in `.json`, if it has such a key."""
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
        value = next(
            (value[key] for key in ("label", "cls", "class", "attributes") if value.get(key) is not None), None
        )
    if isinstance(value, list):
        return binary(where, value, set())
    return _class(where, value)


def _class(where: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise StepError(
            f"{where} the label {str(value)[:40]!r}; must be a whole number from 0, or 0s and 1s; mend it or set data.labels=none"
        )
    return value
