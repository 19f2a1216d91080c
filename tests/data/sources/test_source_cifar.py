"""Tests of CIFAR in its four public archives, and of malicious pickles, which must do nothing."""

import gzip
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from stylegan.data.sources import cifar
from stylegan.errors import StepError

NAMES = [f"class_{number}" for number in range(10)]


def pixels(seed: int, num: int = 4) -> np.ndarray:
    """Return random values [num, 3072], as in CIFAR's batches."""
    return np.random.default_rng(seed).integers(0, 256, (num, 3072), dtype=np.uint8)


def as_python2(content: dict) -> bytes:
    """Return a pickle of protocol 2, where arrays and texts are 8-bit strings, as in the public archives."""
    data = pickle.dumps(content, 2)
    return data.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


def python_files(fine: bool) -> dict[str, bytes]:
    """Return the files of the Python archive of CIFAR-10, or of CIFAR-100 if `fine`, by their paths."""
    if fine:
        batch = {
            "data": pixels(1),
            "fine_labels": [1, 0, 2, 1],
            "coarse_labels": [0, 0, 1, 0],
            "filenames": ["a.png"] * 4,
        }
        meta = {"fine_label_names": NAMES[:3], "coarse_label_names": ["x", "y"]}
        top = "cifar-100-python/"
        return {f"{top}train": as_python2(batch), f"{top}test": as_python2(batch), f"{top}meta": as_python2(meta)}
    top = "cifar-10-batches-py/"
    batches = {f"data_batch_{number}": {"data": pixels(number), "labels": [number, 0, 1, 2]} for number in (1, 2)}
    batches["test_batch"] = {"data": pixels(9), "labels": [3, 3, 3, 3]}
    files = {
        top + name: as_python2(batch | {"batch_label": "x", "filenames": ["a.png"] * 4})
        for name, batch in batches.items()
    }
    return files | {
        f"{top}batches.meta": as_python2({"label_names": NAMES, "num_vis": 3072}),
        f"{top}readme.html": b"hello",
    }


def binary_files(fine: bool) -> dict[str, bytes]:
    """Return the same set as `python_files` in the binary form."""

    def records(labels: list[list[int]], seed: int) -> bytes:
        return b"".join(bytes(label) + picture.tobytes() for label, picture in zip(labels, pixels(seed), strict=True))

    if fine:
        content = records([[0, 1], [0, 0], [1, 2], [0, 1]], 1)
        top = "cifar-100-binary/"
        names = {f"{top}fine_label_names.txt": "\n".join(NAMES[:3]).encode(), f"{top}coarse_label_names.txt": b"x\ny\n"}
        return {f"{top}train.bin": content, f"{top}test.bin": content} | names
    top = "cifar-10-batches-bin/"
    files = {f"{top}data_batch_{number}.bin": records([[number], [0], [1], [2]], number) for number in (1, 2)}
    return files | {
        f"{top}test_batch.bin": records([[3]] * 4, 9),
        f"{top}batches.meta.txt": "\n".join([*NAMES, ""]).encode(),
    }


def archive(folder: Path, name: str) -> Path:
    """Write an archive whose name decides which set and form it contains."""
    files = (python_files if "python" in name else binary_files)("100" in name)
    with tarfile.open(folder / name, "w:gz") as tar:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / name


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar10(tmp_path, opened, listed, contents, kind):
    """An archive and its unpacked folder give the training batches in order, 32x32 in RGB, with names of classes."""
    path = archive(tmp_path, f"cifar-10-{kind}.tar.gz")
    shutil.unpack_archive(path, tmp_path / "unpacked")
    for form in (path, tmp_path / "unpacked"):
        source = opened(form)
        assert source.label_names == tuple(NAMES)
        assert listed(source) == [
            (f"data_batch_{batch}/{row:05d}", label) for batch in (1, 2) for row, label in enumerate([batch, 0, 1, 2])
        ]
        picture = contents(source)["data_batch_2/00003"]
        assert (picture.dtype, picture.shape) == (np.uint8, (32, 32, 3))
        assert (picture == pixels(2)[3].reshape(3, 32, 32).transpose(1, 2, 0)).all()


def test_archive_without_an_end_mark_is_named_once(tmp_path, opened, caplog):
    """Its listing reads it once for the names of the classes, which are cut off here, and once for the images."""
    path = archive(tmp_path, "cifar-10-binary.tar.gz")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[: content.index(b"cifar-10-batches-bin/batches.meta.txt")]))
    assert len(opened(path).images) == 8
    assert caplog.text.count("cifar-10-binary.tar.gz has no end mark") == 1


def test_python_and_binary_are_one_set(tmp_path, opened):
    """Both archives list the same paths, labels and tokens, so they make the same shards."""
    for name in ("cifar-10", "cifar-100"):
        sources = [opened(archive(tmp_path, f"{name}-{kind}.tar.gz")) for kind in ("python", "binary")]
        assert sources[0].images == sources[1].images
        assert sources[0].signature == sources[1].signature


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar100_has_fine_labels(tmp_path, opened, listed, kind):
    """The labels are the fine ones, not the coarse ones, which come first in the binary form."""
    source = opened(archive(tmp_path, f"cifar-100-{kind}.tar.gz"))
    assert source.label_names == ("class_0", "class_1", "class_2")
    assert listed(source) == [(f"train/{row:05d}", label) for row, label in enumerate([1, 0, 2, 1])]


def test_test_images_by_name(tmp_path, opened, listed):
    """A test batch can be given by its name. Without a meta file the names of the classes are numbers."""
    shutil.unpack_archive(archive(tmp_path, "cifar-10-python.tar.gz"), tmp_path)
    source = opened(tmp_path / "cifar-10-batches-py" / "test_batch")
    assert listed(source) == [(f"test_batch/{row:05d}", 3) for row in range(4)]
    assert source.label_names == ("0", "1", "2", "3")


def test_cifar_in_a_bucket(tmp_path, upload, opened, contents):
    """An archive in a bucket gives the same images as a local one."""
    path = archive(tmp_path, "cifar-10-python.tar.gz")
    local, remote = contents(opened(path)), contents(opened(upload(path)))
    assert all((remote[name] == picture).all() for name, picture in local.items())


class Hostile:
    """An object whose pickle calls a function."""

    def __init__(self, call, *args) -> None:
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("name", ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"])
@pytest.mark.parametrize("call", [os.system, eval, getattr, np.load])
def test_hostile_pickle_is_refused_and_not_run(tmp_path, opened, monkeypatch, name, call):
    """A pickle that names anything else than arrays need is refused by that name, and nothing in it is called."""
    mark = tmp_path / "ran"
    argument = {os.system: f"touch {mark}", eval: f"open({str(mark)!r}, 'w')"}.get(call, str(mark))
    files = python_files(False) | {name: pickle.dumps({"data": Hostile(call, argument), "label_names": []}, 2)}
    for member, content in files.items():
        (tmp_path / member).parent.mkdir(exist_ok=True)
        (tmp_path / member).write_bytes(content)
    with pytest.raises(
        StepError, match=r"the pickle names '.*', which no batch of CIFAR needs.*nothing in it was run"
    ) as caught:
        opened(tmp_path / "cifar-10-batches-py")
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_path_out_of_the_archive(tmp_path, opened):
    """An archive with a member outside its folder is refused."""
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../data_batch_1"))
    with pytest.raises(StepError, match="leads out of the archive"):
        opened(tmp_path / "cifar-10-python.tar.gz")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data_batch_1", b"\x80\x02}", "is not a batch of CIFAR, or is cut short"),
        ("data_batch_1", pickle.dumps([1], 2), "contains a list, not a batch"),
        ("data_batch_1", as_python2({"data": pixels(1)[:, :5], "labels": [0] * 4}), "no `data` with 3,072 values"),
        ("data_batch_1", as_python2({"data": pixels(1).astype(float), "labels": [0] * 4}), "values of type 'f8'"),
        ("data_batch_1", as_python2({"data": pixels(1), "labels": ["a"] * 4}), "no list of `labels`"),
        ("data_batch_1", as_python2({"data": pixels(1), "labels": [0] * 3}), "has 4 images and 3 labels"),
        ("data_batch_1.bin", bytes(3000), "has 3000 bytes, not a multiple of 3073"),
        ("train.bin", bytes(3073), "has 3073 bytes, not a multiple of 3074"),
    ],
)
def test_damaged_batches_are_one_line(tmp_path, opened, name, content, words):
    """A damaged batch gives one line: the file, what is wrong and the cure."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StepError) as caught:
        opened(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_objects_fill_no_memory(tmp_path, opened):
    """A damaged pickle may give an object any number, and Python would make a table of that length."""
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02}r" + (10**6).to_bytes(4, "little") + b".")
    with pytest.raises(StepError, match=r"is cut short \(byte 3 gives an object the number 1000000\)"):
        opened(tmp_path / "data_batch_1")


def test_batch_too_large_to_be_cifars(tmp_path, opened, monkeypatch):
    """It is refused before it is read."""
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    assert len(opened(tmp_path / "data_batch_1.bin").images) == 1
    monkeypatch.setattr(cifar, "_LARGEST", 3000)
    with pytest.raises(StepError, match="has 3,073 bytes, where at most 3,000 are read"):
        opened(tmp_path / "data_batch_1.bin")
