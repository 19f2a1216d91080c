"""Shards: what is in the tars, that they repeat byte for byte, and that nothing half-made is ever taken for finished."""

import hashlib
import json
import os
import resource
import signal
import tarfile
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from stylegan import storage
from stylegan.config import DataConfig
from stylegan.data.decode import fit
from stylegan.data.shards import ShardSet, find_shards, read_shards, shard_key, write_shards
from stylegan.data.sources import open_source
from stylegan.errors import StepError


def config(source: Path | str, **changes: object) -> DataConfig:
    return DataConfig(**({"source": str(source), "resolution": 16} | changes))


def make(data: DataConfig, root: Path | str) -> ShardSet:
    return write_shards(open_source(data), data, str(root))


def members(shards: ShardSet, resolution: int) -> dict[str, bytes]:
    found = {}
    for tar in sorted(Path(shards.uri, f"r{resolution:04d}").iterdir()):
        with tarfile.open(tar) as archive:
            found |= {entry.name: archive.extractfile(entry).read() for entry in archive}
    return found


def tree(folder: Path | str) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(Path(folder).rglob("*")) if file.is_file()}


def test_tars_hold_every_image_at_every_resolution(image_folder, tmp_path):
    """Each number is the same image in all levels, with its label, and the full level is the cropped and resized original."""
    shards = make(config(image_folder), tmp_path)
    assert (shards.num_images, shards.resolutions, shards.label_names) == (12, (4, 8, 16), ("cat", "dog"))
    samples = [json.loads(line) for line in Path(shards.uri, "samples.jsonl").read_text().splitlines()]
    assert sorted(sample["path"] for sample in samples) == sorted(
        f"{name}/{i}.png" for name, n in (("cat", 7), ("dog", 5)) for i in range(n)
    )
    full, half = members(shards, 16), members(shards, 8)
    assert set(full) == set(half) == {f"{i:08d}.{end}" for i in range(12) for end in ("png", "cls")}
    for sample in samples:
        png = full[sample["key"] + ".png"]
        original = fit(Image.open(image_folder / sample["path"]), 16, "lanczos")
        assert (np.asarray(Image.open(BytesIO(png))) == np.asarray(original)).all()
        assert hashlib.sha256(png).hexdigest() == sample["sha256"]
        assert full[sample["key"] + ".cls"] == half[sample["key"] + ".cls"] == str(("cat", "dog").index(sample["path"][:3])).encode()
        level = np.asarray(original, np.float64).reshape(8, 2, 8, 2, 3).mean((1, 3))
        assert (np.asarray(Image.open(BytesIO(half[sample["key"] + ".png"]))) == np.rint(level)).all()


def test_without_larger_resolutions_they_are_the_same_shards(image_folder, tmp_path):
    shards = make(config(image_folder), tmp_path)
    small = shards.up_to(8)
    assert small.resolutions == (4, 8)
    assert small.model_copy(update={"resolutions": shards.resolutions}) == shards


def test_order_mixes_classes(tmp_path, draw_images):
    """A prefix has the classes in about equal parts."""
    draw_images(tmp_path / "images", [f"{name}/{number}.png" for name in "abc" for number in range(60)])
    shards = make(config(tmp_path / "images", resolution=4), tmp_path)
    labels = [int(content) for name, content in members(shards, 4).items() if name.endswith(".cls")]
    assert len(labels) == 180
    assert min(np.bincount(labels[:60])) >= 12


def test_manifest_is_the_index(image_folder, tmp_path):
    """The manifest names every shard with its size, samples and SHA-256, the labels, and how images were treated."""
    shards = make(config(image_folder, images_per_shard=5), tmp_path)
    manifest = storage.read_json(storage.join(shards.uri, "manifest.json"))
    assert manifest["__kind__"] == "wids-shard-index-v1"
    assert manifest["fingerprint"] == shards.fingerprint
    assert manifest["label_counts"] == {"cat": 7, "dog": 5}
    assert manifest["parameters"] == {"resolution": 16, "channels": 3, "resize_filter": "lanczos", "images_per_shard": 5}
    assert [level["name"] for level in manifest["datasets"]] == ["r0004", "r0008", "r0016"]
    assert manifest["shardlist"] == manifest["datasets"][-1]["shardlist"]
    for level in manifest["datasets"]:
        assert [entry["nsamples"] for entry in level["shardlist"]] == [5, 5, 2]
        for entry in level["shardlist"]:
            content = Path(shards.uri, entry["url"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["filesize"], entry["sha256"])
            with tarfile.open(fileobj=BytesIO(content)) as archive:
                assert len([name for name in archive.getnames() if name.endswith(".png")]) == entry["nsamples"]


def test_repeats_byte_for_byte(image_folder, tmp_path):
    """Two runs in two places write identical trees, whatever the file times."""
    first = make(config(image_folder), tmp_path / "a")
    for file in image_folder.rglob("*.png"):
        os.utime(file, (1, 1))
    second = make(config(image_folder), tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    assert tree(first.uri) == tree(second.uri)


def test_fingerprint_follows_content_labels_and_parameters(image_folder, tmp_path, draw_images):
    """Another pixel, label, filter or channel count is another data set; the old one stays."""
    prints = [make(config(image_folder, **change), tmp_path).fingerprint for change in ({}, {"labels": "none"}, {"resize_filter": "box"})]
    prints.append(make(config(image_folder, channels=1), tmp_path).fingerprint)
    draw_images(image_folder / "cat", ["0.png"], mode="L")
    prints.append(make(config(image_folder), tmp_path).fingerprint)
    assert len(set(prints)) == len(prints)
    assert len([name for name in storage.names(str(tmp_path / "datasets")) if name != "sources"]) == 5


def test_unlabelled_set_has_no_cls(image_folder, tmp_path):
    """Without labels the tars hold images only."""
    shards = make(config(image_folder, labels="none"), tmp_path)
    assert shards.label_names == ()
    assert {name.rpartition(".")[2] for name in members(shards, 16)} == {"png"}


def test_finished_shards_are_found_again(image_folder, tmp_path):
    """The same listing gives the same record without work; a changed file, or a missing manifest, does not."""
    data = config(image_folder)
    assert find_shards(open_source(data), data, str(tmp_path)) is None
    shards = make(data, tmp_path)
    assert find_shards(open_source(data), data, str(tmp_path)) == shards
    calls: list[int] = []
    assert write_shards(open_source(data), data, str(tmp_path), progress=lambda done, total: calls.append(done)) == shards
    assert calls == []
    os.rename(tmp_path / "datasets", tmp_path / "moved")
    (tmp_path / "new").mkdir()
    os.rename(tmp_path / "moved", tmp_path / "new" / "datasets")
    moved = find_shards(open_source(data), data, str(tmp_path / "new"))
    assert moved is not None
    assert Path(moved.uri, "manifest.json").exists()
    Path(moved.uri, "manifest.json").unlink()
    assert find_shards(open_source(data), data, str(tmp_path / "new")) is None
    assert make(data, tmp_path / "new") == moved


def test_key_ignores_the_place_but_not_the_treatment(image_folder):
    """The key depends on listing and parameters; where the source lies and how many rejects are allowed is no part of it."""
    data = config(image_folder)
    source = open_source(data)
    assert shard_key(data, source) == shard_key(config("elsewhere", max_rejected=3), source)
    assert shard_key(data, source) != shard_key(config(image_folder, resolution=8), source)


def test_progress_counts_images(image_folder, tmp_path):
    """The callback is told each image done, of all."""
    data, calls = config(image_folder), []
    write_shards(open_source(data), data, str(tmp_path), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 12) for i in range(1, 13)]


def spoil(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])


def test_rejected_images_are_listed(image_folder, tmp_path):
    """Up to max_rejected unreadable images are left out and told with path and reason."""
    spoil(image_folder, ["dog/3.png", "cat/2.png"])
    shards = make(config(image_folder, max_rejected=2), tmp_path)
    assert (shards.num_images, shards.num_rejected) == (10, 2)
    lines = [json.loads(line) for line in Path(shards.uri, "rejected.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == ["cat/2.png", "dog/3.png"]
    assert all(line["reason"] for line in lines)
    assert sorted(name for name in members(shards, 4) if name.endswith("png")) == [f"{i:08d}.png" for i in range(10)]


def test_too_many_rejected_images_stop_the_step(image_folder, tmp_path):
    """One more than allowed fails in one line with count, names and cure; a stricter limit is not satisfied by older shards."""
    spoil(image_folder, ["dog/3.png", "cat/2.png"])
    with pytest.raises(StepError) as caught:
        make(config(image_folder, max_rejected=1), tmp_path)
    for words in ("2 of 12 images", "cat/2.png (", "dog/3.png (", "set data.max_rejected=2"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path / "datasets") == {}
    make(config(image_folder, max_rejected=2), tmp_path)
    with pytest.raises(StepError, match="2 of 12 images"):
        make(config(image_folder), tmp_path)


def test_nothing_readable(image_folder, tmp_path):
    """A source whose images are all damaged fails however many rejects are allowed."""
    spoil(image_folder, [f"{file.parent.name}/{file.name}" for file in image_folder.rglob("*.png")])
    with pytest.raises(StepError, match="12 of 12 images cannot be read"):
        make(config(image_folder, max_rejected=100), tmp_path)


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
    assert "cat/1.png" in Path(shards.uri, "rejected.jsonl").read_text()
    assert shards.num_images == 11


def test_s3_round_trip(image_folder, tmp_path, s3_server):
    """Source and root in buckets give the very objects of a local run, the manifest among them."""
    bucket = s3_server()
    s3 = fsspec.filesystem("s3", use_listings_cache=False)
    s3.put(str(image_folder), f"{bucket}/images", recursive=True)
    local, data = make(config(image_folder), tmp_path), config(f"{bucket}/images")
    shards = make(data, f"{bucket}/root")
    assert shards.fingerprint == local.fingerprint
    assert shards.uri == f"{bucket}/root/datasets/{local.fingerprint}"
    assert {name: s3.cat_file(f"{shards.uri}/{name}") for name in tree(local.uri)} == tree(local.uri)
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


def test_disk_that_refuses_leaves_nothing(image_folder, tmp_path):
    """When a write fails in the middle, the step ends in one line and the staging folder is gone."""
    data = config(image_folder)
    source = open_source(data)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(StepError, match=r"storage: cannot write shards below .*File too large"):
            write_shards(source, data, str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "datasets").iterdir()) == []


def test_killed_in_the_middle(image_folder, tmp_path):
    """After kill -9 there is no data set, only staging, and the next run clears that and finishes."""
    data = config(image_folder, images_per_shard=5)
    child = os.fork()
    if child == 0:
        try:
            write_shards(
                open_source(data), data, str(tmp_path), progress=lambda done, _: done == 7 and os.kill(os.getpid(), signal.SIGKILL)
            )
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list((tmp_path / "datasets").iterdir())
    assert all(path.name.startswith(".staging-") for path in (tmp_path / "datasets").iterdir())
    assert find_shards(open_source(data), data, str(tmp_path)) is None
    shards = make(data, tmp_path)
    assert shards.num_images == 12
    assert sorted(path.name for path in (tmp_path / "datasets").iterdir()) == sorted([shards.fingerprint, "sources"])


def test_several_at_once_make_it_once(image_folder, tmp_path):
    """Callers that start together wait for the one that works, and all get its result."""
    data, results, worked = config(image_folder), [], []

    def work() -> None:
        results.append(write_shards(open_source(data), data, str(tmp_path), progress=lambda done, _: worked.append(done)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert len(worked) == 12
    assert find_shards(open_source(data), data, str(tmp_path)) == results[0]


def test_shards_are_read_back_from_their_folder(image_folder, tmp_path):
    """Wherever the folder is now, and None where there are none."""
    data = DataConfig(source=str(image_folder), resolution=8)
    shards = write_shards(open_source(data), data, str(tmp_path / "root"))
    os.rename(tmp_path / "root", tmp_path / "moved")
    uri = str(tmp_path / "moved" / "datasets" / shards.fingerprint)
    assert read_shards(uri) == shards.model_copy(update={"uri": uri})
    assert read_shards(str(tmp_path / "root")) is None
