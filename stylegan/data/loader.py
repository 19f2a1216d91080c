"""Shards to arrays, the endless order in which their images are shown, and the batches of that order, one ahead.

The tars of one resolution are decoded once into a local uint8 file that is mapped into memory: at low resolutions tar
parsing and PNG decoding would cost far more than training. What is shown when is a pure function of numbers, so a resumed
run goes on with exactly the image that would have come next.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from platformdirs import user_cache_dir
from torch import Tensor

from stylegan import storage
from stylegan.data.shards import MANIFEST, ShardSet, level_name
from stylegan.data.staging import exclusive_folder
from stylegan.errors import StepError

Batch = tuple[Tensor, Tensor]  # images, uint8 [N, C, r, r]; labels, int64 [N]


@dataclass(frozen=True)
class ImageTable:
    """`images`: uint8 [N, C, r, r], mapped read-only from disk; `labels`: int64 [N], all -1 in an unlabelled set."""

    images: np.ndarray
    labels: np.ndarray


def load_images(shards: ShardSet, resolution: int) -> ImageTable:
    """All images of one resolution, in the order of the shards.

    Decoded at the first call into $STYLEGAN_CACHE (the user's cache folder if unset); later calls, and other processes on
    this machine, map the same file. Each tar is compared with its SHA-256 in the manifest before it is used.

    Raises:
        StepError: no such resolution, a shard is missing or damaged, or the cache folder cannot be written.
    """
    if resolution not in shards.resolutions:
        raise StepError(f"{shards.uri}: has no shards at resolution {resolution}; there are {list(shards.resolutions)}")
    target = _cache_root() / "images" / f"{shards.fingerprint}-{level_name(resolution)}"
    table = _open_table(target, shards, resolution)
    if table is not None:
        return table
    try:
        with exclusive_folder(target.with_name(f".{target.name}")) as folder:
            table = _open_table(target, shards, resolution)  # made by another process while this one waited
            if table is None:
                _decode_shards(shards, resolution, folder)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(folder, target)
    except OSError as error:
        raise StepError(
            f"cannot write the image cache {target}: {error}; free some space or set STYLEGAN_CACHE to another folder"
        ) from error
    table = table or _open_table(target, shards, resolution)
    if table is None:
        raise StepError(f"the image cache {target} does not hold what was just written; set STYLEGAN_CACHE to a folder on a working disk")
    return table


def _cache_root() -> Path:
    return Path(os.environ.get("STYLEGAN_CACHE") or user_cache_dir("stylegan"))


def _open_table(folder: Path, shards: ShardSet, resolution: int) -> ImageTable | None:
    """The finished table, or None if it is not there or not whole."""
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
    except (OSError, ValueError, EOFError):
        return None
    whole = images.shape[0] == labels.shape[0] == shards.num_images and images.shape[2:] == (resolution, resolution)
    return ImageTable(images, labels) if whole else None


def _decode_shards(shards: ShardSet, resolution: int, folder: Path) -> None:
    manifest = _manifest(shards)
    entries = next(level["shardlist"] for level in manifest["datasets"] if level["resolution"] == resolution)
    shape = (shards.num_images, manifest["parameters"]["channels"], resolution, resolution)
    labels: list[int] = []
    # Plain writes, not a writable map: on a full disk a map ends the process with SIGBUS instead of an error.
    with open(folder / "images.npy", "wb") as file:
        np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for entry in entries:
            with _open_checked(shards, entry, folder) as tar:
                labels += _decode_tar(tar, file, shape[1:])
    if len(labels) != shards.num_images:
        raise _damaged(shards.uri, shards, f"its manifest promises {shards.num_images} images, its shards hold {len(labels)}")
    np.save(folder / "labels.npy", np.array(labels, np.int64))


def _manifest(shards: ShardSet) -> dict[str, Any]:
    uri = storage.join(shards.uri, MANIFEST)
    try:
        return dict(storage.read_json(uri))
    except FileNotFoundError:
        raise _damaged(uri, shards, "missing") from None


def _damaged(uri: str, shards: ShardSet, what: str) -> StepError:
    return StepError(f"{uri}: {what}; delete the folder {shards.uri} and run `stylegan shard` again, which makes the same shards")


def _open_checked(shards: ShardSet, entry: dict[str, Any], folder: Path) -> IO[bytes]:
    """The tar of a manifest entry (a copy in `folder` if it is elsewhere), after its content was compared with the manifest."""
    uri = storage.join(shards.uri, entry["url"])
    path = Path(uri)
    try:
        if not storage.is_local(uri):
            path = folder / "shard.tar"
            storage.download(uri, path)
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise _damaged(uri, shards, "missing") from None
    except OSError as error:
        raise _damaged(uri, shards, f"cannot be read ({error})") from error
    if found != entry["sha256"]:
        raise _damaged(uri, shards, f"damaged: its SHA-256 is {found[:12]}..., the manifest says {entry['sha256'][:12]}...")
    return open(path, "rb")


def _decode_tar(tar: IO[bytes], out: IO[bytes], shape: tuple[int, ...]) -> Iterator[int]:
    """Append the pixels of every sample to `out`, yield its label."""
    files = wds.tariterators.tar_file_expander([{"url": "", "stream": tar}])
    for sample in wds.tariterators.group_by_keys(files):
        pixels = np.asarray(Image.open(BytesIO(sample["png"]), formats=["PNG"]))
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if planes.shape != shape:
            raise StepError(f"{tar.name}: sample {sample['__key__']} has the shape {planes.shape}, the manifest says {shape}; shard again")
        out.write(planes.tobytes())
        yield int(sample.get("cls", b"-1"))


def sample_indices(num_images: int, *, seed: int, stage: int, start: int, count: int) -> np.ndarray:
    """Which images are the samples `start` ... `start + count - 1` of an endless order.

    Every epoch of `num_images` samples is a fresh permutation, so each image comes exactly once per epoch. Pure: the result
    depends on the arguments alone, and neighbouring calls join without a seam.

    Args:
        num_images: N, at least 1.
        stage: the resolution, so that stages do not repeat each other's order.
        start: number of samples shown before (in this stage), from 0.

    Returns:
        int64 [count] with values from 0 to N - 1.
    """
    parts = []
    position, end = start, start + count
    while position < end:
        epoch, offset = divmod(position, num_images)
        part = _permutation(num_images, seed, stage, epoch)[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


@lru_cache(maxsize=2)  # batches of one epoch come one after the other; two, for a batch that crosses its end
def _permutation(num_images: int, seed: int, stage: int, epoch: int) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stage, epoch])))
    return generator.permutation(num_images)


def batches(table: ImageTable, order: Iterable[np.ndarray]) -> Iterator[Batch]:
    """The images and labels of each array of indices."""
    for indices in order:
        yield torch.from_numpy(table.images[indices]), torch.from_numpy(table.labels[indices])


@contextmanager
def prefetch(source: Iterator[Batch], device: torch.device) -> Iterator[Iterator[Batch]]:
    """The same batches on a device; while one is used, a thread makes the next one, in page-locked memory if it goes to CUDA.

    What `source` raises is raised where its batch is asked for. The thread ends with the block.

        with prefetch(batches(table, order), device) as source:
            images, labels = next(source)
    """

    def make() -> Batch | None:
        batch = next(source, None)
        if batch is None or device.type != "cuda":
            return batch
        with torch.cuda.device(device):  # a thread begins on device 0, and would wake it up
            return batch[0].pin_memory(), batch[1].pin_memory()

    def in_turn() -> Iterator[Batch]:
        ahead = executor.submit(make)
        while batch := ahead.result():
            ahead = executor.submit(make)
            yield batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)

    with ThreadPoolExecutor(1, "prefetch") as executor:
        yield in_turn()
