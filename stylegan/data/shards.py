"""A source becomes WebDataset tars, one set for each resolution from 4 to `data.resolution`, once and for all.

Samples are `00000042.png` and, in a labelled set, `00000042.cls`; the same number is the same image at every resolution.
They stand in an order drawn once from the paths, so any prefix is a fair sample. The folder is named by the digest of its
content and complete once `manifest.json` is there; `samples.jsonl` tells the source path of every sample.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import webdataset as wds
from pydantic import BaseModel, ConfigDict

from stylegan import storage
from stylegan.config import DataConfig, digest
from stylegan.data.decode import UnreadableImage, decode, encode, fit, pyramid
from stylegan.data.sources import Source, SourceImage
from stylegan.data.staging import exclusive_folder
from stylegan.errors import StepError

FORMAT = 1  # raise it when the same source would give other shards
MANIFEST = "manifest.json"
Progress = Callable[[int, int], None]


class ShardSet(BaseModel):
    """A finished set of shards: a folder with `r0004/train-000000.tar` ... and `manifest.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    fingerprint: str
    num_images: int
    resolutions: tuple[int, ...]
    label_names: tuple[str, ...]
    num_rejected: int

    def up_to(self, resolution: int) -> ShardSet:
        """The same images without the resolutions above one, as a stage below the last one knows them."""
        return self.model_copy(update={"resolutions": tuple(r for r in self.resolutions if r <= resolution)})


class _Sample(NamedTuple):
    image: SourceImage
    pngs: dict[int, bytes]


class _Rejected(NamedTuple):
    image: SourceImage
    reason: str


def shard_key(data: DataConfig, source: Source) -> str:
    """Digest of all that decides the shards, without opening an image: the listing with its labels, and how images are treated."""
    return digest({"format": FORMAT, "source": source.signature, "parameters": _parameters(data)})


def _parameters(data: DataConfig) -> dict[str, Any]:
    return data.model_dump(include={"resolution", "channels", "resize_filter", "images_per_shard"})


def find_shards(source: Source, data: DataConfig, root: str) -> ShardSet | None:
    """The finished shards of this listing under `root`, or None if they are still to be made.

    Raises:
        StepError: the store does not answer.
    """
    root = storage.absolute(root)
    try:
        found = ShardSet.model_validate(storage.read_json(_index_uri(data, source, root)))
    except FileNotFoundError:
        return None
    shards = found.model_copy(update={"uri": _dataset_uri(root, found.fingerprint)})  # the root may have moved
    complete = storage.exists(storage.join(shards.uri, MANIFEST))
    return shards if complete and shards.num_rejected <= data.max_rejected else None


def read_shards(uri: str) -> ShardSet | None:
    """The finished shards in a folder below datasets/, or None if there are none."""
    try:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
    except FileNotFoundError:
        return None
    return ShardSet(uri=uri, **{name: manifest[name] for name in ShardSet.model_fields if name != "uri"})


def _index_uri(data: DataConfig, source: Source, root: str) -> str:
    return storage.join(root, "datasets", "sources", f"{shard_key(data, source)}.json")


def _dataset_uri(root: str, fingerprint: str) -> str:
    return storage.join(root, "datasets", fingerprint)


def write_shards(source: Source, data: DataConfig, root: str, *, progress: Progress | None = None) -> ShardSet:
    """Make the shards of a source below `root`/datasets, or return those that are there already.

    Args:
        source: the listing that `open_source(data)` gave.
        progress: called with the number of images done and the number of all images.

    Raises:
        StepError: more than `data.max_rejected` images cannot be read, none can, or the disk or store refuses. Nothing is left behind.
    """
    root = storage.absolute(root)
    found = find_shards(source, data, root)
    if found is not None:
        return found
    with _staging(root, shard_key(data, source)) as folder:
        found = find_shards(source, data, root)  # made by another process while this one waited
        if found is not None:
            return found
        shards = _build(source, data, folder, progress)
        shards = shards.model_copy(update={"uri": _dataset_uri(root, shards.fingerprint)})
        if not storage.exists(storage.join(shards.uri, MANIFEST)):  # the same content may have come from another listing
            storage.publish(folder, shards.uri)
        storage.write_json(_index_uri(data, source, root), shards.model_dump(mode="json"))
        return shards


@contextmanager
def _staging(root: str, key: str) -> Iterator[Path]:
    """A local folder to build in; below a local root, so that publishing is a rename."""
    try:
        with ExitStack() as stack:
            if storage.is_local(root):
                folder = stack.enter_context(exclusive_folder(Path(root, "datasets", f".staging-{key}")))
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stylegan-shards-"))) / key
                folder.mkdir()
            yield folder
    except OSError as error:
        raise StepError(
            f"storage: cannot write shards below {root}: {error}; free some space there, then run the same command again"
        ) from error


def _build(source: Source, data: DataConfig, folder: Path, progress: Progress | None) -> ShardSet:
    """Write the whole tree into `folder`; the returned record has no `uri` yet."""
    content = hashlib.sha256(json.dumps([FORMAT, _parameters(data), source.label_names]).encode())
    counts: Counter[int] = Counter()
    rejected: list[_Rejected] = []
    with ExitStack() as stack:
        samples = stack.enter_context(open(folder / "samples.jsonl", "w", encoding="utf-8"))
        writer = stack.enter_context(_ShardWriter(folder, _levels(data), data.images_per_shard))
        results = stack.enter_context(_prepared(source, data))
        for done, result in enumerate(results, start=1):
            if isinstance(result, _Rejected):
                rejected.append(result)
            else:
                final = hashlib.sha256(result.pngs[data.resolution]).hexdigest()
                content.update(f"{result.image.label} {final}\n".encode())
                samples.write(_line(key=writer.write(result), path=result.image.path, label=result.image.label, sha256=final))
                counts[-1 if result.image.label is None else result.image.label] += 1
            if progress is not None:
                progress(done, len(source.images))
    rejected.sort()
    _judge_rejected(rejected, data, len(source.images))
    (folder / "rejected.jsonl").write_text("".join(_line(path=item.image.path, reason=item.reason) for item in rejected), encoding="utf-8")
    shards = ShardSet(
        uri="",
        fingerprint=content.hexdigest()[:16],
        num_images=counts.total(),
        resolutions=_levels(data),
        label_names=source.label_names,
        num_rejected=len(rejected),
    )
    label_counts = {name: counts[number] for number, name in enumerate(source.label_names)}
    _write_manifest(folder, shards, parameters=_parameters(data), label_counts=label_counts)
    return shards


def _levels(data: DataConfig) -> tuple[int, ...]:
    return tuple(2**level for level in range(2, data.resolution.bit_length()))


def _line(**values: Any) -> str:
    return json.dumps(values, sort_keys=True) + "\n"


def _judge_rejected(rejected: list[_Rejected], data: DataConfig, total: int) -> None:
    if len(rejected) <= data.max_rejected and len(rejected) < total:
        return
    shown = "; ".join(f"{item.image.path} ({item.reason})" for item in rejected[:3]) + (" ..." if len(rejected) > 3 else "")
    cure = "all of them" if len(rejected) == total else f"these files, or set data.max_rejected={len(rejected)} to leave them out"
    raise StepError(
        f"data.source={data.source}: {len(rejected)} of {total} images cannot be read, data.max_rejected={data.max_rejected}: {shown}; "
        f"repair or remove {cure}"
    )


def _write_manifest(folder: Path, shards: ShardSet, *, parameters: dict[str, Any], label_counts: dict[str, int]) -> None:
    """The index of the set: a `wids-shard-index-v1` of the full resolution, with every level under `datasets`."""
    levels = []
    for resolution in shards.resolutions:
        tars = sorted((folder / level_name(resolution)).iterdir())
        starts = range(0, shards.num_images, parameters["images_per_shard"])
        counts = [min(parameters["images_per_shard"], shards.num_images - start) for start in starts]
        entries = [_shard_entry(tar, count) for tar, count in zip(tars, counts, strict=True)]
        levels.append({"name": level_name(resolution), "resolution": resolution, "shardlist": entries})
    manifest = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "format": FORMAT,
        "shardlist": levels[-1]["shardlist"],
        "datasets": levels,
        "parameters": parameters,
        "label_counts": label_counts,
        **shards.model_dump(mode="json", exclude={"uri"}),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _shard_entry(tar: Path, num_samples: int) -> dict[str, Any]:
    with open(tar, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"url": f"{tar.parent.name}/{tar.name}", "nsamples": num_samples, "filesize": tar.stat().st_size, "sha256": sha256}


def level_name(resolution: int) -> str:
    """The folder of one resolution, such as `r0064`."""
    return f"r{resolution:04d}"


class _ShardWriter:
    """Writes samples to the tars of all resolutions in step, a new tar after every `size` samples."""

    def __init__(self, folder: Path, levels: Iterable[int], size: int) -> None:
        self.folder, self.levels, self.size = folder, tuple(levels), size
        self.count = 0
        self.files = ExitStack()
        self.tars: dict[int, wds.TarWriter] = {}

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def write(self, sample: _Sample) -> str:
        """Append one sample to every level; its key is returned."""
        if self.count % self.size == 0:
            self._open_tars(self.count // self.size)
        key = f"{self.count:08d}"
        label = {} if sample.image.label is None else {"cls": str(sample.image.label).encode()}
        for resolution, png in sample.pngs.items():
            self.tars[resolution].write({"__key__": key, "png": png, **label})
        self.count += 1
        return key

    def _open_tars(self, number: int) -> None:
        self.files.close()
        for resolution in self.levels:
            path = self.folder / level_name(resolution) / f"train-{number:06d}.tar"
            path.parent.mkdir(exist_ok=True)
            file = self.files.enter_context(path.open("wb"))
            # With its time fixed the tar depends on the samples only; encoder off, since they are bytes already.
            self.tars[resolution] = self.files.enter_context(wds.TarWriter(file, mtime=0, encoder=False))


@contextmanager
def _prepared(source: Source, data: DataConfig) -> Iterator[Iterator[_Sample | _Rejected]]:
    """Every image of the source, read and scaled by a few threads, in the order of the shards."""
    order = sorted(source.images, key=lambda image: hashlib.sha256(image.path.encode(errors="surrogateescape")).digest())
    with source.reader() as read, ThreadPoolExecutor(_num_threads(source, data)) as pool:
        try:
            yield _windowed(pool, lambda image: _prepare(image, read, data), order)
        finally:
            pool.shutdown(cancel_futures=True)


def _num_threads(source: Source, data: DataConfig) -> int:
    """Below 64x64 Pillow's calls are so short that threads only fight for the interpreter (20 % slower with four)."""
    if not storage.is_local(source.uri):
        return 16  # they wait for the network
    return (os.cpu_count() or 1) if data.resolution >= 64 else 1


def _windowed(pool: ThreadPoolExecutor, work: Callable[[SourceImage], _Sample | _Rejected], images: Iterable[SourceImage]) -> Iterator[Any]:
    """Like `pool.map`, but only a bounded number of results is ever in memory."""
    pending: deque[Future[_Sample | _Rejected]] = deque()
    for image in images:
        pending.append(pool.submit(work, image))
        if len(pending) >= 64:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _prepare(image: SourceImage, read: Callable[[SourceImage], bytes], data: DataConfig) -> _Sample | _Rejected:
    try:
        content = read(image)
    except StepError:
        raise
    except Exception as error:  # this file alone: gone since the listing, not permitted, a damaged member of the archive
        return _Rejected(image, f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}")
    try:
        picture = decode(content, data.channels)
    except UnreadableImage as error:
        return _Rejected(image, str(error))
    levels = pyramid(fit(picture, data.resolution, data.resize_filter))
    return _Sample(image, {resolution: encode(pixels) for resolution, pixels in sorted(levels.items())})
