"""CIFAR-10 and CIFAR-100 as their authors give them, packed or unpacked: pickles for Python, and plain binary files.

Without naming a file of it, a set is its training images, as in StyleGAN's own tools. Of CIFAR-100 the fine labels count.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stylegan import storage
from stylegan.data.sources.access.tarwalk import open_tar, walk
from stylegan.data.sources.base import Files, Listing
from stylegan.data.sources.blocks import Block, list_blocks
from stylegan.errors import StepError, one_line

ARCHIVES = re.compile(r"cifar-100?-(python|binary).*\.(tar|tar\.gz|tgz)", re.IGNORECASE)
BATCHES = re.compile(r"data_batch_\d+(\.bin)?|test_batch(\.bin)?|(train|test)(\.bin)?")
_NAMES = re.compile(r"batches\.meta(\.txt)?|meta|fine_label_names\.txt")
_LARGEST = 2**28  # bytes of one batch; the largest public one has 155 million
_SHAPE = (3, 32, 32)


def list_images(files: Files) -> Listing:
    """Images `data_batch_1/00000` ... or `train/00000` ..., 32x32 in RGB; binary and python files give the same paths."""
    return list_blocks(files, _blocks, _label_names(files), data_format="cifar")


def _blocks(files: Files) -> Iterator[Block]:
    found = dict(_contents(files, BATCHES))
    training = [name for name in sorted(found) if not name.startswith("test")]
    for name in training or sorted(found):
        where = f"data.source={files.source}: {name}"
        data, labels = (_binary if name.endswith(".bin") else _python)(where, found.pop(name))
        pixels = data.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)
        yield Block(name.removesuffix(".bin"), pixels, labels)


def _contents(files: Files, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """The wanted files by their last name, out of an archive or as they lie."""
    for path, token in files.tokens.items():
        name = storage.name(path)
        if ARCHIVES.fullmatch(name):
            with open_tar(files.source, files.uri(path), token) as content:
                for member in walk(files.source, content):
                    last = member.name.rpartition("/")[2]
                    if wanted.fullmatch(last) and member.size <= _LARGEST:
                        yield last, content.read(member.size)
        elif wanted.fullmatch(name):
            yield name, storage.read_bytes(files.uri(path))


def _label_names(files: Files) -> tuple[str, ...]:
    """Of the meta file; classes are numbers without one."""
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


def _binary(where: str, content: bytes) -> tuple[np.ndarray, list[int]]:
    """Records of the label, after the coarse one in CIFAR-100, and 3,072 values."""
    num_labels = 2 if re.search(r" (train|test)\.bin$", where) else 1
    size = num_labels + math.prod(_SHAPE)
    if not content or len(content) % size:
        raise StepError(
            f"{where} has {len(content)} bytes, no multiple of {size} as CIFAR's records are; get the archive again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, num_labels:], records[:, num_labels - 1].tolist()


def _python(where: str, content: bytes) -> tuple[np.ndarray, list[int]]:
    batch = _load(where, content)
    data, labels = batch.get("data"), batch.get("fine_labels", batch.get("labels"))
    array = data.value if isinstance(data, _Array) else None
    if array is None or array.ndim != 2 or array.shape[1] != math.prod(_SHAPE) or array.dtype != np.uint8:
        raise StepError(
            f"{where} holds no `data` of 3,072 values an image, as CIFAR's batches do; get the archive again"
        )
    if not isinstance(labels, list) or not all(type(label) is int and label >= 0 for label in labels):
        raise StepError(
            f"{where} holds no list of `labels` or `fine_labels`, as CIFAR's batches do; get the archive again"
        )
    return array, labels


# --- pickles ----------------------------------------------------------------------------------------------------------
# A pickle is a program that calls what it names. Each name allowed here stands for something inert of this file.


class _DType:
    """Stands for `numpy.dtype`: bytes only."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code != "u1":
            raise StepError(f"values of type {str(code)[:20]!r}; CIFAR's are bytes")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for `numpy.ndarray`."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, _, fortran, raw = state
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
        if math.prod(shape) != len(data):
            raise StepError(f"an array of shape {str(shape)[:40]} of {len(data)} bytes")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise StepError(
                f"the pickle names {f'{module_name}.{global_name}'[:80]!r}, which no batch of CIFAR needs: it is another kind of file or a "
                "malicious one, and nothing of it was run"
            )
        return _ALLOWED[module_name, global_name]


def _load(where: str, content: bytes) -> dict[str, Any]:
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except StepError as error:
        raise StepError(f"{where}: {error}; get the archive from its authors") from None
    except Exception as error:  # damaged pickles raise nearly everything
        raise StepError(
            f"{where} is no batch of CIFAR, or cut short ({one_line(error)}); get the archive again"
        ) from error
    if not isinstance(loaded, dict):
        raise StepError(f"{where} holds a {type(loaded).__name__}, not a batch of CIFAR; get the archive again")
    return loaded
