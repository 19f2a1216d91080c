"""Requests and markers: small, in canonical order, and with a digest of everything that decides the tars."""

import hashlib
import pickle
from contextlib import nullcontext
from dataclasses import replace

import pyarrow as pa
import pytest

from stylegan.config.sections import DataConfig
from stylegan.data.sharding.chunks import (
    ChunkRequest,
    FinishedChunk,
    Recipe,
    Rows,
    duplicate,
    finished_facts,
    read_chunk,
    sample_key,
    write_marker,
)
from stylegan.data.sources.base import SourceImage

IMAGES = (SourceImage("a", 1, "1-2"), SourceImage("b", None, "3-4"))
REQUEST = ChunkRequest(name="000007", images=IMAGES)


def recipe(uri: object, **settings: object) -> Recipe:
    data = DataConfig(**({"source": "x", "resolution": 8} | settings))
    return Recipe(uri=str(uri), open=nullcontext, data=data, labels="attributes", threads=1)


def test_keys_are_in_canonical_order():
    paths = sorted((str(number) for number in range(200)), key=lambda path: hashlib.sha256(path.encode()).digest())
    assert [sample_key(path) for path in paths] == sorted({sample_key(path) for path in paths})


def test_request_is_as_large_as_its_images():
    """At most about 100 bytes per image are sent to a worker."""
    paths = (f"class{number % 10}/image{number:08d}.png" for number in range(4096))
    images = tuple(SourceImage(path, number % 10, "2311-1700000000000000000") for number, path in enumerate(paths))
    assert len(pickle.dumps(ChunkRequest(name="000007", images=images))) < 120 * 4096


def test_marker_comes_back(tmp_path):
    """A marker returns the rows (none here), tars, rejects and touched images that were written."""
    rejected = [duplicate("b", "3-4", 9, b"x" * 32)]
    write_marker(
        recipe(tmp_path), REQUEST, FinishedChunk(Rows((4, 8), "attributes").table(), {8: ("ab", 5)}, rejected, [0])
    )
    chunk = read_chunk(str(tmp_path), "000007", ["key", "attributes", "crc_0008"])
    assert (chunk.tars, chunk.rejected, chunk.touched) == ({8: ("ab", 5)}, rejected, [0])
    assert chunk.rows.schema.types == [pa.string(), pa.list_(pa.uint8()), pa.uint32()]


@pytest.mark.parametrize(
    "change",
    [
        {"images": (IMAGES[0]._replace(token="other"), IMAGES[1])},
        {"images": (IMAGES[0]._replace(label=0), IMAGES[1])},
        {"images": (IMAGES[0]._replace(label=(1,)), IMAGES[1])},
        {"images": IMAGES[::-1]},
        {"known": (b"x", None)},
    ],
)
def test_another_chunk_is_not_finished(tmp_path, change):
    """Other images, tokens, labels, order or settings make another chunk; another limit on rejects does not."""
    write_marker(recipe(tmp_path), REQUEST, FinishedChunk(Rows((4, 8), "none").table(), {}, [], []))
    assert finished_facts(recipe(tmp_path), REQUEST)
    assert finished_facts(recipe(tmp_path, max_rejected=7), REQUEST)
    assert not finished_facts(recipe(tmp_path, resize_filter="box"), REQUEST)
    assert not finished_facts(recipe(tmp_path), replace(REQUEST, name="000008"))
    assert not finished_facts(recipe(tmp_path), replace(REQUEST, **change))
