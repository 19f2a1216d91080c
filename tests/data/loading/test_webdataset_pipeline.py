"""The webdataset pipeline: exactly the samples of a set, with the pixels and labels of our own loader, for any readers."""

import io
import pickle
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

import stylegan.data
from stylegan import storage
from stylegan.config.sections import DataConfig
from stylegan.data import open_webdataset
from stylegan.data.index import read_manifest, read_samples
from stylegan.data.loading.loader import load_images
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError, UnavailableError

README = Path(stylegan.data.__file__).with_name("README.md")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Give each test a cache of its own, because equal data sets have equal fingerprints."""
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))


def make(source: Path, root: Path | str, **changes: object) -> ShardSet:
    """Shard a folder, by default the 12 images of `image_folder` into three tars."""
    data = DataConfig(**({"source": str(source), "resolution": 16, "images_per_shard": 5} | changes))
    return write_shards(open_source(data), data, str(root))


def keys_of(shards: ShardSet) -> list[str]:
    """Return the keys of all samples in canonical order."""
    return read_samples(shards.uri, read_manifest(shards.uri), ["key"])["key"].to_pylist()


def assert_same_samples(batches: Iterable[dict], shards: ShardSet, resolution: int) -> None:
    """Assert that batches of dicts hold every image of the loader's table once, with its label."""
    table = load_images(shards, resolution)
    rows = {key: row for row, key in enumerate(keys_of(shards))}
    seen = []
    for batch in batches:
        for key, image, label in zip(batch["__key__"], batch["image"], batch["label"], strict=True):
            seen.append(key)
            assert image.dtype == torch.uint8
            assert np.array_equal(image.numpy(), table.images[rows[key]])
            wanted = table.labels if table.attributes is None else table.attributes
            assert np.array_equal(label.numpy(), wanted[rows[key]])
    assert Counter(seen) == Counter(rows.keys())


@pytest.fixture
def as_reader(monkeypatch) -> Callable[..., None]:
    """`as_reader(worker, workers, rank, ranks)` makes this process one of several readers, as webdataset sees it."""

    def become(worker: int = 0, workers: int = 1, rank: int = 0, ranks: int = 1) -> None:
        for name, value in {"WORKER": worker, "NUM_WORKERS": workers, "RANK": rank, "WORLD_SIZE": ranks}.items():
            monkeypatch.setenv(name, str(value))

    return become


# --- the samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images_per_shard", [5, 100])  # three tars, and one tar for two workers
@pytest.mark.parametrize("shuffle", [0, 4])
def test_two_workers_yield_what_the_loader_sees(image_folder, tmp_path, images_per_shard, shuffle):
    """Every image once, over both workers together."""
    shards = make(image_folder, tmp_path, images_per_shard=images_per_shard)
    pipeline = open_webdataset(shards, 16, shuffle=shuffle, as_dict=True)
    assert_same_samples(DataLoader(pipeline, batch_size=3, num_workers=2), shards, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_payloads(draw_images, tmp_path, channels):
    """Sets hold PNG above 256x256."""
    folder = draw_images(tmp_path / "images", ["a/0.png", "a/1.png", "b/2.png"])
    shards = make(folder, tmp_path, resolution=512, channels=channels)
    for resolution in (512, 256):
        pipeline = open_webdataset(shards, resolution, as_dict=True)
        assert_same_samples(DataLoader(pipeline, batch_size=2), shards, resolution)


def test_set_in_a_bucket(image_folder, s3_server):
    """By the URI of its folder, in two workers; nothing is registered in webdataset for that."""
    schemes = dict(wds.gopen_schemes)
    shards = make(image_folder, s3_server())
    pipeline = open_webdataset(f"{shards.uri}/", 16, shuffle=4, as_dict=True)
    assert_same_samples(DataLoader(pipeline, batch_size=5, num_workers=2), shards, 16)
    assert_same_samples(
        DataLoader(pickle.loads(pickle.dumps(pipeline))), shards, 16
    )  # as workers that are not forked get it
    assert wds.gopen_schemes == schemes
    storage.delete(f"{shards.uri}/r0016/train-000001.tar")
    with pytest.raises(StepError, match=r"s3://.*r0016/train-000001\.tar: missing; delete s3://"):
        list(pipeline)


def test_set_that_has_grown(draw_images, tmp_path):
    """Deleted images, duplicates and old versions of changed images are still in the tars, and are not yielded."""
    names = [f"{'cat' if number % 3 else 'dog'}/{number}.png" for number in range(20)]
    folder = draw_images(tmp_path / "images", names)
    (folder / "dog/copy.png").write_bytes((folder / "dog/0.png").read_bytes())
    first = make(folder, tmp_path)
    (folder / names[1]).unlink()
    (folder / names[4]).write_bytes((folder / names[5]).read_bytes() + b"changed")
    draw_images(tmp_path / "more", [f"cat/new-{number}.png" for number in range(3)], size=(30, 30))
    for path in (tmp_path / "more").rglob("*.png"):
        path.rename(folder / "cat" / path.name)
    grown = make(folder, tmp_path)
    tars = [tar for tar in read_manifest(grown.uri)["shardlist"] if tar["url"].startswith("../")]
    assert (len(tars) > 0, first.num_images, grown.num_images) == (True, 20, 22)
    assert sum(path.read_bytes().count(b"\x93NUMPY") for path in tmp_path.rglob("r0016/*.tar")) > 22
    for workers in (0, 2):
        pipeline = open_webdataset(grown, 16, shuffle=100, as_dict=True)
        assert_same_samples(DataLoader(pipeline, batch_size=4, num_workers=workers), grown, 16)
    assert len(list(open_webdataset(first, 8))) == 20


def test_attributes(image_folder, tmp_path):
    """They are vectors of 0 and 1, also after collation."""
    names = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png"))
    rows = [[name, [number % 2, int(number > 3)]] for number, name in enumerate(names)]
    storage.write_json(str(image_folder / "dataset.json"), {"labels": rows})
    shards = make(image_folder, tmp_path)
    assert_same_samples(DataLoader(open_webdataset(shards, 8, as_dict=True), batch_size=5), shards, 8)
    _, label = next(iter(open_webdataset(shards, 8)))
    assert (label.shape, label.dtype) == ((2,), torch.uint8)


def test_forms_of_a_sample(image_folder, tmp_path):
    """Tuples or dicts, tensors or arrays, with or without labels; images are writable and contiguous."""
    shards = make(image_folder, tmp_path, channels=1)
    image, label = next(iter(open_webdataset(shards, 8)))
    assert (image.shape, image.dtype, image.is_contiguous(), type(label)) == ((1, 8, 8), torch.uint8, True, int)
    (alone,) = next(iter(open_webdataset(shards, 8, labels=False, as_numpy=True)))
    assert (type(alone), alone.flags.writeable, alone.flags.c_contiguous) == (np.ndarray, True, True)
    assert np.array_equal(alone, image.numpy())
    sample = next(iter(open_webdataset(shards, 8, labels=False, as_dict=True)))
    assert sample.keys() == {"__key__", "__url__", "image"}
    assert sample["__url__"].endswith("r0008/train-000000.tar")


def test_unlabelled_set(image_folder, tmp_path):
    """Its labels are -1, as those of the loader."""
    shards = make(image_folder, tmp_path, labels="none")
    assert {label for _, label in open_webdataset(shards, 4)} == {-1}


def test_methods_of_webdataset(image_folder, tmp_path):
    """The pipeline can be extended as any other of webdataset."""
    pipeline = open_webdataset(make(image_folder, tmp_path), 4).map_tuple(lambda image: image.float() / 255).batched(5)
    assert isinstance(pipeline, wds.DataPipeline)
    assert [images.shape for images, _ in pipeline] == [(5, 3, 4, 4), (5, 3, 4, 4), (2, 3, 4, 4)]


# --- the order --------------------------------------------------------------------------------------------------------


def order(pipeline: wds.DataPipeline) -> list[str]:
    return [sample["__key__"] for sample in pipeline]


def test_seed_decides_the_order(image_folder, tmp_path):
    """A seed gives each pass an order of its own, and the same ones to every pipeline; without shuffling there is one order."""
    shards = make(image_folder, tmp_path)
    first, again, other = (open_webdataset(shards, 4, shuffle=8, seed=seed, as_dict=True) for seed in (1, 1, 7))
    passes = [order(first) for _ in range(3)]
    assert [order(again) for _ in range(3)] == passes
    assert len({tuple(keys) for keys in passes}) == 3
    assert order(other) not in passes
    assert all(sorted(keys) == sorted(passes[0]) for keys in passes)
    again.set_epoch(1)
    assert order(again) == passes[1]
    plain = open_webdataset(shards, 4, as_dict=True)
    assert order(plain) == order(plain) == keys_of(shards)
    tars = {tuple(order(open_webdataset(shards, 4, shuffle=1, seed=seed, as_dict=True))) for seed in range(8)}
    assert len(tars) > 1, "a buffer of one sample leaves the order to the tars"


def test_workers_begin_with_the_epoch_that_is_set(image_folder, tmp_path):
    """Workers that do not persist know nothing of the passes before; `set_epoch` gives each its order all the same."""
    pipeline = open_webdataset(make(image_folder, tmp_path), 4, shuffle=8, seed=1, as_dict=True)
    loader = DataLoader(pipeline, batch_size=None, num_workers=1)
    passes = []
    for epoch in (0, 1, 0):
        pipeline.set_epoch(epoch)
        passes.append(order(loader))
    assert passes[0] == passes[2] != passes[1]


# --- readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (3, 1), (1, 3), (2, 1), (2, 2), (2, 3), (5, 3)])
@pytest.mark.parametrize("shuffle", [0, 6])
def test_readers_share_the_samples(image_folder, tmp_path, as_reader, ranks, workers, shuffle):
    """Three tars for 1 to 15 readers: each sample once; with too few tars for whole ones the shares differ by one at most."""
    shards = make(image_folder, tmp_path)
    shares = []
    for rank in range(ranks):
        as_reader(rank=rank, ranks=ranks)
        pipeline = open_webdataset(shards, 4, shuffle=shuffle, as_dict=True)
        for worker in range(workers):
            pipeline.set_epoch(0)
            as_reader(worker, workers)  # a DataLoader worker may know nothing of its rank
            shares.append(order(pipeline))
    assert sorted(key for share in shares for key in share) == sorted(keys_of(shards))
    sizes = sorted(map(len, shares))
    if ranks * workers > 3:
        assert sizes[-1] - sizes[0] <= 1
    else:
        assert sizes[0] >= 2


@pytest.mark.parametrize(("images_per_shard", "share"), [(2, 2), (100, 3)])  # six tars for four readers, and one
def test_no_split(image_folder, tmp_path, as_reader, images_per_shard, share):
    """Every rank, or every worker, gets all samples if that is asked for."""
    shards = make(image_folder, tmp_path, images_per_shard=images_per_shard)
    as_reader(worker=1, workers=2, rank=1, ranks=2)
    assert len(list(open_webdataset(shards, 4, split_by_node=False, split_by_worker=False))) == 12
    assert len(list(open_webdataset(shards, 4, split_by_node=False))) == 6
    assert len(list(open_webdataset(shards, 4, split_by_worker=False))) == 6
    assert len(list(open_webdataset(shards, 4))) == share


def test_equal_shares_by_an_epoch_of_given_length(image_folder, tmp_path, as_reader):
    """Three tars on two ranks are unequal shares; `with_epoch` makes all readers yield as many."""
    shards = make(image_folder, tmp_path)
    for rank in range(2):
        as_reader(rank=rank, ranks=2)
        assert len(list(open_webdataset(shards, 4, shuffle=5).with_epoch(11))) == 11


# --- errors -----------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_one_line(image_folder, tmp_path):
    """Errors name a resolution that the set does not have, a folder that is no set, and a set of another format."""
    shards = make(image_folder, tmp_path)
    for uri, resolution, words in (
        (shards, 32, r"has no shards at resolution 32; there are \[4, 8, 16\]$"),
        (shards.uri, 5, r"has no shards at resolution 5; there are \[4, 8, 16\]$"),
        (shards.up_to(8), 16, r"has no shards at resolution 16; there are \[4, 8\]$"),
        (image_folder, 16, r"images: holds no finished set of shards; give a folder below datasets/"),
    ):
        with pytest.raises(StepError, match=words) as caught:
            open_webdataset(uri, resolution)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^shuffle=-1: must be"):
        open_webdataset(shards, 16, shuffle=-1)
    manifest = read_manifest(shards.uri)
    for wrong, words in (({"format": 1}, "is of format 1, only 2 is known"), ({"num_images": "x"}, "damaged")):
        storage.write_json(f"{shards.uri}/manifest.json", manifest | wrong)
        with pytest.raises(StepError, match=words) as caught:
            open_webdataset(shards.uri, 16)
        assert "\n" not in str(caught.value)


def without_a_sample(content: bytes) -> bytes:
    """Remove the last sample of a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old.getmembers()[:-2]:
            new.addfile(member, old.extractfile(member))
    return out.getvalue()


def flipped(content: bytes) -> bytes:
    """Change one byte of the first payload."""
    at = content.index(b"\x93NUMPY") + 200
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flipped, r"sample [0-9a-f]+ has a wrong checksum"),
        (without_a_sample, r"1 samples are missing, such as [0-9a-f]{20}"),
        (lambda content: content[:2000], r"cannot be read \(unexpected end of data\)"),  # within a payload
        (
            lambda content: content[:3000],
            r"4 samples are missing",
        ),  # within a header: Python's tarfile ends there silently
        (lambda content: b"no tar" * 1000, r"cannot be read \("),
        (lambda content: b"", r"cannot be read \(|samples are missing"),
    ],
)
def test_damage_is_one_line(image_folder, tmp_path, damage, words):
    """The message names the tar, what is wrong and the cure. The pass fails, so no sample is lost silently."""
    shards = make(image_folder, tmp_path)
    tar = Path(shards.uri, "r0016", "train-000001.tar")
    tar.write_bytes(damage(tar.read_bytes()))
    with pytest.raises(
        StepError, match=rf"train-000001\.tar: ({words}).*; delete {shards.uri} and shard its images again"
    ) as caught:
        list(open_webdataset(shards, 16))
    assert "\n" not in str(caught.value)
    assert " @ <" not in str(caught.value)


def test_store_that_fails_within_a_tar(image_folder, tmp_path, monkeypatch):
    """The line of the store is the line of the pipeline, without what webdataset adds to it."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 1000:
                raise UnavailableError("storage: cannot read s3://b/t.tar: timeout; check the store")
            return super().read(min(size or 512, 512))

    shards = make(image_folder, tmp_path)
    content = Path(shards.uri, "r0016", "train-000000.tar").read_bytes()
    pipeline = open_webdataset(shards, 16)
    monkeypatch.setattr(storage, "open_read", lambda uri: Failing(content))
    with pytest.raises(UnavailableError, match=r"^storage: cannot read s3://b/t\.tar: timeout; check the store$"):
        list(pipeline)


# --- the package ------------------------------------------------------------------------------------------------------


def test_package_imports_webdataset_when_it_is_used():
    """Other modules of the package cost no more than before."""
    code = "import sys, stylegan.data, stylegan.data.index; assert not {'torch', 'webdataset'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match=r"module 'stylegan\.data' has no attribute 'open_wds'"):
        _ = stylegan.data.open_wds


def test_example_of_the_readme(tmp_path, monkeypatch, capsys):
    """It runs as it is in the folder of the quickstart."""
    data = DataConfig(source="digits", resolution=16, channels=1)
    write_shards(open_source(data), data, str(tmp_path / "quickstart-data"))
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(example, str(README), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.split("\n")[:-1] == re.findall(r"# prints (.*)", example)


def test_first_samples_need_no_whole_tar(image_folder, tmp_path):
    """A pass may end early."""
    assert len(list(islice(open_webdataset(make(image_folder, tmp_path), 4), 2))) == 2
