"""Build one chunk on a worker.

Read, hash, prepare and encode its images, write a tar for each resolution, then the marker.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.cache import exclusive_folder
from stylegan.data.dataset_card import Rejected
from stylegan.data.decode import UnreadableImage, crop, decode, prepare, pyramid
from stylegan.data.payload import LARGEST_RAW, encode, encode_raw, suffix
from stylegan.data.sharding.chunks import (
    UNREAD,
    ChunkRequest,
    Facts,
    FinishedChunk,
    Recipe,
    Rows,
    Sample,
    duplicate,
    finished_facts,
    sample_key,
    tar_url,
    write_marker,
)
from stylegan.data.sharding.tar_writer import TarFile, header, label_members, member_name
from stylegan.data.shardset import level_name, levels
from stylegan.data.sources.base import DAMAGE, Read, require_size
from stylegan.errors import StepError, one_line

_GROUP_BYTES = 2**19  # of raw pixels
_AHEAD = 64  # images in the threads of a worker at a time, at most
_TRIED, _SLOW, _READERS = 8, 0.002, 16  # if the median of the first 8 reads is above 2 ms, 16 threads read the others


class _Touched(NamedTuple):
    """An image whose bytes are still those of the parent: `number` is its index in the request."""

    number: int


def build_chunk(recipe: Recipe, request: ChunkRequest) -> int:
    """Build a chunk unless it is finished. Return its number of images.

    Raises:
        StepError: the source or the store does not answer, or the disk refuses.
    """
    known = finished_facts(recipe, request)
    if known is None or not _is_done(recipe, known):
        with scratch(recipe.uri, request.name) as folder:
            # Another process may have finished it, or done it again, while this one waited.
            if finished_facts(recipe, request) in (None, known):
                _write_chunk(recipe, request, folder)
    return len(request.images)


def _is_done(recipe: Recipe, facts: Facts) -> bool:
    """Return whether none of the images that a finished chunk could not read can be read by now."""
    unread = [reject["path"] for reject in facts["rejected"] if reject["kind"] == UNREAD]
    return not unread or not _any_readable(recipe, unread)


def _any_readable(recipe: Recipe, paths: Sequence[str]) -> bool:
    """Return whether the source can read one of these images. Raises StepError if its store does not answer."""
    with recipe.open() as read, ThreadPoolExecutor(_READERS, "unread") as pool:

        def can_read(path: str) -> bool:
            try:
                read(path)
            except StepError:
                raise
            except Exception:
                return False
            return True

        try:
            return any(pool.map(can_read, paths))
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def scratch(uri: str, name: str) -> Iterator[Path]:
    """Create a local folder to write in, and remove it at the end of the block.

    For a local set it is below the folder of the set, so that finished files only have to be renamed, and one process
    at a time holds it.

    Raises:
        StepError: the disk refuses, here or in the block.
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


def move_into_place(file: Path, uri: str) -> None:
    """Move a complete file of a scratch folder to its URI in the set."""
    if storage.is_local(uri):
        storage.make_folder(Path(uri).parent)
        storage.place(file, Path(uri))
    else:
        storage.upload(file, uri)


def _write_chunk(recipe: Recipe, request: ChunkRequest, folder: Path) -> None:
    """Write the tars of a chunk, move them to their places, and write the marker."""
    resolutions = levels(recipe.data)
    rows, rejected, touched = Rows(resolutions, recipe.labels), [], []

    # Write the tars into the scratch folder, several samples at a time.
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

    # Move them to their places, unless they are empty; write the marker last.
    facts = {}
    if rows.paths:
        for resolution, tar in zip(resolutions, tars, strict=True):
            tar_uri = storage.join(recipe.uri, tar_url(resolution, request.name))
            move_into_place(folder / level_name(resolution), tar_uri)
            facts[resolution] = (tar.sha256, tar.num_bytes)
    write_marker(recipe, request, FinishedChunk(rows.table(), facts, rejected, touched))


def _group_size(data: DataConfig) -> int:
    """Return the number of samples that are written together.

    It is 1 if they are not stored raw, or if the pixels of one already fill `_GROUP_BYTES`: more would not stay in the
    cache of the processor.
    """
    return max(_GROUP_BYTES // (data.resolution**2 * data.channels), 1) if data.resolution <= LARGEST_RAW else 1


def _add_samples(samples: list[Sample], rows: Rows, tars: list[TarFile]) -> None:
    """Add samples to the rows and to the tar of every level."""
    keys = [sample_key(sample.image.path).encode() for sample in samples]
    labels = [label_members(key, sample.image.label) for key, sample in zip(keys, samples, strict=True)]
    rows.add(samples, keys)

    # Payloads that are already made: one by one.
    if samples[0].payloads is not None:
        for key, label, sample in zip(keys, labels, samples, strict=True):
            for level, (tar, payload) in enumerate(zip(tars, sample.payloads or (), strict=True)):
                offset = tar.add(label + header(member_name(key, tar.suffix), len(payload)), payload)
                rows.add_places(level, [offset], [payload])
        return

    # Raw payloads: all images as one with many channels, because numpy's cost is per call.
    pixels = pyramid(np.moveaxis(np.stack([sample.pixels for sample in samples]), 0, 2))
    names = [member_name(key, tars[0].suffix) for key in keys]
    for level, (tar, resolution) in enumerate(zip(tars, rows.resolutions, strict=True)):
        payloads = encode_raw(np.moveaxis(pixels[resolution], 2, 0))
        heads = [label + header(name, payloads.shape[1]) for label, name in zip(labels, names, strict=True)]
        rows.add_places(level, tar.add_equal(heads, payloads), payloads)


def _sync(files: Iterable[IO[bytes]]) -> None:
    """Wait until the files are on the disk.

    All are synced at the same time, because one by one costs a few percent of the whole work.
    """

    def sync(file: IO[bytes]) -> None:
        file.flush()
        os.fsync(file.fileno())

    with ThreadPoolExecutor() as pool:
        list(pool.map(sync, files))


@contextmanager
def _results(recipe: Recipe, request: ChunkRequest) -> Iterator[Iterator[Sample | _Touched | Rejected]]:
    """Open the source and yield an iterator over the results of all images, in the order of the request.

    Raises:
        StepError: the source cannot be opened.
    """
    with recipe.open() as read:
        results = _in_threads(recipe, request, _Stopwatch(read))
        try:
            yield _without_twins(results, recipe.data)
        finally:
            results.close()


class _Stopwatch:
    """A reader that records how long each read takes, in seconds."""

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
    """Process the images in as many threads as the recipe says, or in more if the first reads were slow."""

    def work(number: int) -> Sample | _Touched | Rejected:
        return _process(number, recipe, request, read)

    # Time the reads of the first few images.
    yield from map(work, range(min(_TRIED, len(request.images))))
    slow = bool(read.seconds) and statistics.median(read.seconds) > _SLOW

    # Process the rest.
    rest = range(_TRIED, len(request.images))
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
    """Do what `pool.map` does, with at most `_AHEAD` results in memory."""
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
    """Turn later images with the same bytes into rejects.

    Duplicates in other chunks are found when all chunks are done.
    """
    seen: set[bytes] = set()
    for result in results:
        if isinstance(result, Sample) and data.duplicates == "reject":
            if result.source_sha256 in seen:
                yield duplicate(result.image.path, result.image.token, result.num_bytes, result.source_sha256)
                continue
            seen.add(result.source_sha256)
        yield result


def _process(number: int, recipe: Recipe, request: ChunkRequest, read: Read) -> Sample | _Touched | Rejected:
    """Read, check and prepare one image of a request.

    Raises:
        StepError: the source does not answer. Every other problem makes the image a reject.
    """
    image, data = request.images[number], recipe.data
    rejected: Rejected = {
        "path": image.path,
        "kind": "unreadable",
        "reason": "",
        "bytes": None,
        "token": image.token,
        "sha256": None,
    }

    # Read it. A failure concerns this image alone. It is final only if the bytes themselves prove it, such as a wrong
    # checksum in an archive. A missing file, a refused permission or a dead link may be there again later.
    try:
        content = read(image.path)
        num_bytes = len(content) if isinstance(content, bytes) else content.nbytes
        require_size(num_bytes)
    except StepError:
        raise
    except UnreadableImage as error:
        return rejected | {"kind": error.kind, "reason": str(error)}
    except DAMAGE as error:
        return rejected | {"reason": f"cannot be read: {one_line(error)}"}
    except Exception as error:
        return rejected | {"kind": UNREAD, "reason": f"could not be read: {one_line(error)}"}
    raw = content if isinstance(content, bytes) else content.tobytes()
    rejected["bytes"] = len(raw)

    # Check the label, and compare the bytes with those of the parent.
    if recipe.labels != "none" and image.label is None:
        return rejected | {"kind": "unlabelled", "reason": "has no label"}
    digest = hashlib.sha256(raw).digest()
    if request.known and request.known[number] == digest:
        return _Touched(number)

    # Prepare the pixels. Raw payloads are made later, of several images at once.
    try:
        pixels, size = _square(content, data)
    except UnreadableImage as error:
        if isinstance(error.__cause__, MemoryError):  # says nothing about the image
            return rejected | {"kind": UNREAD, "reason": "does not fit into the memory of this machine", "bytes": None}
        return rejected | {"kind": error.kind, "reason": str(error)}
    payloads = None
    if _group_size(data) == 1:
        made = pyramid(pixels)
        payloads = tuple(encode(made[resolution], resolution) for resolution in levels(data))
    return Sample(image, digest, len(raw), size, hashlib.sha256(pixels.data).digest(), pixels, payloads)


def _square(content: bytes | np.ndarray, data: DataConfig) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the pixels of the final resolution, as `prepare` makes them, and the (width, height) of the original.

    The other levels are made later, of several images at once.

    Raises:
        UnreadableImage: not a picture, or not one that `data` accepts.
    """
    if isinstance(content, np.ndarray):
        prepared = prepare(content, data)
        return prepared.levels[data.resolution], (prepared.width, prepared.height)
    picture = decode(content, data.channels, data)
    return np.asarray(crop(picture, data)), picture.size
