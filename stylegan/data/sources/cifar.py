"""List and read CIFAR-10 and CIFAR-100 as their authors publish them.

The files are Python pickles or plain binary files, in an archive or unpacked. An archive or a folder gives the training
images, as in StyleGAN's own tools. To get the test images, name their file. The labels of CIFAR-100 are its fine ones.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stylegan import storage
from stylegan.data.sources.access.tarwalk import Member, open_tar, walk
from stylegan.data.sources.base import Files, Listing, read_whole
from stylegan.data.sources.blocks import Block, list_blocks
from stylegan.errors import StepError, one_line

ARCHIVES = re.compile(r"cifar-100?-(python|binary).*\.(tar|tar\.gz|tgz)", re.IGNORECASE)
BATCHES = re.compile(r"data_batch_\d+(\.bin)?|test_batch(\.bin)?|(train|test)(\.bin)?")
_NAMES = re.compile(r"batches\.meta(\.txt)?|meta|fine_label_names\.txt")
_LARGEST = 2**28  # bytes of one batch; the largest public one has 155 million
_SHAPE = (3, 32, 32)


def list_images(files: Files) -> Listing:
    """List the images, 32x32 in RGB, under paths such as `data_batch_1/00000` (CIFAR-10) or `train/00000` (CIFAR-100).

    Binary and Python files of the same set give the same paths, labels and tokens.

    Raises:
        StepError: a file is damaged, is not CIFAR's, or is a pickle that names anything else than arrays need.
    """
    return list_blocks(files, _blocks, _label_names(files), data_format="cifar")


def _blocks(files: Files) -> Iterator[Block]:
    """Yield the training batches, or the test batch if there is no other."""
    batches = dict(_contents(files, BATCHES))
    training = [name for name in sorted(batches) if not name.startswith("test")]
    for name in training or sorted(batches):
        where = f"data.source={files.source}: {name}"
        read_batch = _read_binary if name.endswith(".bin") else _read_pickle
        data, labels = read_batch(where, batches.pop(name))
        pixels = data.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)
        yield Block(name.removesuffix(".bin"), pixels, labels)


def _contents(files: Files, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name (without folders) and content of each wanted file, from an archive or from unpacked files."""
    for path, token in files.tokens.items():
        name = storage.name(path)
        if ARCHIVES.fullmatch(name):
            with open_tar(files.source, files.uri(path), token) as content:
                for member in walk(files.source, content, path if wanted is BATCHES else None):
                    last = member.name.rpartition("/")[2]
                    if isinstance(member, Member) and wanted.fullmatch(last) and member.size <= _LARGEST:
                        yield last, content.read(member.size)
        elif wanted.fullmatch(name):
            yield name, read_whole(files.uri(path), _LARGEST)


def _label_names(files: Files) -> tuple[str, ...]:
    """Return the names of the classes from the meta file, or an empty tuple without such a file."""
    names: Any
    for name, content in _contents(files, _NAMES):
        if name.endswith(".txt"):
            names = content.decode(errors="replace").split()
        else:
            meta = _load(f"data.source={files.source}: {name}", content)
            names = meta.get("fine_label_names", meta.get("label_names"))
        if isinstance(names, list) and names and all(isinstance(known, str) for known in names):
            return tuple(names)
    return ()


def _read_binary(where: str, content: bytes) -> tuple[np.ndarray, list[int]]:
    """Return the values [N, 3072] and labels of a binary batch.

    A record is a label and 3,072 values. In CIFAR-100 the coarse label comes before the fine one.
    """
    num_labels = 2 if re.search(r" (train|test)\.bin$", where) else 1
    size = num_labels + math.prod(_SHAPE)
    if not content or len(content) % size:
        raise StepError(
            f"{where} has {len(content)} bytes, not a multiple of {size}, the size of CIFAR's records; get the archive again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, num_labels:], records[:, num_labels - 1].tolist()


def _read_pickle(where: str, content: bytes) -> tuple[np.ndarray, list[int]]:
    """Return the values [N, 3072] and labels of a pickled batch."""
    batch = _load(where, content)
    data, labels = batch.get("data"), batch.get("fine_labels", batch.get("labels"))
    array = data.value if isinstance(data, _Array) else None
    if array is None or array.ndim != 2 or array.shape[1] != math.prod(_SHAPE) or array.dtype != np.uint8:
        raise StepError(
            f"{where} has no `data` with 3,072 values for each image, as CIFAR's batches do; get the archive again"
        )
    if not isinstance(labels, list) or not all(type(label) is int and label >= 0 for label in labels):
        raise StepError(
            f"{where} has no list of `labels` or `fine_labels`, as CIFAR's batches do; get the archive again"
        )
    return array, labels


# --- pickles ----------------------------------------------------------------------------------------------------------
# A pickle is a program that can call any function it names. The few names that CIFAR's pickles need are replaced by
# harmless classes and functions of this module; every other name is refused.


class _DType:
    """Replaces `numpy.dtype`; allows only bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code != "u1":
            raise StepError(f"values of type {str(code)[:20]!r}; CIFAR's are bytes")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Replaces `numpy.ndarray`; `value` is the array."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, _, fortran, raw = state
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        if math.prod(shape) != len(data):
            raise StepError(f"an array of shape {str(shape)[:40]} has {len(data)} bytes")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    """Replace numpy's function, which makes an empty array."""
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Replace `codecs.encode`, which Python 3 puts into pickles of protocol 2 for bytes."""
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that refuses every name but those in `_ALLOWED`."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the replacement of a global name.

        Raises:
            StepError: the name is not allowed.
        """
        if (module_name, global_name) not in _ALLOWED:
            raise StepError(
                f"the pickle names {f'{module_name}.{global_name}'[:80]!r}, which no batch of CIFAR needs: it is another kind of file or "
                "malicious, and nothing in it was run"
            )
        return _ALLOWED[module_name, global_name]


def _check_sizes(content: bytes) -> None:
    """Raise ValueError if a pickle is cut short, or numbers an object so high that the table for it would fill the memory.

    Python's unpickler makes room for whatever a damaged pickle says, before it looks at what follows.
    """
    for code, argument, position in pickletools.genops(content):
        if code.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(content):
            raise ValueError(f"byte {position} gives an object the number {argument}")


def _load(where: str, content: bytes) -> dict[str, Any]:
    """Return the dictionary in a pickle of CIFAR.

    Args:
        where: beginning of error messages.

    Raises:
        StepError: the pickle is damaged, contains something else, or names what is not allowed.
    """
    try:
        _check_sizes(content)
        loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except StepError as error:
        raise StepError(f"{where}: {error}; get the archive from its authors") from None
    except Exception as error:  # a damaged pickle may raise nearly any exception
        raise StepError(
            f"{where} is not a batch of CIFAR, or is cut short ({one_line(error)}); get the archive again"
        ) from error
    if not isinstance(loaded, dict):
        raise StepError(f"{where} contains a {type(loaded).__name__}, not a batch of CIFAR; get the archive again")
    return loaded
