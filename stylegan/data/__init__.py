"""Data sets: from a folder, archive or bucket of images to shards, and from shards to batches.

`open_webdataset` opens a finished set for a notebook or another training loop; README.md beside this file explains it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stylegan.data.loading.webdataset_pipeline import open_webdataset

__all__ = ["open_webdataset"]


def __getattr__(name: str) -> Any:
    """Import `open_webdataset` when it is first used: webdataset imports torch, which takes a second."""
    if name == "open_webdataset":
        from stylegan.data.loading.webdataset_pipeline import open_webdataset

        return open_webdataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
