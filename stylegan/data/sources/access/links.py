"""Follow links inside an archive, so that it gives the images that its unpacked folder gives, or is refused."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, TypeVar

from stylegan.data.sources.base import DEAD_LINKS, Files, is_junk
from stylegan.errors import StepError

T = TypeVar("T")
_LONGEST = 40  # links that lead to each other, as in Linux


class Link(NamedTuple):
    """A member of an archive that leads to another file.

    Attributes:
        name: its path in the archive.
        target: the path that it leads to, as the archive says.
        hard: whether the target begins at the top of the archive; otherwise it begins at the folder of the link.
    """

    name: str
    target: str
    hard: bool = False


def follow(
    files: Files,
    links: Collection[Link],
    find: Callable[[set[str]], tuple[Mapping[str, T], set[str]]],
    wants: Callable[[str], bool],
) -> Iterator[tuple[str, T]]:
    """Yield the name of each link that matters, and what is known about the file behind it.

    Args:
        files: the archive. Links to nothing are counted there.
        links: all links of the archive.
        find: takes paths in the archive. Returns what is known about those that are files, by path, and those that are
            folders with images or label files.
        wants: whether a name is that of an image or of a file with labels.

    Raises:
        StepError: such a link leads out of the archive, to nothing in it, or to a folder with images.
    """
    by_name = {link.name: link for link in links if not is_junk(link.name)}
    ends = {name: _end(link, by_name) for name, link in by_name.items()}
    found, folders = find({end for end in ends.values() if end})
    for name, end in ends.items():
        wanted = wants(name)
        if wanted and end is not None and end in found:
            yield name, found[end]
        elif wanted or end in folders or (end is None and not posixpath.splitext(name)[1]):
            # A link without an ending that leads out may lead to a folder of images.
            kind = "hard link" if by_name[name].hard else "symbolic link"
            why = "a folder" if end in folders else "which is not a file of the archive"
            raise StepError(
                f"data.source={files.source}: {name} is a {kind} to {by_name[name].target}, {why}; make the archive again with "
                "the files that links lead to (`tar --dereference --hard-dereference`, or `zip` without -y)"
            )
        elif end not in found and end != "":
            files.left_out[DEAD_LINKS] += 1


def _end(link: Link, by_name: Mapping[str, Link]) -> str | None:
    """Return the path in the archive that a chain of links leads to.

    Return None if it leads out of the archive or has no end, and an empty text if it leads to a folder above the link:
    in a folder, such links are not followed either.
    """
    for _ in range(_LONGEST):
        path = posixpath.normpath(posixpath.join("" if link.hard else posixpath.dirname(link.name), link.target))
        if path == "." or link.name.startswith(f"{path}/"):
            return ""
        if path.startswith(("/", "../")) or path == "..":
            return None
        if path not in by_name or (link.hard and path == link.name):  # `tar` packs a file that is named twice so
            return path
        link = by_name[path]
    return None
