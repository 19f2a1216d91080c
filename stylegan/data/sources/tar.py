"""List and read tars: of image files, gzipped or not, and WebDataset shards with labels in `.cls` and `.json`.

webdataset joins the files of a sample by the name up to its first dot, so `x.jpg`, `x.seg.png` and `x.cls` are one
sample. Many sets have dots in the names of their images: for `22.05.png` and `22.06.png` that rule gives one sample with
two labels. Both conventions work here, because an image takes the label that is closest to it:

1. the one of the same name without its last ending: `22.05.cls` for `22.05.png`,
2. else the one of a name that becomes the same when parts are cut off at the end: `x.cls` for `x.seg.png`,
3. else those up to the first dot that have no image of their own: `x.info.cls` for `x.png` and `x.left.png`.

Two different labels at the same distance are refused. A label file without an image is passed over, whatever it holds.
Every image counts: of a sample with several images each one is an image of the set with the label of the sample.

Two rules are more permissive than webdataset's. The files of a sample may be anywhere in their tar. Only the last
ending decides what a file is, and labels have it in lower case: `x.CLS` is none.
"""

from __future__ import annotations

import posixpath
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, pairwise, repeat
from typing import IO, NamedTuple

from stylegan.data.sources.access.links import Link, follow
from stylegan.data.sources.access.locator import Locator
from stylegan.data.sources.access.ranges import COPY_BELOW, Packed, open_ranges
from stylegan.data.sources.access.tarwalk import DEVICE, DamagedTar, Member, Special, is_packed, open_tar, walk
from stylegan.data.sources.base import (
    NO_PICTURES,
    Files,
    Label,
    Listing,
    Read,
    SourceImage,
    is_image,
    is_junk,
    is_label_file,
)
from stylegan.data.sources.labels import binary, class_number, parse_json
from stylegan.errors import StepError, shown

NAMES = re.compile(r".*\.(tar|tar\.gz|tgz)", re.IGNORECASE)
_ENDING = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_LABEL_ENDINGS = (".cls", ".json")  # of the labels of single images
_LARGEST_LABEL = 2**20  # bytes of one of them


class _LabelFile(NamedTuple):
    """A label file in a tar.

    Attributes:
        name: its name.
        label: its label, or None if it has none.
        wrong: what is wrong with it, if anything. It matters only if an image has this label.
    """

    name: str
    label: Label
    wrong: StepError | None = None


@dataclass
class _Shard:
    """The content of one tar that matters here.

    Attributes:
        images: the images, in the order of the tar.
        files: files that may contain the labels of all images, such as `dataset.json`.
        labels: the label files, in the order of the tar and then of its links.
        num_bytes: size of the unpacked tar, without its end.
    """

    images: list[Member] = field(default_factory=list)
    files: list[Member] = field(default_factory=list)
    labels: list[_LabelFile] = field(default_factory=list)
    num_bytes: int = 0


def list_images(files: Files) -> Listing:
    """List the images of one tar by their names, or the images of several tars by `{tar without its ending}/{name}`.

    Raises:
        StepError: a tar cannot be read or is damaged, a name leads out of it, or a label is wrong.
    """
    tars = [path for path in files.tokens if NAMES.fullmatch(path)]
    images: list[SourceImage] = []
    counts: list[int] = []  # of the images of each tar
    label_files: dict[str, str] = {}
    locator, packed, image_bytes = Locator(3), [], 0
    prefixes = _prefixes(tars)
    with ThreadPoolExecutor(8) as pool:  # scanning a remote tar mostly waits
        for number, shard in enumerate(pool.map(partial(_scan, files), tars)):
            tar, token = tars[number], files.tokens[tars[number]]
            packed.append(Packed(files.uri(tar), token, shard.num_bytes if is_packed(tar) else 0))
            above = prefixes[number]
            mark = (
                f"{zlib.crc32(token.encode()):08x}"  # members have no checksum, so a changed tar changes all its tokens
            )

            labels = _Labels.of(shard) if shard.labels else None
            for member in shard.images:
                label = None if labels is None else _label_of(files.source, member.name, labels)
                images.append(SourceImage(above + member.name, label, f"{member.size}-{member.mtime}-{mark}"))
                locator.add(above + member.name, number, member.offset, member.size)
                image_bytes += member.size
            counts.append(len(shard.images))

            for member in shard.files:
                label_files[above + member.name] = f"{member.size}-{member.mtime}-{mark}"
                locator.add(above + member.name, number, member.offset, member.size)
    _require_distinct(files.source, prefixes, images, counts)
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


def _prefixes(tars: list[str]) -> list[str]:
    """Return what the paths of each tar begin with: its name without its ending, unless another tar has that too."""
    if len(tars) < 2:
        return [""] * len(tars)
    stems = [_ENDING.sub("", tar) for tar in tars]
    counts = Counter(stems)
    return [f"{stem if counts[stem] == 1 else tar}/" for stem, tar in zip(stems, tars, strict=True)]


def _require_distinct(source: str, prefixes: list[str], images: list[SourceImage], counts: list[int]) -> None:
    """Raise StepError if images of two tars have one path, as `b/1.png` of `a.tar` and `1.png` of `a/b.tar` do.

    Args:
        prefixes: what the paths of each tar begin with.
        images: the images of all tars, tar by tar.
        counts: the number of images of each tar.
    """
    # Paths can only meet if a prefix begins with another. Its neighbour in the sorted list then does so too.
    if not any(inner.startswith(outer) for outer, inner in pairwise(sorted(prefixes))):
        return
    tar_of: dict[str, int] = {}
    numbers = chain.from_iterable(repeat(number, count) for number, count in enumerate(counts))
    for image, number in zip(images, numbers, strict=True):
        if tar_of.setdefault(image.path, number) != number:
            raise StepError(
                f"data.source={source}: two of its tars contain {image.path}; rename one of them, so that all images have "
                "different paths"
            )


def _scan(files: Files, tar: str) -> _Shard:
    """Read the headers of one tar, and the labels of its samples if they are wanted."""
    shard, links = _Shard(), dict[str, Link]()
    with open_tar(files.source, files.uri(tar), files.tokens[tar]) as content:
        for member in walk(files.source, content, tar):
            if isinstance(member, Link):
                links[member.name] = member
            elif isinstance(member, Special):
                _leave_out(files, tar, member)
            if not isinstance(member, Member):
                continue
            links.pop(member.name, None)  # the last member of a name counts
            shard.num_bytes = member.offset + member.size
            if is_junk(member.name):
                continue
            if is_image(member.name):
                shard.images.append(member)
            elif is_label_file(member.name, files.label_file):
                shard.files.append(member)
            elif files.labels and member.name.endswith(_LABEL_ENDINGS) and member.size <= _LARGEST_LABEL:
                label_file = _read_label_file(files.source, member, content)
                if label_file.label is not None or label_file.wrong is not None:
                    shard.labels.append(label_file)
            elif not member.name.endswith("/"):  # old tars have folders as empty files with such names
                files.left_out[NO_PICTURES] += 1
    if links:
        _add_links(files, tar, shard, links)
    return shard


def _wants(files: Files, name: str) -> bool:
    """Return True if a member is an image, may be a label file, or may have the label of one image."""
    return files.wants(name) or (files.labels and name.endswith(_LABEL_ENDINGS) and not is_junk(name))


def _add_links(files: Files, tar: str, shard: _Shard, links: dict[str, Link]) -> None:
    """Add what the links of a tar lead to: images, files with the labels of all images, and labels of single ones."""
    labels: list[Member] = []
    for name, member in follow(files, links.values(), partial(_find, files, tar), partial(_wants, files)):
        known = shard.images if is_image(name) else shard.files if files.wants(name) else labels
        if known is not labels or member.size <= _LARGEST_LABEL:
            known.append(member._replace(name=name))
    if not labels:
        return

    # Read each label once, in the order of the tar: many links may lead to the same, and a packed tar is slow to go back.
    labels.sort(key=lambda label: label.offset)
    with open_tar(files.source, files.uri(tar), files.tokens[tar]) as content:
        for offset, group in groupby(labels, lambda label: label.offset):
            first, *others = group
            content.seek(offset)
            file = _read_label_file(files.source, first, content)
            if file.label is not None or file.wrong is not None:
                shard.labels += [file._replace(name=label.name) for label in (first, *others)]


def _leave_out(files: Files, tar: str, member: Special) -> None:
    """Count a pipe or device. Raise StepError for any other special member that may be an image or have labels."""
    if member.form == DEVICE:
        files.left_out["pipes, sockets and devices"] += 1
    elif _wants(files, member.name):
        raise StepError(
            f"data.source={files.source}: {member.name} in {tar} is {member.form}, which is not read; make the tar again without "
            "`--sparse` and `--multi-volume`"
        )


def _find(files: Files, tar: str, paths: set[str]) -> tuple[dict[str, Member], set[str]]:
    """Return the members of a tar with these paths, and those of the paths that are folders with images or label files."""
    found: dict[str, Member] = {}
    folders: set[str] = set()
    with open_tar(files.source, files.uri(tar), files.tokens[tar]) as content:
        for member in walk(files.source, content):
            if isinstance(member, Member) and member.name in paths:
                found[member.name] = member
            if not isinstance(member, Special) and files.wants(member.name):
                parts = member.name.split("/")
                folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))} & paths
    return found, folders


def _stem(name: str) -> str:
    """Return a name without its last ending."""
    return posixpath.splitext(name)[0]


def _first_part(name: str) -> str:
    """Return a name up to the first dot of its last part, the key of its sample in webdataset."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


class _Labels(NamedTuple):
    """The label files of one tar, by the names under which images look for them.

    A group has the first of its files, and the first one that contradicts it or is wrong, if any: no other can change
    what an image gets. A group is thus read in the same time, whatever the number of its files.

    Attributes:
        by_stem: by their names without their last ending.
        loose: those that have no image of the same name, by their names up to the first dot.
    """

    by_stem: dict[str, list[_LabelFile]]
    loose: dict[str, list[_LabelFile]]

    @classmethod
    def of(cls, shard: _Shard) -> _Labels:
        """Return the label files of a tar, in groups."""
        labels, stems = cls({}, {}), {_stem(member.name) for member in shard.images}
        for file in shard.labels:
            stem = _stem(file.name)
            _add_to_group(labels.by_stem.setdefault(stem, []), file)
            if stem not in stems:
                _add_to_group(labels.loose.setdefault(_first_part(file.name), []), file)
        return labels


def _add_to_group(group: list[_LabelFile], file: _LabelFile) -> None:
    """Add a file to a group of `_Labels` if it is its first one, or the first that contradicts it or is wrong."""
    if not group or (len(group) == 1 and (file.wrong is not None or file.label != group[0].label)):
        group.append(file)


def _label_of(source: str, name: str, labels: _Labels) -> Label:
    """Return the label of the image `name`, or None.

    Raises:
        StepError: the label is wrong, or there are two different ones.
    """
    stem, shorter = _stem(name), ""
    closest: list[_LabelFile] = []
    while not closest and stem != shorter:
        closest = labels.by_stem.get(stem, [])
        stem, shorter = _stem(stem), stem
    closest = closest or labels.loose.get(_first_part(name), [])
    for file in closest:
        if file.wrong is not None:
            raise file.wrong
        if file.label != closest[0].label:
            raise StepError(
                f"data.source={source}: {shown(closest[0].name)} and {shown(file.name)} give {shown(name)} different labels, "
                f"{shown(str(closest[0].label))} and {shown(str(file.label))}; remove one of them or set data.labels=none"
            )
    return closest[0].label if closest else None


def _read_label_file(source: str, member: Member, content: IO[bytes]) -> _LabelFile:
    """Read a label file; `content` is at its first byte.

    Raises:
        DamagedTar: the tar ends within the file.
    """
    data = content.read(member.size)
    if len(data) < member.size:
        raise DamagedTar("it is cut short")
    try:
        return _LabelFile(member.name, _parse_label(f"data.source={source}: {shown(member.name)} gives", data))
    except StepError as error:
        return _LabelFile(member.name, None, error)


def _parse_label(where: str, data: bytes) -> Label:
    """Return the label in a label file.

    A `.cls` contains a class number as text. A `.json` may contain an object with a class number or a vector of
    attributes as `label`, `cls`, `class` or `attributes`; None without any of these.

    Args:
        where: beginning of error messages.

    Raises:
        StepError: the file contains something else.
    """
    try:
        value = parse_json(data)
    except ValueError:
        raise StepError(
            f"{where} no label but {data[:40]!r}; a .cls must hold a number, a .json an object; mend it or set data.labels=none"
        ) from None
    if isinstance(value, dict):
        keys = ("label", "cls", "class", "attributes")
        value = next((value[key] for key in keys if value.get(key) is not None), None)
    if isinstance(value, list):
        return binary(where, value, set())
    return None if value is None else class_number(where, value)
