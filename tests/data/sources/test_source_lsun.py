"""Tests of LSUN's LMDB environments."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest

from stylegan.errors import StepError

KEYS = [hashlib.sha1(b"%d" % number).hexdigest().encode() for number in range(6)]


def environment(folder: Path, entries: dict[bytes, bytes]) -> Path:
    """Write an LMDB environment and return its folder."""
    with lmdb.open(str(folder), map_size=2**24) as opened, opened.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    return folder


def test_keys_are_paths(tmp_path, opened, listed, contents):
    """Keys are paths and values are images. The counter that another tool leaves is not an image."""
    entries = {key: b"image %d" % number + bytes(5000) for number, key in enumerate(KEYS)}
    path = environment(tmp_path / "bedroom_train_lmdb", entries | {b"length": b"6"})
    for form in (path, path / "data.mdb"):
        source = opened(form)
        assert source.label_names == ()
        assert contents(source) == {key.decode(): value for key, value in entries.items()}


def test_keys_of_any_bytes(tmp_path, opened, contents):
    """No key becomes an absolute path or one with `..`, and keys that are not text get a path as well."""
    keys = [b"../evil", b"/etc/passwd", b"\xff\x00", b"hex-00", "ä".encode(), b"ok/a-1.webp", b"a//b", b" "]
    source = opened(environment(tmp_path / "a_lmdb", {key: key for key in keys}))
    assert sorted(contents(source).values()) == sorted(keys)
    assert not any(".." in image.path or image.path.startswith("/") for image in source.images)
    assert "ok/a-1.webp" in {image.path for image in source.images}


def test_several_environments_are_classes_when_asked(tmp_path, opened, contents):
    """Paths begin with the folder of their environment. Validation sets are left out if there are training sets."""
    (tmp_path / "lsun").mkdir()
    for name in ("cat", "church_outdoor_train_lmdb", "tower_train_lmdb", "tower_val_lmdb"):
        environment(tmp_path / "lsun" / name, {name.encode() + b"1": b"x"})
    source = opened(tmp_path / "lsun", "folder")
    assert source.label_names == ("cat", "church_outdoor_train_lmdb", "tower_train_lmdb")
    assert sorted(contents(source)) == [
        "cat/cat1",
        "church_outdoor_train_lmdb/church_outdoor_train_lmdb1",
        "tower_train_lmdb/tower_train_lmdb1",
    ]
    assert opened(tmp_path / "lsun").label_names == ()


def test_many_readers_of_one_environment(tmp_path, opened):
    """A process may open the same source twice and read from several threads."""
    source = opened(environment(tmp_path / "a_lmdb", {key: key * 500 for key in KEYS}))
    with source.open() as first:
        with source.open() as second, ThreadPoolExecutor(8) as pool:
            assert list(pool.map(second, [key.decode() for key in KEYS] * 50)) == [key * 500 for key in KEYS] * 50
        assert first(KEYS[0].decode()) == KEYS[0] * 500


def test_read_only_folder(tmp_path, opened, contents):
    """Reading writes no lock file beside the source."""
    path = environment(tmp_path / "a_lmdb", {b"a": b"x"})
    (path / "lock.mdb").unlink()
    assert contents(opened(path)) == {"a": b"x"}
    assert [file.name for file in path.iterdir()] == ["data.mdb"]


def test_lmdb_in_a_bucket(tmp_path, upload, opened, contents):
    """An environment in a bucket can be read."""
    source = opened(upload(environment(tmp_path / "a_lmdb", {key: key for key in KEYS})))
    assert contents(source) == {key.decode(): key for key in KEYS}


def test_damaged_file(tmp_path, opened):
    """A damaged file gives one line with its name."""
    path = environment(tmp_path / "a_lmdb", {b"a": b"x"}) / "data.mdb"
    path.write_bytes(b"no LMDB at all" * 1000)
    with pytest.raises(StepError, match=r"data\.mdb is not an LMDB environment") as caught:
        opened(path.parent)
    assert "\n" not in str(caught.value)
