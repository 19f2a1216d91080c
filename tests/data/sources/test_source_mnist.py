"""Tests of MNIST and similar sets in idx files."""

import gzip
import struct
from pathlib import Path

import fsspec
import numpy as np
import pytest

from stylegan.data.sources import mnist as source_mnist
from stylegan.errors import StepError


def idx(array: np.ndarray) -> bytes:
    """Return an idx file of bytes."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def pixels(num: int, side: int = 28) -> np.ndarray:
    """Return random images without black pixels."""
    return np.random.default_rng(num).integers(1, 256, (num, side, side), dtype=np.uint8)


def mnist(folder: Path, *, ending: str = ".gz", side: int = 28) -> Path:
    """Write 7 training and 3 test images with their labels, packed unless the ending is empty."""
    folder.mkdir(exist_ok=True)
    pack = gzip.compress if ending else bytes
    for name, num in (("train", 7), ("t10k", 3)):
        labels = np.arange(num, dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte{ending}").write_bytes(pack(idx(pixels(num, side))))
        (folder / f"{name}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(labels)))
    return folder


@pytest.mark.parametrize("ending", [".gz", ""])
def test_images_are_padded_and_labelled(tmp_path, opened, listed, contents, ending):
    """Images of 28x28 pixels are padded with black to 32x32. Their labels come from the file beside them."""
    source = opened(mnist(tmp_path, ending=ending) / f"train-images-idx3-ubyte{ending}")
    assert listed(source) == [(f"train/{number:05d}", number) for number in range(7)]
    assert source.label_names == tuple("0123456")
    picture = contents(source)["train/00003"]
    assert (picture.shape, picture.dtype) == ((32, 32), np.uint8)
    assert (picture[2:30, 2:30] == pixels(7)[3]).all()
    assert picture.sum() == pixels(7)[3].sum()


def test_other_sizes_stay(tmp_path, opened, contents):
    """Images of another size than MNIST's are not padded."""
    assert contents(opened(mnist(tmp_path, side=20)))["train/00000"].shape == (20, 20)


def test_which_set_is_told_by_the_url(tmp_path, opened):
    """A folder gives the training images, as in StyleGAN's tools. A file or a pattern gives the files that it names."""
    mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(
        gzip.decompress((tmp_path / "train-images-idx3-ubyte.gz").read_bytes())
    )
    assert [image.path for image in opened(tmp_path).images] == [f"train/{number:05d}" for number in range(7)]
    assert len(opened(tmp_path / "t10k-images-idx3-ubyte.gz").images) == 3
    assert len(opened(tmp_path / "*-images-idx3-ubyte.gz").images) == 10


def test_without_labels(tmp_path, opened):
    """Images without a file of labels are an unlabelled source."""
    mnist(tmp_path)
    for path in tmp_path.glob("*labels*"):
        path.unlink()
    assert opened(tmp_path).label_names == ()


def test_mnist_over_memory(tmp_path, opened, contents):
    """The labels beside the images are found at any URL."""
    fsspec.filesystem("memory").put(str(mnist(tmp_path / "mnist")), "/mnist", recursive=True)
    source = opened("memory://mnist/train-images-idx3-ubyte.gz")
    assert len(source.label_names) == 7
    assert contents(source)["train/00000"].shape == (32, 32)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train-images-idx3-ubyte.gz", b"no gzip", "cannot be read"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(pixels(7)), mtime=0)[:-20], "cannot be read"),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(idx(pixels(7))[:-20], mtime=0),
            "contains 5468 values, but its header says 7 x 28 x 28",
        ),
        (
            "train-images-idx3-ubyte.gz",
            gzip.compress(b"\0\0\x0d\3" + bytes(100), mtime=0),
            "is not an idx file of bytes with 3 dimension(s)",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.zeros(6, np.uint8)), mtime=0),
            "train has 7 images and 6 labels",
        ),
    ],
)
def test_damaged_files_are_one_line(tmp_path, opened, name, content, words):
    """A damaged file gives one line: the file, what is wrong and the cure."""
    (mnist(tmp_path) / name).write_bytes(content)
    with pytest.raises(StepError) as caught:
        opened(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_no_more_than_a_set_is_read(tmp_path, opened, monkeypatch, ending):
    """A small packed file may have any number of bytes in it."""
    mnist(tmp_path / "set", ending=ending)
    monkeypatch.setattr(source_mnist, "LARGEST", 2000)
    with pytest.raises(StepError, match=r"images-idx3-ubyte.* has more than 2,000 bytes"):
        opened(tmp_path / "set")
