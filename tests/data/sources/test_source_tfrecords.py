"""TFRecords of StyleGAN v1, which these tests write byte by byte as its tool does."""

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from stylegan.data.decode import UnreadableImage
from stylegan.errors import StepError


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of TensorFlow's record format: CRC-32C, rotated right by 15 bits, plus a constant."""
    value = google_crc32c.value(data)
    rotated = (value >> 15) | (value << 17) & 0xFFFFFFFF
    return (rotated + 0xA282EAD8) % 2**32


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(picture: np.ndarray, *, packed: bool = True) -> bytes:
    values = [varint(size) for size in picture.shape]
    numbers = message(1, b"".join(values)) if packed else b"".join(varint(1 << 3) + value for value in values)
    shape = message(1, b"shape") + message(2, message(3, numbers))
    data = message(1, b"data") + message(2, message(1, message(1, picture.tobytes())))
    return message(1, message(1, shape) + message(1, data))


def record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc32c(length)) + content + struct.pack("<I", masked_crc32c(content))


def pictures(side: int, channels: int = 3, num: int = 5) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (num, channels, side, side), dtype=np.uint8)


def tfrecords(folder: Path, *, channels: int = 3, labels: np.ndarray | None = None, packed: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    for level in (2, 3, 4):
        content = b"".join(record(example(picture, packed=packed)) for picture in pictures(2**level, channels))
        (folder / f"ffhq-r{level:02d}.tfrecords").write_bytes(content)
    if labels is not None:
        np.save(folder / "labels.npy", labels)
        (folder / "labels.npy").rename(folder / "ffhq-rxx.labels")
    return folder


def test_checksum_of_the_standard():
    """The package computes the test vectors of RFC 3720, and the mask is that of TensorFlow's record format."""
    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert google_crc32c.value(bytes(32)) == 0x8A9136AA
    assert google_crc32c.value(b"\xff" * 32) == 0x62A8AB43
    assert google_crc32c.value(bytes(range(32))) == 0x46DD794E
    assert masked_crc32c(b"") == 0xA282EAD8
    assert masked_crc32c(b"123456789") == 0xC78AB0E5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("packed", [True, False])
def test_highest_level_is_read(tmp_path, opened, contents, channels, packed):
    """Images are in the order of the file, with channels last; grey images have no third axis."""
    source = opened(tfrecords(tmp_path, channels=channels, packed=packed))
    assert [image.path for image in source.images] == [f"{number:07d}" for number in range(5)]
    assert (source.label_names, source.attribute_names) == ((), ())
    for found, wanted in zip(contents(source).values(), pictures(16, channels), strict=True):
        assert (found == (wanted[0] if channels == 1 else wanted.transpose(1, 2, 0))).all()


def test_one_level_by_name(tmp_path, opened, contents):
    """The URL of one file gives its resolution."""
    assert contents(opened(tfrecords(tmp_path) / "ffhq-r03.tfrecords"))["0000000"].shape == (8, 8, 3)


def test_one_hot_labels_are_classes(tmp_path, opened):
    """All resolutions share one file of labels, which a single file uses as well."""
    tfrecords(tmp_path, labels=np.eye(4, dtype=np.float32)[[2, 0, 3, 3, 1]])
    for place in (tmp_path, tmp_path / "ffhq-r02.tfrecords"):
        source = opened(place)
        assert source.label_names == ("0", "1", "2", "3")
        assert [image.label for image in source.images] == [2, 0, 3, 3, 1]


@pytest.mark.parametrize("other", [[1, 1], [0, 0]])
def test_multi_hot_labels_are_attributes(tmp_path, opened, other):
    """One row without exactly one 1 makes all rows attributes."""
    rows = [[1, 0], other, [0, 1], [0, 1], [1, 0]]
    source = opened(tfrecords(tmp_path, labels=np.array(rows, np.float32)))
    assert (source.label_names, source.attribute_names) == ((), ("0", "1"))
    assert [image.label for image in source.images] == [tuple(row) for row in rows]


def test_labels_of_no_length(tmp_path, opened):
    """StyleGAN's tool writes such labels for an unlabelled set."""
    assert opened(tfrecords(tmp_path, labels=np.zeros((5, 0), np.float32))).label_names == ()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.eye(4, dtype=np.float32), r"has the shape \(4, 4\); must be \[5, number of labels\]"),
        (np.zeros(5, np.float32), r"has the shape \(5,\)"),
        (np.full((5, 2), 0.5, np.float32), "other values than 0 and 1"),
        (np.array([[{}]] * 5, dtype=object), "is no NumPy array"),
        (np.array([["1", "0"]] * 5), "holds no array of numbers"),
        (np.zeros((5, 2), [("a", "f4")]), "holds no array of numbers"),
        (np.full((5, 2), np.nan, np.float32), "other values than 0 and 1"),
        (np.full((5, 2), -1, np.int64), "other values than 0 and 1"),
    ],
)
def test_wrong_labels_are_one_line(tmp_path, opened, labels, words):
    """The message names the file; an array that would have to be unpickled is refused too."""
    with pytest.raises(StepError, match=words) as caught:
        opened(tfrecords(tmp_path, labels=labels))
    assert "\n" not in str(caught.value)


def test_flipped_byte_is_that_images_fault(tmp_path, opened):
    """The checksum of its record fails; the other images can be read."""
    path = tfrecords(tmp_path) / "ffhq-r04.tfrecords"
    source, content = opened(tmp_path), bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with source.open() as read:
        with pytest.raises(ValueError, match="the record at byte 0 has a wrong checksum"):
            read("0000000")
        assert read("0000001").shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"\x01" + content[1:], "has no record at byte 0"),
        (lambda content: content[:-1], "is cut short within the record at byte"),
        (lambda content: content + b"123", "has no record at byte"),
        (lambda content: b"not TFRecords at all", "has no record at byte 0"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, opened, damage, words):
    """Wrong lengths and incomplete records are refused."""
    path = tfrecords(tmp_path) / "ffhq-r04.tfrecords"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StepError, match=words) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_two_sets_in_a_folder(tmp_path, opened):
    """Two sets in one folder are refused, because either may be meant."""
    (tfrecords(tmp_path) / "cats-r04.tfrecords").write_bytes(b"")
    with pytest.raises(StepError, match="holds several sets of TFRecords"):
        opened(tmp_path)


def test_tfrecords_in_a_bucket(tmp_path, upload, opened, contents):
    """Only the file that is needed is copied."""
    source = opened(upload(tfrecords(tmp_path / "ffhq", labels=np.eye(5, dtype=np.float32))))
    assert len(source.label_names) == 5
    assert (contents(source)["0000004"] == pictures(16)[4].transpose(1, 2, 0)).all()


def test_record_too_large_for_a_picture(tmp_path, opened, monkeypatch):
    """It is not read into memory."""
    source = opened(tfrecords(tmp_path / "set"))
    monkeypatch.setattr("stylegan.data.sources.base.LARGEST", 100)
    with source.open() as read, pytest.raises(UnreadableImage, match="at most 100 are allowed"):
        read("0000000")
