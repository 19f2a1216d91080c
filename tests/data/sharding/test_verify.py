"""Verification: a whole set has no problems, and every changed byte is found and named."""

import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data.index import read_manifest, read_samples
from stylegan.data.sharding.verify import verify
from stylegan.data.sharding.write_shards import read_shards, write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError


@pytest.fixture
def shards(image_folder, tmp_path) -> ShardSet:
    data = DataConfig(source=str(image_folder), resolution=16, images_per_shard=5)
    return write_shards(open_source(data), data, str(tmp_path / "root"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_whole_set(shards):
    """All tars and images are counted, with any map, and no problem is found."""
    calls = []
    with ThreadPoolExecutor(3) as pool:
        found = verify(shards.uri, pmap=pool.map, progress=lambda done, total: calls.append((done, total)))
    assert (found.num_tars, found.num_images, found.problems) == (9, 12, ())
    assert calls[-1] == (9, 9)


@pytest.mark.parametrize("resolution", [8, 16])
@pytest.mark.parametrize(
    ("place", "words"), [(200, "payload"), (-500, "header"), (-512 - 512, "label"), ("pad", "header")]
)
def test_flipped_byte_is_found_and_named(shards, resolution, place, words):
    """The byte is in a payload, its header, its label or the zeros behind it; the line names tar, key and path of the
    sample.
    """
    table = read_samples(shards.uri, read_manifest(shards.uri))
    row = {
        name: table[name][7].as_py()
        for name in ("key", "path", "tar", f"offset_{resolution:04d}", f"size_{resolution:04d}")
    }
    tar = Path(shards.uri, f"r{resolution:04d}", f"train-{row['tar']:06d}.tar")
    start = row[f"offset_{resolution:04d}"]
    flip(tar, start + (row[f"size_{resolution:04d}"] + 5 if place == "pad" else place))
    problems = verify(shards.uri).problems
    assert len(problems) == 2
    assert problems[0].startswith(f"{tar}: sample {row['key']} ({row['path']}): ")
    assert words in problems[0]
    assert problems[1].startswith(f"{tar}: its SHA-256 is ")


def test_damage_behind_the_last_sample_is_found(shards):
    tar = Path(shards.uri, "r0004", "train-000001.tar")
    flip(tar, -3)
    (problem,) = verify(shards.uri).problems
    assert problem.startswith(f"{tar}: ")
    assert "no row names" in problem


def test_missing_or_cut_tar_is_named(shards):
    Path(shards.uri, "r0004", "train-000001.tar").unlink()
    cut = Path(shards.uri, "r0016", "train-000000.tar")
    cut.write_bytes(cut.read_bytes()[:-10240])
    problems = verify(shards.uri).problems
    assert f"{shards.uri}/r0004/train-000001.tar: missing" in problems
    assert any(problem.startswith(f"{cut}: has ") for problem in problems)


def test_other_facts_are_proven(shards):
    """Fingerprint, label counts, rejects and the digest of the table are checked."""
    manifest = read_manifest(shards.uri)
    uri = storage.join(shards.uri, "manifest.json")
    for change, words in (
        ({"fingerprint": "0" * 16}, "fingerprint"),
        ({"label_counts": {"cat": 6, "dog": 6}}, "labels"),
        ({"rejected": {"duplicate": 1}}, "rejected.jsonl"),
        ({"table": manifest["table"] | {"sha256": "0" * 64}}, "samples.parquet"),
        ({"table": manifest["table"] | {"filesize": 5}}, "samples.parquet: has "),
    ):
        storage.write_json(uri, manifest | change)
        (problem,) = verify(shards.uri).problems
        assert words in problem
    storage.write_json(uri, manifest)
    Path(shards.uri, "rejected.jsonl").write_text("{")
    assert verify(shards.uri).problems == (f"{shards.uri}/rejected.jsonl: missing or damaged",)


def test_what_is_no_set_is_one_line(shards, tmp_path):
    for folder, example in (
        (tmp_path / "root", rf"such as {shards.uri}$"),  # storage.root instead of the set
        (tmp_path, r"such as \{storage\.root\}/datasets/KEY$"),
        (tmp_path / "none", r"no such folder, or it is empty\); give"),
    ):
        with pytest.raises(StepError, match=rf"^{folder}: is no set of shards \(.*{example}") as caught:
            verify(str(folder))
        assert "delete" not in str(caught.value)
    manifest = read_manifest(shards.uri)
    storage.write_json(storage.join(shards.uri, "manifest.json"), manifest | {"format": 1})
    with pytest.raises(StepError, match="format 1"):
        verify(shards.uri)


def test_a_manifest_that_contradicts_itself_is_no_whole_set(shards):
    """A missing level or tar, other counts or sizes: each is told by `verify`, and where the manifest is read."""
    whole, uri = read_manifest(shards.uri), storage.join(shards.uri, "manifest.json")

    def change(edit: Callable[[dict], object]) -> None:
        manifest = copy.deepcopy(whole)
        edit(manifest)
        storage.write_json(uri, manifest)

    contradictions: list[Callable[[dict], object]] = [
        lambda m: m["datasets"].clear(),
        lambda m: m["datasets"].pop(1),
        lambda m: m["datasets"].pop(),
        lambda m: m["datasets"][1].update(shardlist=[]),
        lambda m: m["datasets"][2]["shardlist"].pop(),
        lambda m: m["shardlist"].pop(),
        lambda m: [level["shardlist"].pop() for level in m["datasets"]],
        lambda m: m["datasets"][0]["shardlist"][0].update(nsamples=6),
        lambda m: m["datasets"][0]["shardlist"][1].update(url=m["datasets"][0]["shardlist"][0]["url"]),
        lambda m: m["datasets"][0].update(resolution=8),
        lambda m: m["datasets"].reverse(),
        lambda m: m.update(resolutions=[4, 8]),
        lambda m: m["parameters"].update(resolution=8),
        lambda m: m.update(num_images=400),
        lambda m: m.update(num_images=float("nan")),
        *[
            lambda m, key=key: m.pop(key)
            for key in whole
            if key not in ("__kind__", "wids_version", "parent", "images_fingerprint")
        ],
    ]
    for edit in contradictions:
        change(edit)
        with pytest.raises(
            StepError, match=rf"^{uri}: is damaged \([^\n]+\); delete this file and shard its images again"
        ):
            verify(shards.uri)
        with pytest.raises(StepError, match=rf"^{uri}: is damaged"):
            read_shards(shards.uri)

    def count_more(manifest: dict) -> None:
        for entries in (*(level["shardlist"] for level in manifest["datasets"]), manifest["shardlist"]):
            entries[0]["nsamples"] += 1

    change(count_more)
    problems = verify(shards.uri).problems
    assert len(problems) == 3
    assert all("train-000000.tar: has 5 samples, the manifest says 6" in problem for problem in problems)
    change(lambda m: m["datasets"][0]["shardlist"][0].update(filesize=3))
    (problem,) = verify(shards.uri).problems
    assert "bytes, the manifest says 3" in problem
    change(lambda m: m.update(num_rejected=1))
    (problem,) = verify(shards.uri).problems
    assert problem == f"{shards.uri}/rejected.jsonl: has 0 lines, its manifest says 1"
    change(lambda m: m.update(of_the_future=1))
    assert verify(shards.uri).problems == ()


def test_rejects_and_parents_are_part_of_the_proof(image_folder, tmp_path, draw_images):
    """A set that builds on another is verified with the tars of both."""
    data = DataConfig(source=str(image_folder), resolution=8, max_rejected=1)
    (image_folder / "cat" / "0.png").write_bytes(b"none")
    write_shards(open_source(data), data, str(tmp_path / "root"))
    draw_images(image_folder / "dog", ["new.png"], size=(31, 30))
    shards = write_shards(open_source(data), data, str(tmp_path / "root"))
    urls = [entry["url"] for entry in read_manifest(shards.uri)["shardlist"]]
    assert len([url for url in urls if url.startswith("../")]) == 1
    found = verify(shards.uri)
    assert (found.num_tars, found.num_images, found.problems) == (4, 12, ())
    assert json.loads(Path(shards.uri, "rejected.jsonl").read_text())["path"] == "cat/0.png"
