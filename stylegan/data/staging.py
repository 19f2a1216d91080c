"""A scratch folder that one process at a time holds, for work that is moved to its place when it is complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[Path]:
    """An empty `folder` that nobody else has; waits while another process or thread holds it.

    The lock ends with its process, however that ends, and what a killed process left is cleared. Afterwards neither the
    folder nor its lock file is there.

    Raises:
        OSError: the disk refuses.
    """
    lock = folder.with_name(folder.name + ".lock")
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(lock)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if lock.exists() and os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except FileNotFoundError:  # the holder removed it between the two looks
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
