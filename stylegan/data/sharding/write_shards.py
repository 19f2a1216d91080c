"""Turn a source into WebDataset tars, with one set of tars for each resolution from 4 to `data.resolution`.

{root}/datasets/{key}/           key: digest of listing and settings, so it is known before any work
    r0004/train-000000.tar ...   samples `{key}.npy` or `.png` with `.cls` or `.json`; all levels use the same keys
    chunks/000000.parquet ...    marker of a chunk whose tars are written, with its rows
    samples.parquet              a row for each image that counts (see `index.py`)
    rejected.jsonl               a line for each image that does not, with the reason
    card.json preview.png        contents and appearance of the set (see `dataset_card.py`)
    manifest.json                written last: a set with a manifest is complete
{root}/datasets/newest-*.json    key of the newest set of a source and its settings, which the next one can build on
{root}/datasets/content-*.json   key of the set with a given fingerprint

Images are sorted by the digests of their paths, so that any prefix is a fair sample, and cut into chunks. A chunk makes
one tar for each resolution. Workers share nothing, so any number of them writes the same bytes. A set that builds on an
older one (its parent) has its own tars for the new images, named after the parent. Its manifest lists them together
with the tars of the parent that still contain images of the set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.dataset_card import REJECTED, read_rejected, write_card
from stylegan.data.index import locate, read_samples
from stylegan.data.payload import suffix
from stylegan.data.sharding.build_chunk import build_chunk, move_into_place, scratch
from stylegan.data.sharding.changes import Work, label_kind, newest_uri, plan_work
from stylegan.data.sharding.chunks import ChunkRequest, FinishedChunk, Recipe, Rejected, read_chunk, tar_url
from stylegan.data.sharding.merge import Merged, Part, explain_duplicates, merge
from stylegan.data.shardset import FORMAT, MANIFEST, ShardSet, level_name, levels, parameters, settings_key, shard_size
from stylegan.data.sources.base import Source
from stylegan.errors import StepError
from stylegan.records import digest

Progress = Callable[[int, int], None]
Pmap = Callable[[Callable[[ChunkRequest], int], Iterable[ChunkRequest]], Iterator[int]]


def shard_key(data: DataConfig, source: Source) -> str:
    """Return the digest of everything that decides the shards: the listing with its labels, and the settings.

    No image is opened for it.
    """
    return digest({"source": source.signature, "settings": settings_key(data)})


def find_shards(source: Source, data: DataConfig, root: str) -> ShardSet | None:
    """Return the finished shards of this listing under `root`.

    Return None if there are none yet, or if more images were rejected than `data` allows.

    Raises:
        StepError: the store does not answer.
    """
    found = _read_set(_uri(root, shard_key(data, source)))
    if found is None:
        return None
    shards, manifest = found
    return shards if _count_against(manifest["rejected"]) <= data.max_rejected else None


def read_shards(uri: str) -> ShardSet | None:
    """Return the finished shards in a folder below datasets/, or None if it has none."""
    found = _read_set(uri)
    return found[0] if found else None


def find_content(fingerprint: str, root: str) -> ShardSet | None:
    """Return the finished shards with this fingerprint under `root`, from any source, or None if there are none."""
    try:
        key = storage.read_json(_content_uri(root, fingerprint))["key"]
    except FileNotFoundError:
        return None
    return read_shards(_uri(root, key))


def _content_uri(root: str, fingerprint: str) -> str:
    return _uri(root, f"content-{fingerprint}.json")


def _uri(root: str, name: str) -> str:
    return storage.join(storage.absolute(root), "datasets", name)


def _read_set(uri: str) -> tuple[ShardSet, dict[str, Any]] | None:
    """Return the record and the manifest of a finished set; None if it has no manifest of this format."""
    try:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
    except FileNotFoundError:
        return None
    if manifest.get("format") != FORMAT:
        return None
    return ShardSet.from_manifest(uri, manifest), manifest


def _count_against(rejected: dict[str, int]) -> int:
    """Return the number of rejects that `data.max_rejected` limits: all but the duplicates."""
    return sum(count for kind, count in rejected.items() if kind != "duplicate")


def write_shards(
    source: Source, data: DataConfig, root: str, *, pmap: Pmap = map, progress: Progress | None = None
) -> ShardSet:
    """Make the shards of a source below `root`/datasets, or return them if they exist already.

    Chunks that an earlier attempt finished are not done again. Any number of processes may call this at the same time.

    Args:
        source: the listing that `open_source(data)` returned.
        pmap: called like `map`; may work on the chunks in any order and in any process. Its function contains what all
            chunks share (for an archive, tens of bytes per member); its items are small.
        progress: called with the number of images done and the number of images to do.

    Raises:
        StepError: more than `data.max_rejected` images cannot be used, no image can, or the source, disk or store
            refuses.
    """
    uri = _uri(root, shard_key(data, source))

    # Return a finished set. It may have been made when more rejects were allowed.
    existing = _read_set(uri)
    if existing is not None:
        shards, manifest = existing
        if _count_against(manifest["rejected"]) > data.max_rejected:
            _check_rejects(read_rejected(uri), data, uri=uri, total=len(source.images))
        return shards

    # Do the chunks, then finish the set, unless another process has finished it while this one waited.
    work = plan_work(source, data, root)
    names = _build(source, data, uri, work, (pmap, progress))
    with scratch(uri, "table") as folder:
        found = find_shards(source, data, root)
        return found or _finish(_BuiltSet(source, data, storage.absolute(root), uri, work, names), folder)


@dataclass(frozen=True)
class _BuiltSet:
    """A set whose chunks are all done: `names` are those of the chunks."""

    source: Source
    data: DataConfig
    root: str
    uri: str
    work: Work
    names: Sequence[str]


def _build(source: Source, data: DataConfig, uri: str, work: Work, how: tuple[Pmap, Progress | None]) -> list[str]:
    """Do all chunks and return their names."""
    pmap, progress = how
    size, prefix = shard_size(data), f"{work.change.parent}-" if work.change.parent else ""
    starts = range(0, len(work.todo), size)
    names = [f"{prefix}{number:06d}" for number in range(len(starts))]
    recipe = Recipe(uri, source.open, data, label_kind(source), _num_threads(data) if pmap is map else 1)

    def request(name: str, start: int) -> ChunkRequest:
        images = tuple(source.images[index] for index in work.todo[start : start + size].tolist())
        return ChunkRequest(name, images, tuple(work.known[start : start + size]))

    done = 0
    requests = (request(name, start) for name, start in zip(names, starts, strict=True))
    for count in pmap(partial(build_chunk, recipe), requests):
        done += count
        if progress is not None:
            progress(done, len(work.todo))
    return names


def _num_threads(data: DataConfig) -> int:
    """Return the number of threads for preparing images.

    Below 64x64 it is 1: Pillow's calls are then so short that threads only compete for the interpreter (20 % slower
    with four).
    """
    return (os.cpu_count() or 1) if data.resolution >= 64 else 1


# --- the end of a set -------------------------------------------------------------------------------------------------


def _finish(made: _BuiltSet, folder: Path) -> ShardSet:
    """Merge the rows of all chunks, check the rejects, and write all other files, the manifest last."""
    chunks = [read_chunk(made.uri, name, ["label"]) for name in made.names]
    manifest: dict[str, Any] = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "format": FORMAT,
        "parameters": parameters(made.data),
        "label_names": list(made.source.label_names),
        "attribute_names": list(made.source.attribute_names),
        "resolutions": list(levels(made.data)),
        "parent": made.work.change.parent,
    }

    # Write the table into the scratch folder.
    file = folder / "samples.parquet"
    merged = merge(_parts(made, chunks), file, manifest=manifest, reject_duplicates=made.data.duplicates == "reject")

    # Write the rejects, and stop if there are too many.
    rejected = [*made.work.carried, *(reject for chunk in chunks for reject in chunk.rejected), *merged.duplicates]
    rejected.sort(key=lambda reject: reject["path"])
    explain_duplicates(rejected, _row_groups(file))
    lines = "".join(json.dumps(reject, sort_keys=True) + "\n" for reject in rejected)
    storage.write_bytes(storage.join(made.uri, REJECTED), lines.encode())
    _check_rejects(rejected, made.data, uri=made.uri, total=len(made.source.images))

    # Write the card.
    manifest |= _content_facts(made, chunks, merged, rejected)
    columns = [name for name in pq.read_schema(file).names if name not in ("token", "bytes", "source_sha256", "sha256")]
    write_card(made.uri, manifest, pq.read_table(file, columns=columns), rejected, source=made.data.source)

    # Write the manifest, then the files that lead to the set.
    manifest["table"] = _place_table(made, file)
    storage.write_json(storage.join(made.uri, MANIFEST), manifest)
    key = {"key": storage.name(made.uri)}
    storage.write_json(newest_uri(made.source, made.data, made.root), key)
    storage.write_json(_content_uri(made.root, merged.fingerprint), key)
    shards = read_shards(made.uri)
    if shards is None:
        raise StepError(f"{made.uri}: its manifest was removed while it was made; run the same command again")
    return shards


def _row_groups(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(columns=["path", "source_sha256"]):
            yield pa.Table.from_batches([batch])


def _place_table(made: _BuiltSet, file: Path) -> dict[str, Any]:
    """Move the table into the set and return its entry of the manifest."""
    name = f"samples-{made.work.change.parent}.parquet" if made.work.change.parent else "samples.parquet"
    with open(file, "rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    facts = {"url": name, "filesize": file.stat().st_size, "sha256": sha256}
    move_into_place(file, storage.join(made.uri, name))
    return facts


def _content_facts(
    made: _BuiltSet, chunks: Sequence[FinishedChunk], merged: Merged, rejected: Sequence[Rejected]
) -> dict[str, Any]:
    """Return the entries of the manifest that describe the content."""
    datasets = []
    for resolution in levels(made.data):
        entries = _parent_entries(made.work, resolution) + _own_entries(made, chunks, resolution)
        shardlist = [entries[number] for number in merged.tars.tolist()]
        datasets.append(
            {
                "name": level_name(resolution),
                "resolution": resolution,
                "suffix": suffix(resolution),
                "shardlist": shardlist,
            }
        )
    return {
        "fingerprint": merged.fingerprint,
        "num_images": merged.num_images,
        "num_rejected": len(rejected),
        "rejected": dict(sorted(Counter(reject["kind"] for reject in rejected).items())),
        "label_counts": dict(zip(made.source.label_names, merged.labels.tolist(), strict=True)),
        "datasets": datasets,
        "shardlist": datasets[-1]["shardlist"],
    }


def _parent_entries(work: Work, resolution: int) -> list[dict[str, Any]]:
    """Return the manifest's entries of the parent's tars at one resolution, with URLs relative to the new set."""
    if work.change.parent is None:
        return []
    level = next(level for level in work.manifest["datasets"] if level["resolution"] == resolution)
    # The folders of all sets are beside each other, so `../` leads to whichever set wrote the tar.
    return [entry | {"url": f"../{locate(work.change.parent, entry['url'])}"} for entry in level["shardlist"]]


def _own_entries(made: _BuiltSet, chunks: Sequence[FinishedChunk], resolution: int) -> list[dict[str, Any]]:
    """Return the manifest's entries of the tars of the chunks at one resolution."""
    entries = []
    for name, chunk in zip(made.names, chunks, strict=True):
        sha256, num_bytes = chunk.tars.get(
            resolution, ("", 0)
        )  # a chunk without samples has no tar, and no row names it
        url = tar_url(resolution, name)
        entries.append({"url": url, "nsamples": chunk.rows.num_rows, "filesize": num_bytes, "sha256": sha256})
    return entries


def _parts(made: _BuiltSet, chunks: Sequence[FinishedChunk]) -> list[Part]:
    """Return the rows of all images in canonical order."""
    if made.work.change.parent is None:
        return [Part(partial(_load_chunk, made.uri, name, number)) for number, name in enumerate(made.names)]
    whole = _with_parent(made, chunks)
    return [Part(lambda columns: whole if columns is None else whole.select(columns))]


def _load_chunk(uri: str, name: str, tar: int, columns: list[str] | None) -> pa.Table:
    """Return the rows of a chunk with the number of its tar as the column `tar`, which the marker does not have."""
    wanted = None if columns is None else [column for column in columns if column != "tar"] or ["key"]
    rows = read_chunk(uri, name, wanted).rows
    rows = rows.append_column("tar", pa.array(np.full(rows.num_rows, tar, np.int32)))
    return rows if columns is None else rows.select(columns)


def _with_parent(made: _BuiltSet, chunks: Sequence[FinishedChunk]) -> pa.Table:
    """Return the rows of the parent that stay and those of the new chunks, in canonical order."""
    work, size = made.work, shard_size(made.data)
    assert work.change.parent is not None

    # The rows of the parent.
    old = read_samples(_uri(made.root, work.change.parent), work.manifest)
    touched = [int(work.todo[number * size + index]) for number, chunk in enumerate(chunks) for index in chunk.touched]
    old = work.keep(old, [made.source.images[index] for index in touched])

    # The rows of the chunks, whose tars are numbered after those of the parent.
    first = len(work.manifest["shardlist"])
    new = [_load_chunk(made.uri, name, first + number, old.column_names) for number, name in enumerate(made.names)]
    whole = pa.concat_tables([old, *new])
    order = np.argsort(np.array(whole["key"].to_numpy(zero_copy_only=False), "S"), kind="stable")
    return whole.take(pa.array(order))


def _check_rejects(rejected: Sequence[Rejected], data: DataConfig, *, uri: str, total: int) -> None:
    """Raise StepError if there are more rejects than `data` allows, or nothing but rejects."""
    kinds = Counter(reject["kind"] for reject in rejected)
    count = _count_against(kinds)
    if count <= data.max_rejected and len(rejected) < total:
        return
    shown = [f"{reject['path']} ({reject['reason']})" for reject in rejected if reject["kind"] != "duplicate"]
    named = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds) if kind != "duplicate")
    cure = "all of them" if count == total else f"these images, or set data.max_rejected={count} to leave them out"
    raise StepError(
        f"data.source={data.source}: {count} of {total} images cannot be used ({named}), data.max_rejected={data.max_rejected}: "
        f"{'; '.join(shown[:3])}{' ...' if len(shown) > 3 else ''}; all are in {storage.join(uri, REJECTED)}; repair or remove {cure}"
    )
