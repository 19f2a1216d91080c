"""The folders of this machine that a command writes to: whether they can be written, and whether a disk is full."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from stylegan.errors import StepError, UserError, one_line

FULL = 8 * 2**20  # bytes: a disk with less free space fails in one way or another
FULL_WORDS = ("No space left on device", "disk is full", "Disk quota exceeded", "ENOSPC", "OutOfDiskError")

_places: dict[str, Path] = {}  # setting that names the folder -> the folder


def use_place(setting: str, folder: str | Path) -> None:
    """Remember a folder that this process writes to, with the setting that would move it."""
    _places[setting] = Path(folder).expanduser().absolute()


def check_place(setting: str, folder: str | Path) -> None:
    """Check that a folder can be written, and remember it. Creates it.

    Raises:
        StepError: it cannot; the line says which setting moves it.
    """
    try:
        use_place(setting, folder)
        os.makedirs(_places[setting], exist_ok=True)
        with tempfile.TemporaryFile(dir=_places[setting]):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise StepError(
            f"{setting}: cannot write {folder} ({getattr(error, 'strerror', None) or one_line(error)}); HOME is "
            f"{os.environ.get('HOME', 'not set')}: set {setting} to a folder that can be written, or mend HOME"
        ) from error


def nearest(path: str | Path) -> str:
    """Return a path, or the nearest folder above it at which there is something (a link to nothing included)."""
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    return there


def may(path: str | Path, mode: int) -> bool:
    """Return whether this process has permissions (os.R_OK, os.W_OK, os.X_OK) by the user that it acts as."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def shown_bytes(num_bytes: float) -> str:
    """Return a number of bytes as people write it: `2.4 MiB`, `61 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 10 or unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def explain_full_disk(error: BaseException) -> str | None:
    """Return the line about a full disk behind a failure, or None if no disk is full.

    The disks of all folders in use are looked at, because few errors of other libraries name the folder, and a worker
    that was killed by a full disk does not say so.
    """
    if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return None  # a line of its own says so; that disk may be nearly full as well
    settings: dict[Path, list[str]] = {}
    for setting, folder in {**_places, "TMPDIR": Path(tempfile.gettempdir())}.items():
        settings.setdefault(folder, []).append(setting)
    full = []
    for folder, names in settings.items():
        with suppress(OSError):
            usage = shutil.disk_usage(nearest(folder))
            if usage.free < FULL and usage.total:  # /proc and its like have no size
                move = f"{names[0]} moves it" if len(names) == 1 else f"{' and '.join(names)} move it"
                full.append(f"{folder} ({usage.free / 2**20:.1f} MiB free; {move})")
    if not full and (not _says_full(error) or (isinstance(error, UserError) and _speaks_of_it(error))):
        return None  # another failure, or one whose line says so itself and names the folder
    where = f" on the disk of {' and of '.join(full)}" if full else ""
    return f"no space left{where}; free some space, then the same command goes on where it stopped"


def _says_full(error: BaseException | None) -> bool:
    """Return whether an error, or one behind it, speaks of a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _speaks_of_it(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _speaks_of_it(error: BaseException) -> bool:
    return any(word in str(error) for word in FULL_WORDS)
