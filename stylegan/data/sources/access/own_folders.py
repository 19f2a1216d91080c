"""Know the folders that this program writes, so that its pictures and shards never become images of a source."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from stylegan import storage
from stylegan.data.cache import cache_root
from stylegan.errors import ConfigError

_FOLDERS = ("datasets", "stages", "runs", "mlartifacts", "locks")  # below `storage.root`


@dataclass(frozen=True)
class OwnFolders:
    """Places of folders to leave out of a listing: the class of a file system and a path in it, without links if local."""

    places: tuple[tuple[type, str], ...] = ()

    def contain(self, fs: type, path: str) -> bool:
        """Return whether a path is one of the folders or in one; a local path must have no links."""
        return any(fs is ours and _is_below(path, folder) for ours, folder in self.places)

    def contain_file(self, uri: str) -> bool:
        """Return whether a file is in one of the folders, wherever links lead."""
        return self.contain(*_place(uri))


def own_folders(source: str, root: str | None, *, part: bool = False) -> OwnFolders:
    """Return the folders to leave out of the listing of a source: `storage.root`, the cache, and MLflow's local files.

    A source inside one of them is what the user wants, so that folder does not count.

    Args:
        source: URI of the source.
        root: `storage.root`; None if nothing is written.
        part: whether only some files below `source` are listed, those of a pattern. In `storage.root` itself, the folders
            of the pipeline are then left out.

    Raises:
        ConfigError: the source is `storage.root` itself, or the whole of a folder that the pipeline has in it.
    """
    place = _place(source)
    inside = [] if root is None else [storage.join(root, name) for name in _FOLDERS]
    own = [] if root is None else [_place(root), *map(_place, inside)]
    is_root = place in own[:1]
    if place in own and not (part and is_root):
        what = "storage.root itself" if is_root else "a folder that the pipeline writes"
        raise ConfigError(
            f"data.source={source}: is {what}, where pictures of the pipeline would become training images; "
            "set data.source to the folder of the images alone, or to one set in {storage.root}/datasets"
        )
    found = [str(cache_root())]
    if root is not None:
        found += [*(inside if is_root else [root]), storage.EMBEDDED]
    places = [_place(storage.absolute(folder)) for folder in found]
    return OwnFolders(tuple(ours for ours in places if not (ours[0] is place[0] and _is_below(place[1], ours[1]))))


def _place(uri: str) -> tuple[type[Any], str]:
    fs, path = storage.filesystem(storage.absolute(uri))
    return type(fs), os.path.realpath(path) if storage.is_local(uri) else path.rstrip("/")


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
