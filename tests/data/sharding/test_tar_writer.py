"""Tars: byte for byte as webdataset writes them, readable by tarfile, with the right offsets and digest."""

import hashlib
import tarfile
from io import BytesIO

import numpy as np
import pytest
import webdataset as wds

from stylegan.data.sharding.tar_writer import TarFile, header, label_members, member_name

LABELS = [None, 7, (0, 1, 1)]


def samples(count: int) -> list[tuple[str, bytes]]:
    return [(f"{number:020x}", bytes([number % 256]) * (number * 37)) for number in range(count)]


def head(key: str, payload: bytes, label: object, suffix: str = "npy") -> bytes:
    return label_members(key.encode(), label) + header(member_name(key.encode(), suffix), len(payload))


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("count", [0, 1, 3, 300])
def test_same_bytes_as_webdataset(label, count):
    ours, theirs = BytesIO(), BytesIO()
    tar = TarFile(ours, "npy")
    with wds.TarWriter(theirs, mtime=0, encoder=False) as writer:
        for key, payload in samples(count):
            extra = {} if label is None else {"cls": b"7"} if label == 7 else {"json": b'{"attributes": [0, 1, 1]}'}
            writer.write({"__key__": key, "npy": payload, **extra})
            offset = tar.add(head(key, payload, label), payload)
            assert offset + len(payload) <= tar.num_bytes
    tar.close()
    assert ours.getvalue() == theirs.getvalue()
    assert (len(ours.getvalue()), hashlib.sha256(ours.getvalue()).hexdigest()) == (tar.num_bytes, tar.sha256)


@pytest.mark.parametrize("label", LABELS)
def test_offsets_lead_to_payloads(label):
    file = BytesIO()
    tar = TarFile(file, "png")
    offsets = [tar.add(head(key, payload, label, "png"), payload) for key, payload in samples(9)]
    tar.close()
    content = file.getvalue()
    assert [
        content[offset : offset + len(payload)] for offset, (_, payload) in zip(offsets, samples(9), strict=True)
    ] == [payload for _, payload in samples(9)]
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        assert [entry.offset_data for entry in archive if entry.name.endswith(".png")] == offsets
        assert all(entry.mtime == 0 for entry in archive)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("size", [1, 512, 700])
def test_several_at_once_are_the_same_bytes(label, size):
    payloads = np.random.default_rng(size).integers(0, 256, (5, size)).astype(np.uint8)
    heads = [head(f"{number:020x}", payloads[number].tobytes(), label) for number in range(5)]
    files = BytesIO(), BytesIO()
    one, several = (TarFile(file, "npy") for file in files)
    offsets = [one.add(heads[number], payloads[number].tobytes()) for number in range(5)]
    assert (
        several.add_equal(heads[:2], payloads[:2]).tolist() + several.add_equal(heads[2:], payloads[2:]).tolist()
        == offsets
    )
    one.close()
    several.close()
    assert files[0].getvalue() == files[1].getvalue()
    assert (one.sha256, one.num_bytes) == (several.sha256, several.num_bytes)
