"""Tests of LSUN's LMDB environments."""

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import lmdb
import pytest

from stylegan.data.decode import UnreadableImage
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


def many(folder: Path) -> Path:
    """Write an environment with a tree of several levels, small and large values, and pages that were given up."""
    path = environment(folder, {b"%040d" % number: bytes([number % 251]) * (number % 7 * 900) for number in range(900)})
    with lmdb.open(str(path), map_size=2**24) as opened:
        with opened.begin(write=True) as transaction:
            for number in range(0, 900, 2):
                transaction.delete(b"%040d" % number)
        with opened.begin(write=True) as transaction:
            for number in range(0, 900, 5):
                transaction.put(b"new-%036d" % number, b"n" * number * 10)
    return path


def test_lists_and_reads_what_lmdb_does(tmp_path, opened, listed, contents):
    """Keys and values are those that LMDB itself finds."""
    path = many(tmp_path / "a_lmdb")
    with lmdb.open(str(path), readonly=True, lock=False) as known, known.begin() as transaction:
        wanted = {key.decode(): value for key, value in transaction.cursor()}
        assert transaction.stat()["depth"] > 1
    assert contents(opened(path)) == wanted
    environment(tmp_path / "empty_lmdb", {})
    assert len(opened(tmp_path).images) == len(wanted)


def test_a_cut_environment_is_one_line(tmp_path, opened):
    """Wherever the file ends, the line names it; nothing is read beyond its end."""
    path = many(tmp_path / "a_lmdb") / "data.mdb"
    content = path.read_bytes()
    for size in (0, 10, 200, 4096, 5000, 8192, 12288, *range(20_000, len(content), len(content) // 20)):
        path.write_bytes(content[:size])
        with pytest.raises(
            StepError, match=r"data\.mdb is not an LMDB environment, or is damaged \(.*\); copy it"
        ) as caught:
            opened(path)
        assert "\n" not in str(caught.value)


def test_a_damaged_environment_is_one_line_or_read(tmp_path, opened):
    """Any number in the file may be wrong: the file is refused in one line, or each image is read or fails by itself."""
    path = many(tmp_path / "a_lmdb") / "data.mdb"
    content, random = path.read_bytes(), Random(3)
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(random.choice([1, 3, 30])):
            place = random.randrange(0, len(content) - 8) // 2 * 2
            place = place // 4096 * 4096 + place % 64 if random.random() < 0.7 else place
            damaged[place : place + 8] = struct.pack(
                "<Q", random.choice([0, 1, 2**16 - 1, 2**63, random.randrange(2**64)])
            )
        path.write_bytes(damaged)
        try:
            source = opened(path)
        except StepError as error:
            assert str(error).isprintable()  # noqa: PT017
            continue
        with source.open() as read:
            for image in source.images:
                with suppress(EOFError):
                    read(image.path)


def test_cut_after_listing(tmp_path, opened):
    """Each image that is gone fails by itself, without a signal to the process."""
    path = many(tmp_path / "a_lmdb")
    source = opened(path)
    with open(path / "data.mdb", "r+b") as file:
        file.truncate(8192)
    with source.open() as read, pytest.raises(EOFError, match="cut short"):
        read(source.images[5].path)


def test_several_values_for_a_key_are_refused(tmp_path, opened):
    """Such a table has another layout."""
    with (
        lmdb.open(str(tmp_path / "a_lmdb"), map_size=2**24, max_dbs=1) as opened_,
        opened_.begin(write=True) as transaction,
    ):
        transaction.put(b"a", b"x")
    content = bytearray((tmp_path / "a_lmdb" / "data.mdb").read_bytes())
    for place in (0, 4096):
        content[place + 92 : place + 94] = struct.pack("<H", 4)  # MDB_DUPSORT
    (tmp_path / "a_lmdb" / "data.mdb").write_bytes(content)
    with pytest.raises(StepError, match="several values for a key"):
        opened(tmp_path / "a_lmdb")


def test_value_too_large_for_a_picture(tmp_path, opened, monkeypatch):
    """It is not read into memory."""
    source = opened(environment(tmp_path / "a_lmdb", {b"1": b"x" * 2000, b"2": b"y"}))
    monkeypatch.setattr("stylegan.data.sources.base.LARGEST", 1000)
    with source.open() as read:
        assert read("2") == b"y"
        with pytest.raises(UnreadableImage, match="2,000 bytes; at most 1,000"):
            read("1")
