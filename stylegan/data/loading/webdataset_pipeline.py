"""Stream a finished set of shards as a `webdataset` pipeline, for notebooks and for training loops other than ours.

Our own training does not use it: it reads images in any order, from a local cache of raw pixels (see loader.py). This
pipeline reads each tar from front to back, as webdataset does, and needs no local disk.

Three things differ from `webdataset.WebDataset(urls)`:

- `stylegan.storage` opens the tars. So every fsspec URL works, a request to a failing store is repeated, and no handler
  is registered in webdataset for the whole process.
- The tars of an incremental set also contain samples that no longer count, such as deleted images. The table of the set
  decides:
  exactly its samples are yielded, each is compared with its checksum, and a missing one is an error.
- If a set has fewer tars than readers, the readers share it by samples, so that none of them is left without any.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import webdataset as wds
from webdataset.compat import FluidInterface
from webdataset.tariterators import base_plus_ext, tar_file_iterator
from webdataset.utils import pytorch_worker_info

from stylegan import storage
from stylegan.data.index import LevelIndex, describe_damage, read_level, read_manifest, read_samples
from stylegan.data.payload import decode
from stylegan.data.shardset import MANIFEST, ShardSet
from stylegan.errors import StepError, one_line


class ShardPipeline(wds.DataPipeline, FluidInterface):
    """A `webdataset.DataPipeline` over a finished set, with webdataset's methods: `.map`, `.batched`, `.with_epoch`, ...

    If samples are shuffled, every pass over the set has an order of its own, which depends on the seed and on the
    number of the pass. Each process counts its passes from 0. A DataLoader without `persistent_workers` starts new
    worker processes in every epoch, and these would count from 0 again, so call `set_epoch` before each epoch.
    """

    def set_epoch(self, epoch: int) -> None:
        """Give the next pass the number `epoch`, from 0, here and in DataLoader workers that start later."""
        for stage in self.pipeline:
            if isinstance(stage, wds.detshuffle):
                stage.epoch = epoch - 1  # it counts up before each pass


def open_webdataset(
    shards: ShardSet | str | Path,
    resolution: int,
    *,
    shuffle: int = 0,
    seed: int = 0,
    labels: bool = True,
    as_dict: bool = False,
    as_numpy: bool = False,
    split_by_node: bool = True,
    split_by_worker: bool = True,
) -> ShardPipeline:
    """Open one resolution of a finished set as a `webdataset` pipeline.

        from torch.utils.data import DataLoader
        from stylegan.data import open_webdataset

        pipeline = open_webdataset("s3://bucket/stylegan/datasets/0a1b2c3d4e", 64, shuffle=2000, seed=1)
        loader = DataLoader(pipeline, batch_size=32, num_workers=4)
        for epoch in range(10):
            pipeline.set_epoch(epoch)
            for images, labels in loader:  # uint8 [32, 3, 64, 64] and int64 [32]
                ...

    A pass yields every image of the set once, over all readers together, with the pixels and labels that training sees.
    A reader is one DataLoader worker of one rank. All ranks must use the same arguments and the same number of workers.

    - With at least as many tars as readers, each reader gets whole tars. Its share is larger or smaller as its tars
      are.
    - With fewer tars than readers, each reader reads all tars and yields every n-th sample. Shares differ by at most
      one sample, and every byte is read n times.

    For distributed training, which needs equal shares, `pipeline.with_epoch(n)` makes every reader yield exactly n
    samples. A reader with a smaller share then starts another pass, and one with a larger share leaves out the rest.

    Args:
        shards: the set, or the folder of its manifest, on this machine or at an fsspec URL.
        resolution: a resolution of the set: 4, 8, ... up to its final one.
        shuffle: size of the shuffle buffer, in samples. Each reader keeps that many encoded images in memory, and the
            order of the tars is shuffled too. 0: no shuffling; every pass has the same order.
        seed: decides the order, together with the number of the pass.
        labels: yield labels.
        as_dict: yield {"__key__": str, "__url__": str, "image": ..., "label": ...} instead of tuples. "__key__" is the
            name of the sample in its tar, "__url__" the URI of the tar.
        as_numpy: yield NumPy arrays instead of tensors.
        split_by_node: share the samples among the ranks: $RANK and $WORLD_SIZE, or those of `torch.distributed`, which
            must be initialised before this call. False: every rank yields all samples.
        split_by_worker: share the samples of a rank among its DataLoader workers. False: every worker yields all
            samples.

    Returns:
        A pipeline of tuples (image, label), or (image,) without labels. The image is uint8 [C, r, r] with values from 0
        to 255, writable and in memory of its own. The label is the class number as an int, or the attributes as uint8
        [A] with values 0 and 1; it is -1 in a set without labels.

    Raises:
        StepError: there is no finished set, no such resolution, or its manifest or table is damaged. While the pipeline
            runs: a tar or a sample is missing or damaged, or the store does not answer.
        ValueError: `shuffle` is negative.
    """
    # Find the set and the samples that count.
    if shuffle < 0:
        raise ValueError(f"shuffle={shuffle}: must be the size of the buffer, or 0 for no shuffling")
    if not isinstance(shards, ShardSet):
        shards = _read_set(storage.absolute(str(shards)))
    index = read_level(shards, resolution)
    keys = read_samples(shards.uri, read_manifest(shards.uri), ["key"])["key"].combine_chunks()
    rows = _Rows.by_tar(index, keys, labels)

    # The rank is read here, because a DataLoader worker may not know it.
    rank, num_ranks, _, _ = pytorch_worker_info() if split_by_node else (0, 1, 0, 1)

    # Put the stages together. Samples are shuffled before they are decoded, while they are small.
    stages: list[Any] = [wds.SimpleShardList(list(rows.tars))]
    if shuffle:
        stages.append(wds.detshuffle(bufsize=len(rows.tars), initial=len(rows.tars), seed=seed))
    stages.append(_TarReader(shards.uri, index.suffix, rows, rank, num_ranks, split_by_worker))
    if shuffle:
        stages.append(wds.detshuffle(bufsize=shuffle, initial=shuffle, seed=seed))
    stages.append(wds.map(_Decoder(shards.uri, index.suffix, index.shape, as_numpy)))
    if not as_dict:
        stages.append(wds.to_tuple("image", "label") if labels else wds.to_tuple("image"))
    return ShardPipeline(*stages)


def _read_set(uri: str) -> ShardSet:
    """Return the finished set in a folder. Raise StepError if there is none, or its manifest is damaged."""
    manifest_uri = storage.join(uri, MANIFEST)
    if not storage.exists(manifest_uri):
        raise StepError(f"{uri}: holds no finished set of shards; give a folder below datasets/ that has a {MANIFEST}")
    return ShardSet.from_manifest(uri, read_manifest(uri))


@dataclass(frozen=True)
class _Rows:
    """The samples of a set at one resolution, sorted by tar.

    Attributes:
        tars: URIs of the T tars.
        starts: int64 [T + 1]; the samples of tar t are the rows from starts[t] to starts[t + 1] - 1.
        keys: names of the samples in their tars, strings [N].
        crc: uint32 [N], `zlib.crc32` of each payload.
        labels: class numbers, int64 [N], or attributes, uint8 [N, A]; None if labels are not wanted.
    """

    tars: tuple[str, ...]
    starts: np.ndarray
    keys: pa.Array
    crc: np.ndarray
    labels: np.ndarray | None

    @classmethod
    def by_tar(cls, index: LevelIndex, keys: pa.Array, with_labels: bool) -> _Rows:
        """Sort the rows of an index by tar."""
        order = np.argsort(index.tar, kind="stable")
        labels = None
        if with_labels:
            labels = (index.labels if index.attributes is None else index.attributes)[order]
        starts = np.searchsorted(index.tar[order], np.arange(len(index.tars) + 1))
        return cls(tuple(tar.uri for tar in index.tars), starts, keys.take(pa.array(order)), index.crc[order], labels)

    def of_tar(self, number: int) -> dict[str, int]:
        """Return the row of each sample of a tar by its key."""
        start, end = int(self.starts[number]), int(self.starts[number + 1])
        return dict(zip(self.keys.slice(start, end - start).to_pylist(), range(start, end), strict=True))


@dataclass(frozen=True)
class _TarReader:
    """The stage of a pipeline that turns URLs of tars into this reader's share of the samples, with encoded images."""

    shards_uri: str
    suffix: str
    rows: _Rows
    rank: int
    num_ranks: int
    split_by_worker: bool

    def __call__(self, tars: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the share of the calling process: whole tars, or every n-th sample if there are fewer tars than readers."""
        # Find out which reader this is.
        _, _, worker, num_workers = pytorch_worker_info() if self.split_by_worker else (0, 1, 0, 1)
        reader, num_readers = self.rank + self.num_ranks * worker, self.num_ranks * num_workers

        # Take every n-th tar, or every n-th sample. All readers see the tars in the same order.
        numbers = {uri: number for number, uri in enumerate(self.rows.tars)}
        in_turn = (numbers[tar["url"]] for tar in tars)
        if len(numbers) >= num_readers:
            return chain.from_iterable(map(self._read_tar, islice(in_turn, reader, None, num_readers)))
        return islice(chain.from_iterable(map(self._read_tar, in_turn)), reader, None, num_readers)

    def _read_tar(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield the samples of one tar that count. Raise StepError if one of them is damaged or missing."""
        uri, waiting = self.rows.tars[number], self.rows.of_tar(number)

        def counts(name: str) -> bool:
            key, suffix = base_plus_ext(name)
            return suffix == self.suffix and key in waiting

        for member in self._read_members(uri, counts):
            key, _ = base_plus_ext(member["fname"])
            row = waiting.pop(key)
            if zlib.crc32(member["data"]) != self.rows.crc[row]:
                raise StepError(describe_damage(self.shards_uri, uri, f"sample {key} has a wrong checksum"))
            sample = {"__key__": key, "__url__": uri, "image": member["data"]}
            if self.rows.labels is not None:
                sample["label"] = self.rows.labels[row]
            yield sample
            if not waiting:  # no sample in the rest of the tar counts
                return
        problem = f"{len(waiting)} samples are missing, such as {next(iter(waiting))}"
        raise StepError(describe_damage(self.shards_uri, uri, problem))

    def _read_members(self, uri: str, wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
        """Yield name and content of every file of a tar whose name is wanted.

        Raises:
            StepError: the tar is missing or damaged, or the store does not answer.
        """
        try:
            with storage.open_read(uri) as file:
                yield from tar_file_iterator(file, select_files=wanted)
        except FileNotFoundError:
            raise StepError(describe_damage(self.shards_uri, uri, "missing")) from None
        except StepError as error:
            raise type(error)(_message(error)) from error
        except (tarfile.TarError, OSError, EOFError) as error:
            raise StepError(describe_damage(self.shards_uri, uri, f"cannot be read ({_message(error)})")) from error


def _message(error: Exception) -> str:
    """Return the message of an error without the file object that webdataset appends to it."""
    return one_line(error, 1000).partition(" @ <")[0]


@dataclass(frozen=True)
class _Decoder:
    """The stage of a pipeline that decodes the image and the label of one sample."""

    shards_uri: str
    suffix: str
    shape: tuple[int, int, int]
    as_numpy: bool

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with its image as uint8 [C, r, r] and its label as an int or uint8 [A]."""
        try:
            pixels = decode(sample["image"], self.suffix)
        except ValueError as error:
            raise self._damage(sample, f"is {one_line(error)}") from error
        if pixels.shape != self.shape:
            raise self._damage(sample, f"has the shape {pixels.shape}, the manifest says {self.shape}")
        image = np.array(pixels, order="C")  # a copy, because `pixels` is a read-only view
        decoded = sample | {"image": image if self.as_numpy else torch.from_numpy(image)}
        if "label" in sample:
            decoded["label"] = self._label(sample["label"])
        return decoded

    def _label(self, label: Any) -> Any:
        if not label.ndim:
            return int(label)
        return label.copy() if self.as_numpy else torch.tensor(label)

    def _damage(self, sample: dict[str, Any], problem: str) -> StepError:
        return StepError(describe_damage(self.shards_uri, sample["__url__"], f"sample {sample['__key__']} {problem}"))
