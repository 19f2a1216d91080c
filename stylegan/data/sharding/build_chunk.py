"""The work of one chunk on a worker: read, hash, prepare and encode its images, write its tar of every resolution, then its marker."""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.decode import UnreadableImage, crop, decode, prepare, pyramid
from stylegan.data.payload import LARGEST_RAW, encode, encode_raw, suffix
from stylegan.data.sharding.chunks import (
    Chunk,
    ChunkRequest,
    Recipe,
    Rejected,
    Rows,
    Sample,
    duplicate,
    is_finished,
    sample_key,
    tar_url,
    write_marker,
)
from stylegan.data.sharding.tar_writer import TarFile, header, label_members, member_name
from stylegan.data.shardset import level_name, levels
from stylegan.data.sources.base import Read
from stylegan.data.staging import exclusive_folder
from stylegan.errors import StepError, one_line

_GROUP_BYTES = 2**19  # of raw pixels
_AHEAD = 64  # images under way in the threads of a worker
_TRIED, _SLOW, _READERS = 8, 0.002, 16  # if the first 8 reads took longer than 2 ms, 16 threads wait for the others


class _Touched(NamedTuple):
    number: int  # index in the request


def build_chunk(recipe: Recipe, request: ChunkRequest) -> int:
    """Do the chunk unless it is finished; returns the number of images looked at.

    Raises:
        StepError: the source or the store does not answer, or the disk refuses.
    """
    if not is_finished(recipe, request):
        with scratch(recipe.uri, request.name) as folder:
            if not is_finished(recipe, request):  # by another process, while this one waited
                _write_chunk(recipe, request, folder)
    return len(request.images)


@contextmanager
def scratch(uri: str, name: str) -> Iterator[Path]:
    """A local folder to write in; below a local set, so that files only have to be renamed, and held by one process at a time.

    Raises:
        StepError: the disk refuses, also in the block.
    """
    try:
        if storage.is_local(uri):
            with exclusive_folder(Path(uri, f".building-{name}")) as folder:
                yield folder
        else:
            with tempfile.TemporaryDirectory(prefix="stylegan-shards-") as temporary:
                yield Path(temporary)
    except OSError as error:
        raise StepError(
            f"storage: cannot write shards below {uri}: {error}; free some space there, then run the same command again"
        ) from error


def place(file: Path, uri: str) -> None:
    """Move a whole file of a scratch folder to where it belongs."""
    if storage.is_local(uri):
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, uri)
    else:
        storage.upload(file, uri)


def _write_chunk(recipe: Recipe, request: ChunkRequest, folder: Path) -> None:
    resolutions = levels(recipe.data)
    rows, rejected, touched = Rows(resolutions, recipe.labels), [], []
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / level_name(resolution), "wb")) for resolution in resolutions]
        tars = [TarFile(file, suffix(resolution)) for file, resolution in zip(files, resolutions, strict=True)]
        waiting: list[Sample] = []
        for result in stack.enter_context(_results(recipe, request)):
            if isinstance(result, Sample):
                waiting.append(result)
                if len(waiting) == _group_size(recipe.data):
                    _add_samples(waiting, rows, tars)
                    waiting.clear()
            elif isinstance(result, _Touched):
                touched.append(result.number)
            else:
                rejected.append(result)
        if waiting:
            _add_samples(waiting, rows, tars)
        for tar in tars:
            tar.close()
        _sync(files)
    made = {}
    if rows.paths:
        for resolution, tar in zip(resolutions, tars, strict=True):
            place(folder / level_name(resolution), storage.join(recipe.uri, tar_url(resolution, request.name)))
            made[resolution] = (tar.sha256, tar.num_bytes)
    write_marker(recipe, request, Chunk(rows.table(), made, rejected, touched))


def _group_size(data: DataConfig) -> int:
    """Samples that are written together; 1 if their pixels alone would leave the cache of the processor, or if they are not raw."""
    return max(_GROUP_BYTES // (data.resolution**2 * data.channels), 1) if data.resolution <= LARGEST_RAW else 1


def _add_samples(samples: list[Sample], rows: Rows, tars: list[TarFile]) -> None:
    """To the rows and to the tar of every level."""
    keys = [sample_key(sample.image.path).encode() for sample in samples]
    labels = [label_members(key, sample.image.label) for key, sample in zip(keys, samples, strict=True)]
    rows.add(samples, keys)
    if samples[0].payloads is not None:
        for key, label, sample in zip(keys, labels, samples, strict=True):
            for level, (tar, payload) in enumerate(zip(tars, sample.payloads or (), strict=True)):
                offset = tar.add(label + header(member_name(key, tar.suffix), len(payload)), payload)
                rows.add_places(level, [offset], [payload])
        return
    # The images side by side as one with many channels: numpy's cost is per call.
    pixels = pyramid(np.moveaxis(np.stack([sample.pixels for sample in samples]), 0, 2))
    names = [member_name(key, tars[0].suffix) for key in keys]
    for level, (tar, resolution) in enumerate(zip(tars, rows.resolutions, strict=True)):
        payloads = encode_raw(np.moveaxis(pixels[resolution], 2, 0))
        heads = [label + header(name, payloads.shape[1]) for label, name in zip(labels, names, strict=True)]
        rows.add_places(level, tar.add_equal(heads, payloads), payloads)


def _sync(files: Iterable[IO[bytes]]) -> None:
    """Wait until the disk has them; all at once, since one by one costs a few percent of the whole work."""

    def sync(file: IO[bytes]) -> None:
        file.flush()
        os.fsync(file.fileno())

    with ThreadPoolExecutor() as pool:
        list(pool.map(sync, files))


@contextmanager
def _results(recipe: Recipe, request: ChunkRequest) -> Iterator[Iterator[Sample | _Touched | Rejected]]:
    """Every image of the chunk in order."""
    with ExitStack() as stack:
        try:
            read = stack.enter_context(recipe.open())
        except OSError as error:
            raise StepError(
                f"data.source={recipe.data.source}: cannot be read: {error}; check that it is still there, then run the same command again"
            ) from error
        results = _in_threads(recipe, request, _Stopwatch(read))
        try:
            yield _without_twins(results, recipe.data)
        finally:
            results.close()


class _Stopwatch:
    """A reader that notes how long each read takes."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.seconds: list[float] = []

    def __call__(self, path: str) -> bytes | np.ndarray:
        start = time.perf_counter()
        content = self._read(path)
        self.seconds.append(time.perf_counter() - start)
        return content


def _in_threads(
    recipe: Recipe, request: ChunkRequest, read: _Stopwatch
) -> Generator[Sample | _Touched | Rejected, None, None]:
    """By as many threads as the recipe says; by more if the first few images were waited for."""

    def work(number: int) -> Sample | _Touched | Rejected:
        return _process(number, recipe, request, read)

    yield from map(work, range(min(_TRIED, len(request.images))))
    rest = range(_TRIED, len(request.images))
    slow = bool(read.seconds) and statistics.median(read.seconds) > _SLOW
    threads = max(recipe.threads, _READERS if slow else 1)
    if threads == 1:
        yield from map(work, rest)
        return
    with ThreadPoolExecutor(threads, "shard") as pool:
        try:
            yield from _windowed(pool, work, rest)
        finally:
            pool.shutdown(cancel_futures=True)


def _windowed(pool: ThreadPoolExecutor, work: Callable[[int], Any], indices: Iterable[int]) -> Iterator[Any]:
    """Like `pool.map`, but only a bounded number of results is ever in memory."""
    pending: deque[Future[Any]] = deque()
    for index in indices:
        pending.append(pool.submit(work, index))
        if len(pending) >= _AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _without_twins(
    results: Iterable[Sample | _Touched | Rejected], data: DataConfig
) -> Iterator[Sample | _Touched | Rejected]:
    """Later ones of the same bytes become rejects; those of other chunks are found when all chunks are done."""
    seen: set[bytes] = set()
    for result in results:
        if isinstance(result, Sample) and data.duplicates == "reject":
            if result.source_sha256 in seen:
                yield duplicate(result.image.path, result.image.token, result.num_bytes, result.source_sha256)
                continue
            seen.add(result.source_sha256)
        yield result


def _process(number: int, recipe: Recipe, request: ChunkRequest, read: Read) -> Sample | _Touched | Rejected:
    image, data = request.images[number], recipe.data
    rejected: Rejected = {"path": image.path, "kind": "unreadable", "bytes": None, "token": image.token, "sha256": None}
    try:
        content = read(image.path)
    except StepError:
        raise
    except (
        Exception
    ) as error:  # this image alone: gone since the listing, not permitted, a damaged member of the archive
        return rejected | {"reason": f"cannot be read: {one_line(error)}"}
    raw = content if isinstance(content, bytes) else content.tobytes()
    rejected["bytes"] = len(raw)
    if recipe.labels != "none" and image.label is None:
        return rejected | {"kind": "unlabelled", "reason": "has no label"}
    digest = hashlib.sha256(raw).digest()
    if request.known and request.known[number] == digest:
        return _Touched(number)
    try:
        pixels, size = _square(content, data)
    except UnreadableImage as error:
        return rejected | {"kind": error.kind, "reason": str(error)}
    payloads = None
    if _group_size(data) == 1:
        made = pyramid(pixels)
        payloads = tuple(encode(made[resolution], resolution) for resolution in levels(data))
    return Sample(image, digest, len(raw), size, hashlib.sha256(pixels.data).digest(), pixels, payloads)


def _square(content: bytes | np.ndarray, data: DataConfig) -> tuple[np.ndarray, tuple[int, int]]:
    """The final pixels, as `prepare` makes them, and the size of the original; the other levels are made of several images at once."""
    if isinstance(content, np.ndarray):
        prepared = prepare(content, data)
        return prepared.levels[data.resolution], (prepared.width, prepared.height)
    picture = decode(content, data.channels, data)
    return np.asarray(crop(picture, data)), picture.size
