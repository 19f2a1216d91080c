"""Shards: the content of the tars, the same bytes at every attempt, and no unfinished set that looks finished."""

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from stylegan.config.sections import DataConfig
from stylegan.data import dataset_card
from stylegan.data.dataset_card import read_card
from stylegan.data.decode import prepare
from stylegan.data.index import read_manifest, read_samples
from stylegan.data.sharding.write_shards import (
    find_content,
    find_shards,
    read_shards,
    shard_key,
    write_shards,
)
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError


def config(source: Path | str, **changes: object) -> DataConfig:
    return DataConfig(**({"source": str(source), "resolution": 16, "incremental": False} | changes))


def make(data: DataConfig, root: Path | str, **how: object) -> ShardSet:
    return write_shards(open_source(data), data, str(root), **how)


def members(shards: ShardSet, resolution: int) -> dict[str, bytes]:
    found = {}
    for tar in sorted(Path(shards.uri, f"r{resolution:04d}").iterdir()):
        with tarfile.open(tar) as archive:
            found |= {entry.name: archive.extractfile(entry).read() for entry in archive}
    return found


def rows(shards: ShardSet) -> list[dict]:
    return pq.read_table(Path(shards.uri, "samples.parquet")).to_pylist()


def tree(folder: Path | str, pattern: str = "*") -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(Path(folder).rglob(pattern))
        if file.is_file()
    }


def rejected(shards: ShardSet) -> list[dict]:
    return [json.loads(line) for line in Path(shards.uri, "rejected.jsonl").read_text().splitlines()]


def test_tars_hold_every_image_at_every_resolution(image_folder, tmp_path):
    """Each key is the same image in all levels, with its label, and the pixels are those of `prepare`."""
    data = config(image_folder)
    shards = make(data, tmp_path)
    assert (shards.num_images, shards.resolutions, shards.label_names) == (12, (4, 8, 16), ("cat", "dog"))
    table = rows(shards)
    assert {row["path"] for row in table} == {
        file.relative_to(image_folder).as_posix() for file in image_folder.rglob("*.png")
    }
    found = {resolution: members(shards, resolution) for resolution in (4, 8, 16)}
    for row in table:
        content = (image_folder / row["path"]).read_bytes()
        levels = prepare(content, data).levels
        for resolution in (4, 8, 16):
            assert np.array_equal(np.load(BytesIO(found[resolution][row["key"] + ".npy"])), levels[resolution])
            assert (
                found[resolution][row["key"] + ".cls"]
                == b"%d" % row["label"]
                == b"%d" % ("cat", "dog").index(row["path"][:3])
            )
        assert row["sha256"] == hashlib.sha256(levels[16].tobytes()).digest()
        assert row["source_sha256"] == hashlib.sha256(content).digest()
        assert (row["width"], row["height"], row["bytes"]) == (24, 20, len(content))
    assert all(len(names) == 24 for names in found.values())


def test_webdataset_reads_the_tars(image_folder, tmp_path):
    """WebDataset's own pipeline gives every image with its class."""
    shards = make(config(image_folder, images_per_shard=5), tmp_path)
    urls = [str(path) for path in sorted(Path(shards.uri, "r0016").iterdir())]
    found = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode().to_tuple("npy", "cls"))
    assert len(found) == 12
    assert all(pixels.shape == (16, 16, 3) for pixels, _ in found)
    assert [label for _, label in found] == [row["label"] for row in rows(shards)]


def test_attributes_and_large_images(tmp_path, draw_images):
    """Attribute vectors are stored as `.json` members, large images as `.png`."""
    folder = draw_images(tmp_path / "images", [f"{number}.png" for number in range(4)], size=(520, 515))
    vectors = [[number % 2, number // 2] for number in range(4)]
    (folder / "dataset.json").write_text(
        json.dumps({"labels": [[f"{number}.png", vectors[number]] for number in range(4)]})
    )
    shards = make(config(folder, resolution=512), tmp_path)
    assert (shards.label_names, len(shards.attribute_names)) == ((), 2)
    found = members(shards, 512)
    for row in rows(shards):
        assert (
            row["attributes"] == json.loads(found[row["key"] + ".json"])["attributes"] == vectors[int(row["path"][0])]
        )
        assert row["label"] == -1
        picture = np.asarray(Image.open(BytesIO(found[row["key"] + ".png"])))
        assert hashlib.sha256(picture.tobytes()).digest() == row["sha256"]
    assert {name.rpartition(".")[2] for name in members(shards, 256)} == {"npy", "json"}


def test_order_mixes_classes(tmp_path, draw_images):
    """A prefix has the classes in about equal parts."""
    draw_images(tmp_path / "images", [f"{name}/{number}.png" for name in "abc" for number in range(60)])
    table = rows(make(config(tmp_path / "images", resolution=4, duplicates="keep"), tmp_path))
    assert len(table) == 180
    assert min(np.bincount([row["label"] for row in table[:60]])) >= 12


def test_manifest_is_the_index(image_folder, tmp_path):
    """The manifest lists every tar with its size, samples and SHA-256, the labels, and the settings."""
    shards = make(config(image_folder, images_per_shard=5), tmp_path)
    manifest = json.loads(Path(shards.uri, "manifest.json").read_bytes())
    assert manifest["__kind__"] == "wids-shard-index-v1"
    assert manifest["fingerprint"] == shards.fingerprint
    assert manifest["label_counts"] == {"cat": 7, "dog": 5}
    assert (
        manifest["parameters"] | {"resolution": 16, "channels": 3, "resize_filter": "lanczos", "images_per_shard": 5}
        == manifest["parameters"]
    )
    assert [level["name"] for level in manifest["datasets"]] == ["r0004", "r0008", "r0016"]
    assert manifest["shardlist"] == manifest["datasets"][-1]["shardlist"]
    table = Path(shards.uri, manifest["table"]["url"]).read_bytes()
    assert (len(table), hashlib.sha256(table).hexdigest()) == (
        manifest["table"]["filesize"],
        manifest["table"]["sha256"],
    )
    for level in manifest["datasets"]:
        assert [entry["nsamples"] for entry in level["shardlist"]] == [5, 5, 2]
        for entry in level["shardlist"]:
            content = Path(shards.uri, entry["url"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["filesize"], entry["sha256"])
            with tarfile.open(fileobj=BytesIO(content)) as archive:
                assert len([name for name in archive.getnames() if name.endswith(".npy")]) == entry["nsamples"]
    assert {"card.json", "preview.png"} < {path.name for path in Path(shards.uri).iterdir()}


def test_tars_are_limited_by_their_pixels(image_folder, tmp_path):
    """A tar has at most shard_mb of raw pixels at the final resolution."""
    data = config(image_folder, resolution=512, shard_mb=3)  # an image has 0.79 MB
    entries = read_manifest(make(data, tmp_path).uri)["shardlist"]
    assert [entry["nsamples"] for entry in entries] == [3, 3, 3, 3]


def test_any_number_of_workers_writes_the_same_bytes(image_folder, tmp_path):
    """Four processes, one process, and one that does the chunks backwards write the same tars, table, markers and
    manifest.
    """

    def backwards(function, requests):
        return reversed([function(request) for request in reversed(list(requests))])

    data = config(image_folder, images_per_shard=2)
    first = make(data, tmp_path / "one")
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(4, context) as pool:
        several = make(data, tmp_path / "several", pmap=pool.map)
    other = make(data, tmp_path / "backwards", pmap=backwards)
    assert first.fingerprint == several.fingerprint == other.fingerprint
    assert tree(first.uri) == tree(several.uri) == tree(other.uri)
    assert len(tree(first.uri, "*.tar")) == 3 * 6


def test_fingerprint_is_of_content_alone(image_folder, tmp_path, draw_images):
    """Other times, tars and limits keep it; another pixel, label, class name, filter or channel changes it. The old
    sets stay.
    """
    plain = make(config(image_folder), tmp_path)
    for file in image_folder.rglob("*.png"):
        os.utime(file, (1, 1))
    again = [
        make(config(image_folder, **change), tmp_path)
        for change in ({}, {"images_per_shard": 5}, {"min_size": 20}, {"shard_mb": 1})
    ]
    assert {shards.fingerprint for shards in again} == {plain.fingerprint}
    assert len({shards.uri for shards in [plain, *again]}) == 5
    assert tree(plain.uri, "*.tar") == tree(again[0].uri, "*.tar")
    prints = [
        make(config(image_folder, **change), tmp_path).fingerprint
        for change in ({"labels": "none"}, {"resize_filter": "box"})
    ]
    prints.append(make(config(image_folder, channels=1), tmp_path).fingerprint)
    os.rename(image_folder / "dog", image_folder / "dogs")
    prints.append(make(config(image_folder), tmp_path).fingerprint)
    os.rename(image_folder / "dogs", image_folder / "dog")
    draw_images(image_folder / "cat", ["0.png"], mode="L")
    prints.append(make(config(image_folder), tmp_path).fingerprint)
    assert len({plain.fingerprint, *prints}) == 6
    assert read_shards(plain.uri) == plain


def test_labels_change_neither_the_order_of_images_nor_their_fingerprint(tmp_path, draw_images):
    """A label file that is added, corrected or removed leaves the fingerprint of the images as it is."""
    folder = draw_images(tmp_path / "images", [f"{number}.png" for number in range(8)])
    found = [make(config(folder), tmp_path)]
    for labels in ([number % 2 for number in range(8)], [0] * 7 + [1], [[number % 2, 1] for number in range(8)]):
        table = {"labels": [[f"{number}.png", label] for number, label in enumerate(labels)]}
        (folder / "dataset.json").write_text(json.dumps(table))
        found.append(make(config(folder), tmp_path))
    found.append(make(config(folder, labels="none"), tmp_path))
    assert {shards.images_fingerprint for shards in found} == {found[0].fingerprint}
    assert [shards.fingerprint == found[0].fingerprint for shards in found] == [True, False, False, False, True]
    assert len({shards.fingerprint for shards in found}) == 4
    orders = [read_samples(shards.uri, read_manifest(shards.uri), ["path"]) for shards in found]
    assert all(order == orders[0] for order in orders)
    draw_images(folder, ["0.png"], mode="L")
    assert make(config(folder), tmp_path).images_fingerprint != found[0].fingerprint


@pytest.mark.parametrize("gone", ["card.json", "preview.png", "mean.png"])
def test_a_card_that_is_gone_is_made_again(image_folder, tmp_path, gone):
    """The same bytes; a whole card is left alone."""
    data = config(image_folder)
    shards = make(data, tmp_path)
    before = tree(shards.uri)
    Path(shards.uri, gone).unlink()
    assert tree(shards.uri) != before
    assert make(data, tmp_path) == shards
    assert tree(shards.uri) == before


def test_unlabelled_set_has_no_cls(image_folder, tmp_path):
    """Without labels the tars contain images only."""
    shards = make(config(image_folder, labels="none"), tmp_path)
    assert shards.label_names == ()
    assert {name.rpartition(".")[2] for name in members(shards, 16)} == {"npy"}


def test_finished_shards_are_found_again(image_folder, tmp_path):
    """The same listing gives the same record without work, also if the root was moved; without a manifest there is no
    set.
    """
    data = config(image_folder)
    assert find_shards(open_source(data), data, str(tmp_path)) is None
    shards = make(data, tmp_path)
    assert find_shards(open_source(data), data, str(tmp_path)) == shards
    assert find_content(shards.fingerprint, str(tmp_path)) == shards
    assert find_content("0123456789abcdef", str(tmp_path)) is None
    calls: list[int] = []
    assert make(data, tmp_path, progress=lambda done, total: calls.append(done)) == shards
    assert calls == []
    os.rename(tmp_path / "datasets", tmp_path / "moved")
    (tmp_path / "new").mkdir()
    os.rename(tmp_path / "moved", tmp_path / "new" / "datasets")
    moved = find_shards(open_source(data), data, str(tmp_path / "new"))
    assert moved is not None
    assert read_shards(moved.uri) == moved == find_content(shards.fingerprint, str(tmp_path / "new"))
    Path(moved.uri, "manifest.json").unlink()
    assert find_shards(open_source(data), data, str(tmp_path / "new")) is None
    assert read_shards(moved.uri) is None
    assert make(data, tmp_path / "new") == moved


def test_key_ignores_the_place_but_not_the_treatment(image_folder):
    """The key depends on listing and parameters, not on the place of the source or the limit on rejects."""
    data = config(image_folder)
    source = open_source(data)
    assert shard_key(data, source) == shard_key(config("elsewhere", max_rejected=3), source)
    others = [{"resolution": 8}, {"crop": "wide"}, {"min_size": 5}, {"duplicates": "keep"}, {"images_per_shard": 9}]
    assert len({shard_key(config(image_folder, **change), source) for change in [{}, *others]}) == 6


def test_progress_counts_images(image_folder, tmp_path):
    """The callback receives the number of images done and the number of all images."""
    calls: list[tuple[int, int]] = []
    make(config(image_folder, images_per_shard=5), tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(5, 12), (10, 12), (12, 12)]


def spoil(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])


def test_every_kind_of_reject_is_listed(image_folder, tmp_path, draw_images):
    """The list has path, kind, reason and size for an image without a label, one too small, one too large, one cut, and
    a file that is no image.
    """
    spoil(image_folder, ["dog/3.png"])
    (image_folder / "cat" / "2.png").write_bytes(b"no image at all")
    draw_images(image_folder / "cat", ["small.png"], size=(9, 20))
    draw_images(image_folder / "cat", ["large.png"], size=(50, 50))
    (image_folder / "dog" / "copy.png").write_bytes((image_folder / "dog" / "1.png").read_bytes())
    labels = [[file.relative_to(image_folder).as_posix(), 0] for file in image_folder.rglob("*.png")]
    (image_folder / "dataset.json").write_text(
        json.dumps({"labels": [entry for entry in labels if entry[0] != "dog/0.png"]})
    )
    shards = make(config(image_folder, labels="file", max_rejected=5, min_size=10, max_pixels=2000), tmp_path)
    assert (shards.num_images, shards.num_rejected) == (9, 6)
    found = {line["path"]: line for line in rejected(shards)}
    copies = {"dog/copy.png", "dog/1.png"} & found.keys()
    assert len(copies) == 1
    kinds = {path: line["kind"] for path, line in found.items() if path not in copies}
    assert kinds == {
        "dog/3.png": "truncated",
        "cat/2.png": "unreadable",
        "cat/small.png": "too small",
        "cat/large.png": "too large",
        "dog/0.png": "unlabelled",
    }
    kept = ({"dog/copy.png", "dog/1.png"} - copies).pop()
    assert found[copies.pop()]["reason"] == f"the same bytes as {kept}"
    assert all(line["reason"] and line["bytes"] == (image_folder / path).stat().st_size for path, line in found.items())
    assert len({row["path"] for row in rows(shards)} & found.keys()) == 0
    manifest = json.loads(Path(shards.uri, "manifest.json").read_bytes())
    assert manifest["rejected"] == dict(Counter(line["kind"] for line in found.values()))


def test_only_the_first_of_equal_images_counts(tmp_path, draw_images):
    """The first is decided by canonical order, across chunks; with duplicates=keep all count."""
    folder = draw_images(tmp_path / "images", [f"{number}.png" for number in range(6)])
    for number in range(6):
        for copy in range(2):
            (folder / f"{number}-{copy}.png").write_bytes((folder / f"{number}.png").read_bytes())
    order = sorted((path.name for path in folder.iterdir()), key=lambda name: hashlib.sha256(name.encode()).digest())
    firsts = {name[0]: name for name in reversed(order)}
    sets = [make(config(folder, images_per_shard=size), tmp_path / f"{size}") for size in (2, 100)]
    for shards in sets:
        assert [row["path"] for row in rows(shards)] == [name for name in order if name in firsts.values()]
        assert {line["path"]: line["reason"] for line in rejected(shards)} == {
            name: f"the same bytes as {firsts[name[0]]}" for name in order if name not in firsts.values()
        }
    assert sets[0].fingerprint == sets[1].fingerprint
    assert make(config(folder, duplicates="keep"), tmp_path).num_images == 18


def test_too_many_rejected_images_stop_the_step(image_folder, tmp_path):
    """One reject more than allowed fails in one line with kinds, names and cure. The list exists, a manifest does not.
    A higher limit then needs no work.
    """
    spoil(image_folder, ["dog/3.png", "cat/2.png"])
    (image_folder / "dog" / "copy.png").write_bytes((image_folder / "dog" / "1.png").read_bytes())
    with pytest.raises(StepError) as caught:
        make(config(image_folder, max_rejected=1), tmp_path)
    for words in (
        "2 of 13 images",
        "(2 truncated)",
        "cat/2.png (",
        "dog/3.png (",
        "rejected.jsonl",
        "set data.max_rejected=2",
    ):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("datasets/*/manifest.json"))
    (listed,) = tmp_path.glob("datasets/*/rejected.jsonl")
    assert str(listed) in str(caught.value)
    assert len(listed.read_text().splitlines()) == 3
    (tar,) = tmp_path.glob("datasets/*/r0016/*.tar")
    before = tar.stat().st_mtime_ns
    shards = make(config(image_folder, max_rejected=2), tmp_path)
    assert (shards.num_images, tar.stat().st_mtime_ns) == (10, before)
    assert find_shards(open_source(config(image_folder)), config(image_folder), str(tmp_path)) is None
    with pytest.raises(StepError, match="2 of 13 images"):
        make(config(image_folder), tmp_path)
    assert read_shards(shards.uri) == shards


def test_nothing_readable(image_folder, tmp_path):
    """A source whose images are all damaged fails, however many rejects are allowed."""
    spoil(image_folder, [f"{file.parent.name}/{file.name}" for file in image_folder.rglob("*.png")])
    with pytest.raises(StepError, match="12 of 12 images cannot be used"):
        make(config(image_folder, max_rejected=100, images_per_shard=5), tmp_path)


def test_damaged_member_of_a_zip_is_one_rejected_image(image_folder, tmp_path):
    """A flipped byte in an archive is found by its checksum and costs that image only."""
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(image_folder.rglob("*.png")):
            archive.write(file, file.relative_to(image_folder).as_posix())
        place = archive.getinfo("cat/1.png").header_offset + 100
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    shards = make(config(path, max_rejected=1), tmp_path)
    assert [line["path"] for line in rejected(shards)] == ["cat/1.png"]
    assert shards.num_images == 11


def test_source_that_is_gone_is_one_line(image_folder, tmp_path):
    """The archive was removed after it was listed; the message does not blame the disk of the shards."""
    path = shutil.make_archive(str(tmp_path / "images"), "zip", image_folder)
    data = config(path)
    source = open_source(data)
    Path(path).unlink()
    with pytest.raises(StepError, match=r"^data.source=.*images.zip: cannot be read") as caught:
        write_shards(source, data, str(tmp_path))
    assert "\n" not in str(caught.value)


def test_s3_round_trip(image_folder, tmp_path, s3_server):
    """Source and root in buckets give exactly the tars of a local run, and the set is found again."""
    bucket = s3_server()
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    s3.put(str(image_folder), f"{bucket}/images", recursive=True)
    local, data = (
        make(config(image_folder, images_per_shard=5), tmp_path),
        config(f"{bucket}/images", images_per_shard=5),
    )
    shards = make(data, f"{bucket}/root")
    assert shards.fingerprint == local.fingerprint
    assert {name: s3.cat_file(f"{shards.uri}/{name}") for name in tree(local.uri, "*.tar")} == tree(local.uri, "*.tar")
    there = {name.removeprefix(f"{shards.uri}/".removeprefix("s3://")) for name in s3.find(shards.uri)}
    assert there == tree(local.uri).keys()
    assert find_shards(open_source(data), data, f"{bucket}/root") == shards


def test_store_that_refuses_is_one_line(image_folder, s3_server):
    """A bucket that does not exist ends in one line, not in a traceback."""
    with pytest.raises(StepError, match="s3://no-such-bucket") as caught:
        make(config(image_folder), "s3://no-such-bucket/root")
    assert "\n" not in str(caught.value)


def test_root_below_a_file_is_one_line(image_folder, tmp_path):
    """A root that cannot be a folder ends in one line."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StepError, match="storage: cannot"):
        make(config(image_folder), tmp_path / "file" / "root")


def test_disk_that_refuses_leaves_no_set(image_folder, tmp_path):
    """If a write fails in the middle, the step ends in one line, and there is no tar, marker or manifest."""
    data = config(image_folder)
    source = open_source(data)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(StepError, match=r"storage: cannot write shards below .*File too large"):
            write_shards(source, data, str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path / "datasets") == {}


@contextmanager
def _deadly(inner: Callable, path: str) -> Iterator[Callable]:
    """Yield a reader that kills its process when it reads one particular image."""
    with inner() as read:
        yield lambda asked: os.kill(os.getpid(), signal.SIGKILL) if asked == path else read(asked)


def _killed(data: DataConfig, root: Path, *, at: str) -> None:
    child = os.fork()
    if child == 0:
        try:
            source = open_source(data)
            write_shards(replace(source, open=partial(_deadly, source.open, at)), data, str(root))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_killed_in_the_middle(tmp_path, draw_images):
    """After kill -9 there are whole tars but no set. The next run does only the unfinished chunks and gives the same
    bytes.
    """
    folder = draw_images(tmp_path / "images", [f"{number}.png" for number in range(24)])
    data = config(folder, images_per_shard=6)
    expected = make(data, tmp_path / "whole")
    _killed(data, tmp_path / "root", at=rows(expected)[15]["path"])
    (uri,) = (path for path in (tmp_path / "root" / "datasets").iterdir() if path.is_dir())
    assert find_shards(open_source(data), data, str(tmp_path / "root")) is None
    assert sorted(path.name for path in (uri / "chunks").iterdir()) == ["000000.parquet", "000001.parquet"]
    whole = tree(expected.uri, "*.tar")
    assert tree(uri, "*.tar") == {name: whole[name] for name in whole if name.endswith(("000000.tar", "000001.tar"))}
    assert list((uri / ".building-000002").iterdir())
    before = {path: path.stat().st_mtime_ns for path in uri.rglob("train-00000[01].tar")}
    shards = make(data, tmp_path / "root")
    assert shards.fingerprint == expected.fingerprint
    assert tree(shards.uri) == tree(expected.uri)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _make_in_process(arguments: tuple[DataConfig, str]) -> ShardSet:
    return make(*arguments)


def test_what_a_power_cut_left_is_not_taken_as_whole(image_folder, tmp_path):
    """A cut table or a table that is gone ends the set, a cut tar its chunk: the same command makes the same bytes."""
    data = config(image_folder, incremental=True)
    shards = make(data, tmp_path)
    whole, table = tree(shards.uri), Path(shards.uri, "samples.parquet")
    for damage in (lambda: os.truncate(table, 100), table.unlink):
        damage()
        assert find_shards(open_source(data), data, str(tmp_path)) is None
        assert make(data, tmp_path) == shards
        assert tree(shards.uri) == whole
    for damage in (lambda tar: os.truncate(tar, 700), Path.unlink):
        Path(shards.uri, "manifest.json").unlink()
        damage(Path(shards.uri, "r0008", "train-000000.tar"))
        assert make(data, tmp_path) == shards
        assert tree(shards.uri) == whole


def test_tars_and_table_are_durable(image_folder, tmp_path, monkeypatch):
    """Each file of a set is synced before it gets its name, and its folder after that, before the manifest is written."""
    synced, names, replace = [], [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))

    def watched(old, new):
        assert str(old) in synced
        names.append(str(new))
        replace(old, new)
        synced.append("renamed")

    monkeypatch.setattr(os, "replace", watched)
    shards = make(config(image_folder), tmp_path)
    files = {str(path) for path in Path(shards.uri).rglob("*") if path.is_file()}
    assert files <= set(names)
    assert names.index(f"{shards.uri}/samples.parquet") < names.index(f"{shards.uri}/manifest.json")
    for place in ("r0004", "r0008", "r0016", "chunks", ""):
        last = len(synced) - 1 - synced[::-1].index(str(Path(shards.uri, place)))
        assert "renamed" in synced[:last]


def test_several_at_once_end_well(image_folder, tmp_path):
    """Processes and threads that start together all get the same whole set."""
    data, done = config(image_folder, images_per_shard=2), []
    expected = make(data, tmp_path / "alone")
    with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
        results = list(pool.map(_make_in_process, [(data, str(tmp_path / "root"))] * 3))
    assert len(set(results)) == 1
    assert tree(results[0].uri) == tree(expected.uri)

    def work() -> None:
        done.append(make(data, tmp_path / "threads"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert tree(done[0].uri) == tree(expected.uri)


def test_too_many_rejects_are_told_even_without_their_list(image_folder, tmp_path):
    """A finished set may have more rejects than are allowed now; its list of them may have been deleted."""
    (image_folder / "cat" / "bad.png").write_bytes(b"none")
    shards = make(config(image_folder, max_rejected=1), tmp_path)
    for content, words in ((None, "is missing; delete"), (b"{}\n", "line 1: is damaged")):
        path = Path(shards.uri, "rejected.jsonl")
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(StepError, match=rf"{path}.*{words}"):
            make(config(image_folder), tmp_path)
    Path(shards.uri, "manifest.json").unlink()
    assert make(config(image_folder, max_rejected=1), tmp_path) == shards
    assert json.loads(path.read_bytes())["path"] == "cat/bad.png"


ODD_NAMES = ["two\nlines", "x" * 5000, "\u202eright to left", "חתול", "😀", "\x1b[2J\x00", "", "<b>&|`*"]


def test_class_names_of_any_text(tmp_path):
    """Such names are kept as they are, and shown on one line; they fail no step."""
    images = [saved(number) for number in range(len(ODD_NAMES))]
    pq.write_table(pa.table({"image": images, "label": ODD_NAMES}), tmp_path / "a.parquet")
    shards = make(config(tmp_path / "a.parquet"), tmp_path / "root")
    assert set(shards.label_names) == set(ODD_NAMES)
    assert read_card(shards.uri).counts == dict.fromkeys(sorted(ODD_NAMES), 1)
    assert Path(shards.uri, "preview.png").exists()


def saved(seed: int) -> bytes:
    """Return a PNG of noise."""
    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_card_that_cannot_be_made_is_a_warning(image_folder, tmp_path, monkeypatch, caplog):
    """The set is finished without it."""
    monkeypatch.setattr(dataset_card, "_png", lambda image: 1 / 0)
    shards = make(config(image_folder), tmp_path / "root")
    assert shards.num_images == 12
    assert read_card(shards.uri) is None
    assert "the card of this set could not be made: ZeroDivisionError" in caplog.text
