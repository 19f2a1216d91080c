"""The places of a stack, which a config that names none takes from the environment: `. infra/stack.env`.

A config always wins: a root that is a URL or an absolute path, a tracking server and a cluster that it names stay.
"""

from __future__ import annotations

import os

from stylegan.uris import is_local

STORAGE = "STYLEGAN_STORAGE"
TRACKING = "STYLEGAN_TRACKING_URI"
RAY = "STYLEGAN_RAY_ADDRESS"
VARIABLES = (STORAGE, TRACKING, RAY)


def root_in_stack(root: str) -> str:
    """Return a `storage.root`; a relative one begins at `$STYLEGAN_STORAGE`, if that is set, not at the working folder.

    Raises:
        ValueError: the variable is a relative path itself.
    """
    base = os.environ.get(STORAGE)
    if not base or not root or not is_local(root) or root.startswith(("file://", "/", "~")):
        return root
    if is_local(base) and not base.startswith(("file://", "/")):
        raise ValueError(
            f"${STORAGE}={base}: must be a URL such as s3://bucket, or an absolute path; set it right, or unset it"
        )
    return f"{base.rstrip('/')}/{os.path.normpath(root)}"


def tracking_in_stack(uri: str | None) -> str | None:
    """Return a `tracking.uri`; that of `$STYLEGAN_TRACKING_URI`, if there is none."""
    return uri if uri is not None else os.environ.get(TRACKING) or None


def ray_in_stack(address: str | None) -> str | None:
    """Return a `ray.address`; that of `$STYLEGAN_RAY_ADDRESS`, if there is none."""
    return address if address is not None else os.environ.get(RAY) or None
