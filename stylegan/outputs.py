"""What an `--out` option names: a file or folder that a person chose, as a path or any fsspec URL.

Storage keeps its own files under names of its own. An output goes where the user points: through a link to its target,
into a pipe or device that is there already, to standard output. Its name is checked before any work.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Collection
from contextlib import suppress

from stylegan import storage
from stylegan.config.addresses import check_argument
from stylegan.errors import ConfigError, StepError, one_line
from stylegan.places import may, nearest

STDOUT = "-"
# What forbids a new file beside the old one, though the old one may be writable: a mounted file, the folder of another.
IN_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY}


def is_standard_output(out: str) -> bool:
    """Return whether an output goes to the standard output of this process."""
    if out == STDOUT:
        return True
    with suppress(OSError, ValueError):
        return out.startswith(("/dev/", "/proc/")) and os.path.samestat(os.stat(out), os.fstat(sys.stdout.fileno()))
    return False


def output_file(out: str, endings: Collection[str]) -> str:
    """Check the file of an `--out` option and return its URI.

    Args:
        out: path, fsspec URL, or `-` for standard output.
        endings: what its name may end in, such as `.png`; the case does not matter. A pipe, a device and standard
            output may have any name.

    Raises:
        ConfigError: it is empty, a folder, of another ending, in an unknown store, or nothing can be written there.
    """
    if is_standard_output(out):
        return STDOUT
    uri = _checked(out)
    mode = _mode(out, uri)
    if mode is not None and (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        return uri
    if out.endswith("/") or (mode is not None and stat.S_ISDIR(mode)):
        raise ConfigError(f"--out {out}: is a folder; give the name of a file in it")
    if mode is not None and not stat.S_ISREG(mode):
        raise ConfigError(f"--out {out}: is a socket or a disk, not a file; give the name of a file")
    if not out.lower().endswith(tuple(endings)):
        raise ConfigError(f"--out {out}: must end in {_listed(endings)}, which says what is written")
    if uri.partition("://")[0] in storage.OBJECT_STORES and "/" not in storage.filesystem(uri)[1].strip("/"):
        raise ConfigError(f"--out {out}: names no file in a bucket; give one such as s3://bucket/folder/file")
    return uri


def page_outputs(out: str, endings: Collection[str], page: str, beside: str) -> tuple[str, str | None]:
    """Check an `--out` option that names a page, or a folder for a page and a file beside it.

    What exists as a folder, ends in a slash or has no ending and does not exist is a folder.

    Args:
        out: path, fsspec URL, or `-` for standard output.
        endings: what the name of a page may end in.
        page, beside: names of the two in a folder.

    Returns:
        URI of the page, and of the file beside it; None for the latter if `out` names a page.

    Raises:
        ConfigError: as for `output_file` and `output_folder`.
    """
    unnamed = "." not in os.path.basename(out) and not os.path.exists(out)
    if is_standard_output(out) or not (unnamed or os.path.isdir(out)):
        return output_file(out, endings), None
    folder = output_folder(out)
    return storage.join(folder, page), storage.join(folder, beside)


def output_folder(out: str) -> str:
    """Check the folder of an `--out` option and return its URI; it need not exist.

    Raises:
        ConfigError: it is empty, a file, in an unknown store, or nothing can be written there.
    """
    uri = _checked(out)
    mode = _mode(out, uri)
    if mode is not None and not stat.S_ISDIR(mode):
        raise ConfigError(f"--out {out}: is a file; give the name of a folder")
    return uri


def ending(out: str, endings: Collection[str]) -> str:
    """Return which of the endings the name of an output has, the first one if it has none (a pipe, a device)."""
    known = tuple(endings)
    return next((end for end in known if out.lower().endswith(end)), known[0])


def write_output(uri: str, data: bytes) -> None:
    """Write the bytes of an output that `output_file` has checked.

    A file is replaced at once and keeps its permissions. A link stays a link.

    Raises:
        StepError: the disk, device or store refuses.
    """
    try:
        if uri == STDOUT:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif storage.is_local(uri):
            _write_local(uri, data)
        else:
            storage.write_bytes(uri, data)
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a store that can only be read
        reason = getattr(error, "strerror", None) or one_line(error)
        raise StepError(
            f"--out {uri}: cannot be written ({reason}); check the path, its permissions and free space"
        ) from error


def _write_local(path: str, data: bytes) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):  # a pipe or device has no content to keep whole
        with open(path, "wb", buffering=0) as device:
            _write_all(device.fileno(), data)
        return
    target = os.path.realpath(path)
    try:
        storage.write_bytes(target, data)
    except StepError as error:
        if mode is None or getattr(error.__cause__, "errno", None) not in IN_PLACE:
            raise
        with open(target, "wb") as file:
            file.write(data)
        return
    if mode is not None:
        os.chmod(target, stat.S_IMODE(mode))


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _checked(out: str) -> str:
    """Return the URI of an output.

    Raises:
        ConfigError: it is none that something can be written to.
        StepError: its store cannot be reached.
    """
    check_argument("--out", out)
    uri = storage.absolute(out)
    if uri.startswith("memory://"):
        raise ConfigError(f"--out {out}: the memory of this process ends with it; give a path or another URL")
    if uri.startswith(("http://", "https://", "data:")):
        raise ConfigError(f"--out {out}: nothing can be written there; give a path or a URL such as s3://bucket/name")
    try:
        storage.filesystem(uri)
    except StepError as error:
        raise ConfigError(f"--out {out}: {one_line(error)}") from error
    except Exception as error:  # some stores connect, or open an archive, at once
        if not storage.is_storage_error(error):
            raise
        raise StepError(
            f"--out {out}: its store cannot be used ({one_line(error)}); give another path or URL"
        ) from error
    return uri


def _mode(out: str, uri: str) -> int | None:
    """Return the mode of what is at a local URI, None if nothing is there. Raise ConfigError if nothing can be."""
    if not storage.is_local(uri):
        return None
    try:
        return os.stat(uri).st_mode
    except FileNotFoundError:
        above = nearest(os.path.dirname(os.path.realpath(uri)))
        if not os.path.isdir(above):
            raise ConfigError(f"--out {out}: {above} is a file, not a folder; give another path") from None
        if not may(above, os.W_OK | os.X_OK):
            raise ConfigError(
                f"--out {out}: {above} is not writable; give another path or change its permissions"
            ) from None
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(f"--out {out}: cannot be written ({reason}); give another path") from None


def _listed(endings: Collection[str]) -> str:
    *first, last = endings
    return f"{', '.join(first)} or {last}" if first else last
