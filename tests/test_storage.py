"""Storage: whole writes, marker-last publishing, and one line for whatever a store refuses."""

import os
import threading
from pathlib import Path

import fsspec
import pytest

from stylegan import storage
from stylegan.errors import StepError


@pytest.fixture(params=["local", "s3", "memory"])
def root(request, tmp_path) -> str:
    """The same tests run on a folder, a bucket and a file system in memory."""
    if request.param == "s3":
        return request.getfixturevalue("s3_server")() + "/root"
    return str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path.name}"


def test_bytes_and_json_come_back(root):
    """What was written is read, the last write wins, folders appear by themselves."""
    storage.write_bytes(f"{root}/a/b.bin", b"one")
    storage.write_bytes(f"{root}/a/b.bin", b"two")
    storage.write_json(f"{root}/a/c.json", {"x": [1, 2.5, None, "é"]})
    assert storage.read_bytes(f"{root}/a/b.bin") == b"two"
    assert storage.read_json(f"{root}/a/c.json") == {"x": [1, 2.5, None, "é"]}
    with storage.open_read(f"{root}/a/b.bin") as file:
        assert file.read(2) == b"tw"


def test_looking_up_listing_and_deleting(root, tmp_path):
    """exists, names and delete agree; nothing is wrong with what is not there."""
    assert not storage.exists(f"{root}/a")
    assert storage.names(f"{root}/a") == []
    storage.delete(f"{root}/a")
    storage.write_bytes(f"{root}/a/2.bin", b"")
    storage.write_bytes(f"{root}/a/1/deep.bin", b"x")
    assert storage.exists(f"{root}/a")
    assert storage.exists(f"{root}/a/2.bin")
    assert storage.names(f"{root}/a") == ["1", "2.bin"]
    assert storage.names(f"{root}/a/2.bin") == []
    storage.download(f"{root}/a/1/deep.bin", tmp_path / "copy" / "deep.bin")
    assert (tmp_path / "copy" / "deep.bin").read_bytes() == b"x"
    storage.delete(f"{root}/a/1")
    assert storage.names(f"{root}/a") == ["2.bin"]


def test_missing_file_is_file_not_found(root, tmp_path):
    """Callers tell a missing object from a store that fails."""
    for read in (
        storage.read_bytes,
        storage.read_json,
        storage.open_read,
        lambda uri: storage.download(uri, tmp_path / "copy"),
    ):
        with pytest.raises(FileNotFoundError):
            read(f"{root}/none.json")


def test_publish_moves_a_folder(root, tmp_path):
    """All files arrive below the URI and the local folder is gone."""
    folder = tmp_path / "made"
    for name in ("manifest.json", "r0004/a.tar", "z.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    storage.publish(folder, f"{root}/sets/x")
    assert not folder.exists()
    assert storage.names(f"{root}/sets/x") == ["manifest.json", "r0004", "z.txt"]
    assert storage.read_bytes(f"{root}/sets/x/r0004/a.tar") == b"r0004/a.tar"


def test_publish_writes_the_manifest_last(s3_server, tmp_path):
    """An upload that breaks off in the middle leaves no manifest."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "z.tar").symlink_to("/proc/self/mem")  # opens, but cannot be read: the upload fails here
    bucket = s3_server()
    with pytest.raises(StepError, match=f"storage: cannot upload to {bucket}/x/z.tar: "):
        storage.publish(folder, f"{bucket}/x")
    assert not storage.exists(f"{bucket}/x/manifest.json")


def test_publish_replaces_what_was_cut_short(tmp_path):
    """A half-made folder of an earlier attempt does not mix with the new one."""
    storage.write_bytes(f"{tmp_path}/sets/x/old.tar", b"old")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "new.tar").write_bytes(b"new")
    storage.publish(tmp_path / "made", f"{tmp_path}/sets/x")
    assert storage.names(f"{tmp_path}/sets/x") == ["new.tar"]


def test_readers_see_whole_files(tmp_path):
    """While a file is written again and again, a reader sees one version or the other, and no temporary file stays."""
    uri, versions = str(tmp_path / "f.bin"), [bytes([i]) * 200_000 for i in (1, 2)]
    storage.write_bytes(uri, versions[0])
    done = threading.Event()

    def write() -> None:
        for i in range(60):
            storage.write_bytes(uri, versions[i % 2])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        assert storage.read_bytes(uri) in versions
        assert storage.names(str(tmp_path)) == ["f.bin"]
    thread.join()
    assert os.listdir(tmp_path) == ["f.bin"]


def test_refused_write_leaves_nothing(tmp_path):
    """A write that the disk breaks off is one line, the old file stays whole and no temporary file is left."""
    import resource

    uri = str(tmp_path / "f.bin")
    storage.write_bytes(uri, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(StepError, match="File too large"):
            storage.write_bytes(uri, b"x" * 5_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["f.bin"]
    assert storage.read_bytes(uri) == b"old"


def one_line(call, *args: object) -> str:
    with pytest.raises(StepError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_that_cannot_be_made(tmp_path):
    """A path below a regular file names the path, the action and the cure."""
    (tmp_path / "file").write_text("")
    message = one_line(storage.write_bytes, f"{tmp_path}/file/x.bin", b"x")
    assert message.startswith(f"storage: cannot write {tmp_path}/file/x.bin: ")
    assert "check free space, permissions and credentials" in message
    (tmp_path / "made").mkdir()
    assert "cannot upload to" in one_line(storage.publish, tmp_path / "made", f"{tmp_path}/file/x")


def test_bucket_that_does_not_exist(s3_server, tmp_path):
    """Writing to a missing bucket is one line, not a FileNotFoundError."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_text("a")
    assert "s3://no-such-bucket/x" in one_line(storage.write_bytes, "s3://no-such-bucket/x", b"x")
    assert "s3://no-such-bucket/x" in one_line(storage.publish, tmp_path / "made", "s3://no-such-bucket/x")


def test_store_that_does_not_answer(s3_server, monkeypatch):
    """A closed port is one line for every verb, once the patience is over."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("STYLEGAN_PATIENCE", "0.3")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        for call in (storage.read_bytes, storage.names, storage.exists):
            assert "s3://bucket/x" in one_line(call, "s3://bucket/x")
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("uri", ["s4://bucket/x", "nonsense://x"])
def test_unknown_protocol(uri):
    """A URL of no known store is a user's mistake."""
    assert one_line(storage.exists, uri).startswith(f"storage: cannot use {uri}: Protocol not known")


def test_json_that_is_none(tmp_path):
    """A damaged record names its file and the cure."""
    (tmp_path / "x.json").write_text('{"a": ')
    message = one_line(storage.read_json, str(tmp_path / "x.json"))
    assert "x.json is not valid JSON" in message
    assert "delete it" in message


def test_paths(tmp_path, monkeypatch):
    """Local paths become absolute, URLs lose only a slash at their end."""
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("data") == storage.absolute(f"file://{tmp_path}/data") == f"{tmp_path}/data"
    assert storage.absolute("~/x") == str(Path.home() / "x")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert storage.join("s3://bucket/x", "a", "b") == "s3://bucket/x/a/b"
    assert [storage.is_local(uri) for uri in ("x", "/x", "file:///x", "s3://x", "memory://x")] == [
        True,
        True,
        True,
        False,
        False,
    ]
