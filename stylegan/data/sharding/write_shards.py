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
{root}/datasets/{key}/open.json  key of the newest set of this listing that lacks images not read yet

Images are sorted by the digests of their paths, so that any prefix is a fair sample, and cut into chunks. A chunk makes
one tar for each resolution. Workers share nothing, so any number of them writes the same bytes. A set that builds on an
older one (its parent) has its own tars for the new images, named after the parent. Its manifest lists them together
with the tars of the parent that still contain images of the set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.dataset_card import (
    CARD,
    MEAN,
    REJECTED,
    Rejected,
    read_card,
    read_preview,
    read_rejected,
    write_card,
)
from stylegan.data.index import column_names, find_manifest, locate, read_manifest, read_samples
from stylegan.data.payload import suffix
from stylegan.data.sharding.build_chunk import build_chunk, move_into_place, scratch
from stylegan.data.sharding.changes import (
    Work,
    label_kind,
    newest_uri,
    open_uri,
    plan_work,
    read_pointer,
    shard_key,
    write_pointer,
)
from stylegan.data.sharding.chunks import UNREAD, ChunkRequest, FinishedChunk, Recipe, read_chunk, tar_url
from stylegan.data.sharding.merge import Merged, Part, explain_duplicates, merge
from stylegan.data.shardset import (
    FORMAT,
    MANIFEST,
    Manifest,
    ShardSet,
    TarEntry,
    level_name,
    levels,
    parameters,
    shard_size,
)
from stylegan.data.sources.base import Source
from stylegan.errors import DamagedError, StepError, UnavailableError, decoration
from stylegan.records import digest

logger = logging.getLogger("stylegan")

_NOT_IN_CARD = {"token", "bytes", "source_sha256", "sha256"}  # columns of the table
Progress = Callable[[int, int], None]
Pmap = Callable[[Callable[[ChunkRequest], int], Iterable[ChunkRequest]], Iterator[int]]


def shards_uri(source: Source, data: DataConfig, root: str) -> str:
    """Return the folder of the shards of this listing under `root`, whether they exist or not."""
    return _uri(root, shard_key(data, source))


def find_shards(source: Source, data: DataConfig, root: str, *, final: bool = False) -> ShardSet | None:
    """Return the finished shards of this listing under `root`.

    Return None if there are none yet, or if more images were rejected than `data` allows.

    Args:
        final: whether an open set, which lacks images that could not be read so far, counts as none.

    Raises:
        DamagedError: the manifest is not what was written there.
        StepError: the store does not answer.
    """
    uri = shards_uri(source, data, root)
    manifest = _find_whole(uri)
    if manifest is None and not final and (key := read_pointer(open_uri(source, data, root))):
        uri = _uri(root, key)
        manifest = _find_whole(uri)
    if manifest is None or _count_against(manifest["rejected"]) > data.max_rejected:
        return None
    return ShardSet.from_manifest(uri, manifest)


def count_unread(shards: ShardSet) -> int:
    """Return the number of images that an open set lacks because they could not be read; 0 for any other set."""
    manifest = _find_whole(shards.uri)
    return manifest["rejected"].get(UNREAD, 0) if manifest else 0


def read_shards(uri: str) -> ShardSet | None:
    """Return the finished shards in a folder below datasets/, or None if it has none. Raises as `find_shards`."""
    manifest = _find_whole(uri)
    return ShardSet.from_manifest(uri, manifest) if manifest else None


def find_content(fingerprint: str, root: str) -> ShardSet | None:
    """Return the finished shards with this fingerprint under `root`, from any source, or None if there are none.

    Raises:
        DamagedError: the manifest, or the file that leads to the set, is not what was written there.
        StepError: the store does not answer.
    """
    key = read_pointer(_content_uri(root, fingerprint))
    return read_shards(_uri(root, key)) if key else None


def _content_uri(root: str, fingerprint: str) -> str:
    return _uri(root, f"content-{fingerprint}.json")


def _uri(root: str, name: str) -> str:
    return storage.join(storage.absolute(root), "datasets", name)


def _find_whole(uri: str) -> Manifest | None:
    """Return the manifest of a finished set.

    None if it has no manifest of this format, or not the table of that manifest: it is then finished anew, from the
    chunks that are there. Raises as `find_manifest`.
    """
    manifest = find_manifest(uri)
    if manifest is None:
        return None
    try:
        num_bytes = storage.size(storage.join(uri, manifest["table"]["url"]))
    except FileNotFoundError:
        return None
    return manifest if num_bytes == manifest["table"]["filesize"] else None


def complete_set(shards: ShardSet, source: Source, data: DataConfig, root: str) -> None:
    """Write what a finished set lacks beside its manifest: the files that lead to it, and its card.

    They are written after the manifest or may be damaged; nothing else would ever write them again. What is there is
    only read. A card that cannot be made is named in a warning, because a set is whole without it.

    Args:
        shards: the set of the present listing of `source`, which later listings are compared with from now on.

    Raises:
        StepError: the store does not answer or refuses.
    """
    _lead_to(shards, source, data, root)
    if read_card(shards.uri) and read_preview(shards.uri) and storage.exists(storage.join(shards.uri, MEAN)):
        return
    card_uri = storage.join(shards.uri, CARD)
    with decoration(card_uri):
        manifest = read_manifest(shards.uri)
        columns = [name for name in column_names(manifest) if name not in _NOT_IN_CARD]
        table, rejected = read_samples(shards.uri, manifest, columns), read_rejected(shards.uri)
        write_card(shards.uri, manifest, table, rejected, source=data.source)
        logger.warning("%s: was missing or damaged; written anew", card_uri)


def _lead_to(shards: ShardSet, source: Source, data: DataConfig, root: str) -> None:
    """Write the files that lead to a set, from its source and from its content, where they do not lead to one."""
    key, content = storage.name(shards.uri), _content_uri(root, shards.fingerprint)
    write_pointer(newest_uri(source, data, root), key)
    try:
        other = read_pointer(content)
        leads_to_a_set = other is not None and (other == key or read_shards(_uri(root, other)) is not None)
    except DamagedError:
        leads_to_a_set = False
    if not leads_to_a_set:
        write_pointer(content, key)


def _count_against(rejected: Mapping[str, int]) -> int:
    """Return the number of rejects that `data.max_rejected` limits: all but the duplicates."""
    return sum(count for kind, count in rejected.items() if kind != "duplicate")


def write_shards(
    source: Source, data: DataConfig, root: str, *, pmap: Pmap = map, progress: Progress | None = None
) -> ShardSet:
    """Make the shards of a source below `root`/datasets, or return them if they exist already.

    Chunks that an earlier attempt finished are not done again. Any number of processes may call this at the same time.

    Images whose reading fails for a reason outside their bytes (missing, not permitted, no answer) are left out for
    now. The set without them is open: it has a folder and a key of its own, and the next call tries to read these
    images, and only these.

    Args:
        source: the listing that `open_source(data)` returned.
        pmap: called like `map`; may work on the chunks in any order and in any process. Its function contains what all
            chunks share (for an archive, tens of bytes per member); its items are small.
        progress: called with the number of images done and the number of images to do.

    Raises:
        StepError: more than `data.max_rejected` images cannot be used, no image can, or the source, disk or store
            refuses.
        UnavailableError: there would be few enough rejects if all images could be read.
    """
    uri = shards_uri(source, data, root)

    # Return a finished set. It may have been made when more rejects were allowed.
    manifest = _find_whole(uri)
    if manifest is not None:
        shards = ShardSet.from_manifest(uri, manifest)
        if _count_against(manifest["rejected"]) > data.max_rejected:
            _check_rejects(_known_rejects(uri), manifest["rejected"], data, uri=uri, total=len(source.images))
        complete_set(shards, source, data, root)
        return shards

    # Do the chunks, then finish the set, unless another process has finished it while this one waited.
    work = plan_work(source, data, root)
    names = _build(source, data, uri, work, (pmap, progress))
    with scratch(uri, "table") as folder:
        found = find_shards(source, data, root, final=True)
        if found is not None:
            complete_set(found, source, data, root)
        return found or _finish(_BuiltSet(source, data, storage.absolute(root), uri, work, names), folder)


@dataclass(frozen=True)
class _BuiltSet:
    """A set whose chunks are all done.

    Attributes:
        uri: the folder of the chunks and their tars. It becomes that of the set, unless the set is open.
        names: those of the chunks.
    """

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
    rejected = [*made.work.carried, *(reject for chunk in chunks for reject in chunk.rejected)]

    # An open set has a folder of its own. If the images that could not be read before still cannot, it is there.
    uri = _folder(made, chunks, rejected)
    if uri != made.uri and (stored := _find_whole(uri)) is not None:
        found = ShardSet.from_manifest(uri, stored)
        complete_set(found, made.source, made.data, made.root)
        write_pointer(open_uri(made.source, made.data, made.root), storage.name(uri))
        _check_rejects(_known_rejects(uri), stored["rejected"], made.data, uri=uri, total=len(made.source.images))
        return found
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
    rejected += merged.duplicates
    rejected.sort(key=lambda reject: reject["path"])
    explain_duplicates(rejected, _row_groups(file))
    lines = "".join(json.dumps(reject, sort_keys=True) + "\n" for reject in rejected)
    storage.write_bytes(storage.join(uri, REJECTED), lines.encode())
    kinds = Counter(reject["kind"] for reject in rejected)
    if uri == made.uri:
        _check_rejects(rejected, kinds, made.data, uri=uri, total=len(made.source.images))

    # Write the card.
    manifest |= _content_facts(made, chunks, merged, rejected, uri)
    columns = [name for name in pq.read_schema(file).names if name not in _NOT_IN_CARD]
    with decoration("the card of this set"):
        write_card(uri, manifest, pq.read_table(file, columns=columns), rejected, source=made.data.source)

    # Write the manifest, then the files that lead to the set.
    manifest["table"] = _place_table(made, file, uri)
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    shards = read_shards(uri)
    if shards is None:
        raise StepError(f"{uri}: its manifest was removed while it was made; run the same command again")
    _lead_to(shards, made.source, made.data, made.root)
    if uri != made.uri:  # an open set is kept even if it lacks too many images: the next attempt reads only these
        write_pointer(open_uri(made.source, made.data, made.root), storage.name(uri))
        _check_rejects(rejected, kinds, made.data, uri=uri, total=len(made.source.images))
    return shards


def _folder(made: _BuiltSet, chunks: Sequence[FinishedChunk], rejected: Sequence[Rejected]) -> str:
    """Return the folder of the set: that of its chunks if every image was read or none can be used, else one of its own."""
    unread = sorted(reject["path"] for reject in rejected if reject["kind"] == UNREAD)
    if not unread or not (len(made.work.kept_rows) or any(chunk.rows.num_rows or chunk.touched for chunk in chunks)):
        return made.uri
    return _uri(made.root, digest({"set": storage.name(made.uri), "unread": unread}))


def _row_groups(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(columns=["path", "source_sha256"]):
            yield pa.Table.from_batches([batch])


def _place_table(made: _BuiltSet, file: Path, uri: str) -> dict[str, Any]:
    """Move the table into the set and return its entry of the manifest."""
    name = f"samples-{made.work.change.parent}.parquet" if made.work.change.parent else "samples.parquet"
    with open(file, "rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    facts = {"url": name, "filesize": file.stat().st_size, "sha256": sha256}
    move_into_place(file, storage.join(uri, name))
    return facts


def _content_facts(
    made: _BuiltSet, chunks: Sequence[FinishedChunk], merged: Merged, rejected: Sequence[Rejected], uri: str
) -> dict[str, Any]:
    """Return the entries of the manifest that describe the content."""
    datasets = []
    for resolution in levels(made.data):
        entries = _parent_entries(made.work, resolution) + _own_entries(made, chunks, resolution, uri)
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
        "images_fingerprint": merged.images_fingerprint,
        "num_images": merged.num_images,
        "num_rejected": len(rejected),
        "rejected": dict(sorted(Counter(reject["kind"] for reject in rejected).items())),
        "label_counts": dict(zip(made.source.label_names, merged.labels.tolist(), strict=True)),
        "datasets": datasets,
        "shardlist": datasets[-1]["shardlist"],
    }


def _parent_entries(work: Work, resolution: int) -> list[TarEntry]:
    """Return the manifest's entries of the parent's tars at one resolution, with URLs relative to the new set."""
    if work.change.parent is None:
        return []
    assert work.manifest is not None
    level = next(level for level in work.manifest["datasets"] if level["resolution"] == resolution)
    # The folders of all sets are beside each other, so `../` leads to whichever set wrote the tar.
    return [{**entry, "url": f"../{locate(work.change.parent, entry['url'])}"} for entry in level["shardlist"]]


def _own_entries(made: _BuiltSet, chunks: Sequence[FinishedChunk], resolution: int, uri: str) -> list[TarEntry]:
    """Return the manifest's entries of the tars of the chunks at one resolution, with URLs relative to the folder `uri`."""
    above = "" if uri == made.uri else f"../{storage.name(made.uri)}/"
    entries: list[TarEntry] = []
    for name, chunk in zip(made.names, chunks, strict=True):
        sha256, num_bytes = chunk.tars.get(
            resolution, ("", 0)
        )  # a chunk without samples has no tar, and no row names it
        url = above + tar_url(resolution, name)
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
    assert work.manifest is not None

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


def _known_rejects(uri: str) -> list[Rejected]:
    """Return the rejects of a finished set as far as its list is there; its manifest has their number."""
    try:
        return read_rejected(uri)
    except FileNotFoundError:
        return []


def _check_rejects(
    rejected: Sequence[Rejected], kinds: Mapping[str, int], data: DataConfig, *, uri: str, total: int
) -> None:
    """Raise StepError if there are more rejects than `data` allows, or nothing but rejects.

    Args:
        rejected: the rejects, of which some are named.
        kinds: the number of rejects by kind.
        uri: folder of the set.
        total: number of images of the source.
    """
    count, unread = _count_against(kinds), kinds.get(UNREAD, 0)
    if count <= data.max_rejected and sum(kinds.values()) < total:
        if unread:
            first = next((reject for reject in rejected if reject["kind"] == UNREAD), None)
            example = f", such as {first['path']} ({first['reason']})" if first else ""
            logger.warning(
                f"data.source={data.source}: goes on without {unread} image(s) that could not be read{example}; sharding "
                "again tries these"
            )
        return
    shown = [f"{reject['path']} ({reject['reason']})" for reject in rejected if reject["kind"] != "duplicate"]
    named = ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds) if kind != "duplicate")
    cure = "all of them" if count == total else f"these images, or set data.max_rejected={count} to leave them out"
    where = storage.join(uri, REJECTED)
    examples = f"{'; '.join(shown[:3])}{' ...' if len(shown) > 3 else ''}; all are in {where}"
    if not rejected:
        examples = f"their list {where} is missing; delete {storage.join(uri, MANIFEST)} to have it written again"
    if unread:
        cure += "; those that are unread are tried again by the same command"
    kind = UnavailableError if count - unread <= data.max_rejected and unread else StepError
    raise kind(
        f"data.source={data.source}: {count} of {total} images cannot be used ({named}), data.max_rejected={data.max_rejected}: "
        f"{examples}; repair or remove {cure}"
    )
