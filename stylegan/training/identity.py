"""Which checkpoint a URI means, wherever the storage root is: absolute URIs that were stored are hints.

It imports no torch, since a look at a registry needs it, too.
"""

from __future__ import annotations

from stylegan import storage


def identity(uri: str) -> str:
    """Return what identifies a checkpoint wherever its storage root is: the names of its stage and of its folder."""
    return "/".join(uri.rstrip("/").split("/")[-2:])


def place_below(root: str, uri: str) -> str:
    """Return the place of a checkpoint below a storage root, which may have moved since its URI was written.

    It stays where it was if the root does not have it.
    """
    here = storage.join(storage.absolute(root), "stages", identity(uri))
    return here if storage.exists(here) else uri
