"""Tests of storage: whole writes, uploads, downloads, and one line for whatever a store refuses."""

import os
import pickle
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from stylegan import storage
from stylegan.errors import StepError


@pytest.fixture(params=["local", "s3", "gcs", "memory"])
def root(request, tmp_path) -> str:
    """Return a root for each kind of store: a folder, a bucket and a file system in memory."""
    if request.param in ("s3", "gcs"):
        return request.getfixturevalue(f"{request.param}_server")() + "/root"
    return str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path.name}"


def test_bytes_and_json_come_back(root):
    """Reading returns what was written; the last write wins; folders are made as needed."""
    storage.write_bytes(f"{root}/a/b.bin", b"one")
    storage.write_bytes(f"{root}/a/b.bin", b"two")
    storage.write_json(f"{root}/a/c.json", {"x": [1, 2.5, None, "é"]})
    assert storage.read_bytes(f"{root}/a/b.bin") == b"two"
    assert storage.read_json(f"{root}/a/c.json", dict[str, Any], cure="-") == {"x": [1, 2.5, None, "é"]}
    with storage.open_read(f"{root}/a/b.bin") as file:
        assert file.read(2) == b"tw"


def test_one_listing_has_the_sizes_and_times_of_all_files(root, tmp_path):
    assert storage.files(f"{root}/a") == {}
    before = time.time()
    storage.write_bytes(f"{root}/a/2.bin", b"12")
    storage.write_bytes(f"{root}/a/1/deep.bin", b"x")
    storage.write_bytes(f"{root}/b.bin", b"elsewhere")
    found = storage.files(f"{root}/a")
    assert {name: facts.num_bytes for name, facts in found.items()} == {"2.bin": 2, "1/deep.bin": 1}
    if "://" not in root or root.startswith(("s3", "gs")):
        assert all(abs(facts.changed - before) < 3600 for facts in found.values())


def test_looking_up_listing_and_deleting(root, tmp_path):
    """`exists`, `names` and `delete` agree, and accept what does not exist."""
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


class ListedFileSystem(MemoryFileSystem):
    """A store in memory that answers from its listings cache wherever it can, as many stores on the network do."""

    protocol = "listed"
    store: dict = {}
    pseudo_dirs: list = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix(f"{cls.protocol}://"))

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        if path in self.dircache:
            found = self.dircache[path]
        else:
            found = self.dircache[path] = super().ls(path, detail=True)
        return found if detail else [info["name"] for info in found]

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        parent = self._parent(path)
        if parent in self.dircache:
            found = [info for info in self.dircache[parent] if info["name"] == path]
            if not found:
                raise FileNotFoundError(path)
            return found[0]
        return super().info(path)

    def exists(self, path, **kwargs):
        try:
            self.ls(self._parent(self._strip_protocol(path)))  # `info` is answered from it
            return bool(self.info(path))
        except FileNotFoundError:
            return False


class OwnCacheFileSystem(ListedFileSystem):
    """The same with a cache of its own kind."""

    protocol = "owncache"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dircache = {}

    def invalidate_cache(self, path=None):
        self.dircache.clear()


@pytest.mark.parametrize("kind", ["s3", "gcs", "listed", "owncache"])
def test_what_others_write_is_seen(kind, request):
    """A process never answers from what it listed before: other processes and machines write to the same store."""
    if kind in ("s3", "gcs"):
        root = request.getfixturevalue(f"{kind}_server")() + "/root"
    else:
        for store in (ListedFileSystem, OwnCacheFileSystem):
            fsspec.register_implementation(store.protocol, store, clobber=True)
        root = f"{kind}://root"
    other, path = fsspec.url_to_fs(root, skip_instance_cache=True, use_listings_cache=False)
    other.pipe_file(f"{path}/a/1.bin", b"one")

    # This process looks around, so that it has something to remember.
    assert storage.names(f"{root}/a") == ["1.bin"]
    assert not storage.exists(f"{root}/a/2.bin")
    assert storage.size(f"{root}/a/1.bin") == 3
    assert [
        name for name in storage.filesystem(root)[0].find(storage.filesystem(root)[1]) if name.endswith("2.bin")
    ] == []

    # Another process writes and deletes.
    other.pipe_file(f"{path}/a/1.bin", b"longer")
    other.pipe_file(f"{path}/a/2.bin", b"two")
    other.pipe_file(f"{path}/b/3.bin", b"three")
    assert storage.names(root) == ["a", "b"]
    assert storage.names(f"{root}/a") == ["1.bin", "2.bin"]
    assert storage.exists(f"{root}/a/2.bin")
    assert storage.size(f"{root}/a/1.bin") == 6
    assert storage.read_bytes(f"{root}/a/1.bin") == b"longer"
    with storage.open_read(f"{root}/a/1.bin") as file:
        assert file.read() == b"longer"
    other.invalidate_cache()
    other.rm_file(f"{path}/a/2.bin")
    assert storage.names(f"{root}/a") == ["1.bin"]
    assert not storage.exists(f"{root}/a/2.bin")


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_a_copy_in_another_process_caches_no_listings_either(kind, request):
    """Ray gets the file system of a root and sends it to its own processes."""
    fs, _ = storage.filesystem(request.getfixturevalue(f"{kind}_server")())
    content = pickle.dumps(fs)
    type(fs).clear_instance_cache()
    assert not pickle.loads(content).dircache.use_listings_cache


def test_options_reach_the_store_behind_a_chain(s3_server):
    """A cache in front of a bucket, as `data.source` may have one, does not hide the bucket's timeouts."""
    fs, _ = storage.filesystem(f"simplecache::{s3_server()}/x")
    assert fs.fs.config_kwargs["read_timeout"] == 60
    assert not fs.fs.dircache.use_listings_cache


def test_a_file_is_read_from_an_offset(root):
    """To its end, and nothing beyond it."""
    storage.write_bytes(f"{root}/a.bin", b"abcdef")
    assert storage.read_from(f"{root}/a.bin", 0) == b"abcdef"
    assert storage.read_from(f"{root}/a.bin", 4) == b"ef"
    assert storage.read_from(f"{root}/a.bin", 6) == storage.read_from(f"{root}/a.bin", 99) == b""
    with pytest.raises(FileNotFoundError):
        storage.read_from(f"{root}/none.bin", 0)


def test_local_writes_are_durable(tmp_path, monkeypatch):
    """A file is synced before it gets its name, then the folder that names it, and so is each new folder."""
    calls = []
    replace = os.replace

    def path_of(descriptor):
        return os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)

    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(path_of(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("rename"), replace(old, new)))
    (tmp_path / "source").write_bytes(b"x")
    for write in (
        lambda uri: storage.write_bytes(uri, b"x"),
        lambda uri: storage.upload(tmp_path / "source", uri),
        lambda uri: storage.download(str(tmp_path / "source"), uri),
    ):
        calls.clear()
        write(f"{tmp_path}/a/b/file")
        assert calls[:2] == [".", "a"]
        assert calls[2].startswith("a/b/.file.")
        assert calls[3:] == ["rename", "a/b"]
        shutil.rmtree(tmp_path / "a")


def test_missing_file_is_file_not_found(root, tmp_path):
    """Callers can distinguish a missing file from a store that fails."""
    for read in (
        storage.read_bytes,
        lambda uri: storage.read_json(uri, Any, cure="-"),
        storage.open_read,
        lambda uri: storage.download(uri, tmp_path / "copy"),
    ):
        with pytest.raises(FileNotFoundError):
            read(f"{root}/none.json")


def test_upload_and_download_copy_a_file(root, tmp_path):
    """A local file arrives at the URI, whichever way the URI is passed, and comes back."""
    (tmp_path / "a.tar").write_bytes(b"content")
    storage.upload(tmp_path / "a.tar", f"{root}/sets/one.tar")
    storage.upload(local=tmp_path / "a.tar", uri=f"{root}/sets/two.tar")
    assert storage.names(f"{root}/sets") == ["one.tar", "two.tar"]
    storage.download(f"{root}/sets/two.tar", tmp_path / "back.tar")
    assert (tmp_path / "back.tar").read_bytes() == b"content"


def test_upload_that_fails_leaves_nothing(root, tmp_path):
    """The message names the URI, not the local file, and readers see no part of the file."""
    (tmp_path / "z.tar").symlink_to("/proc/self/mem")  # opens, but cannot be read
    message = one_line(storage.upload, tmp_path / "z.tar", f"{root}/x/z.tar")
    assert message.startswith(f"storage: cannot upload to {root}/x/z.tar: ")
    assert storage.names(f"{root}/x") == []


def test_readers_see_whole_files(tmp_path):
    """While a file is rewritten, a reader sees one version or the other, and no temporary file stays."""
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
    """A write that the disk refuses is an error of one line; the old file stays and no temporary file is left."""
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
    """Return the message of the StepError that a call raises; it must be one line."""
    with pytest.raises(StepError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_that_cannot_be_made(tmp_path):
    """The message about a path below a regular file names the action, the path and the cure."""
    (tmp_path / "file").write_text("")
    message = one_line(storage.write_bytes, f"{tmp_path}/file/x.bin", b"x")
    assert message.startswith(f"storage: cannot write {tmp_path}/file/x.bin: ")
    assert "check free space, permissions and credentials" in message
    assert "cannot upload to" in one_line(storage.upload, tmp_path / "file", f"{tmp_path}/file/x")


def test_bucket_that_does_not_exist(s3_server, tmp_path):
    """Writing to a missing bucket is an error of one line, not a FileNotFoundError."""
    (tmp_path / "a").write_text("a")
    assert "s3://no-such-bucket/x" in one_line(storage.write_bytes, "s3://no-such-bucket/x", b"x")
    assert "s3://no-such-bucket/x" in one_line(storage.upload, tmp_path / "a", "s3://no-such-bucket/x")


def test_store_that_does_not_answer(s3_server, monkeypatch):
    """A closed port is an error of one line from every function, once the patience is over."""
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
    """The message names a URL of no known store."""
    assert one_line(storage.exists, uri).startswith(f"storage: cannot use {uri}: Protocol not known")


@pytest.mark.parametrize("uri", ["reference://x", "dir://x", "cached://x", "github://x", "dbfs://x"])
def test_a_store_that_needs_more_than_a_url(uri):
    assert one_line(storage.exists, uri).startswith(f"storage: cannot use {uri}: ")


def test_json_that_is_none(tmp_path):
    """The message about a damaged record names its file, what is wrong and the cure; a folder in its place too."""
    path = str(tmp_path / "x.json")
    for content in (b"", b'{"a": ', b"[" * 100_000, b"\xff\x00", b'"x"', b"null"):
        Path(path).write_bytes(content)
        message = one_line(lambda: storage.read_json(path, dict[str, Any], cure="delete it"))
        assert re.fullmatch(rf"{path}: is damaged \([^\n]+\); delete it", message)
    Path(path).write_bytes(b'{"a": 1}\n{"a": }\n')
    message = one_line(lambda: storage.read_json_lines(path, dict[str, Any], cure="delete it"))
    assert message.startswith(f"{path}, line 2: is damaged (Invalid JSON")
    os.remove(path)
    os.mkdir(path)
    assert "a folder is in the place of this file" in one_line(lambda: storage.read_bytes(path))


def test_paths(tmp_path, monkeypatch):
    """Local paths become absolute; URLs lose only a slash at their end."""
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


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    """Reading a pipe or a device may never end, so it is refused at once."""
    path = "/dev/zero"
    if kind == "pipe":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
    with pytest.raises(StepError, match="is a pipe, a socket or a device, not a file"):
        storage.read_bytes(path)


def test_only_one_creates_a_file(root):
    uri = storage.join(root, "a", "b")
    assert storage.create(uri, b"one")
    assert storage.create(uri, b"one")  # the answer was lost, and the request repeated
    assert not storage.create(uri, b"two")
    assert storage.read_bytes(uri) == b"one"
    assert storage.names(storage.join(root, "a")) == ["b"]


def test_a_disk_without_links_creates_a_file_once(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links")

    monkeypatch.setattr(os, "link", refuse)
    uri = str(tmp_path / "a")
    assert storage.create(uri, b"one")
    assert not storage.create(uri, b"two")
    assert storage.read_bytes(uri) == b"one"


def test_s3_itself_refuses_the_second_of_two_writers(s3_server, monkeypatch):
    """Both have seen that there is no such file."""
    uri = f"{s3_server()}/a"
    fs, _ = storage.filesystem(uri)
    monkeypatch.setattr(fs, "exists", lambda path: False)
    assert storage.create(uri, b"one")
    assert not storage.create(uri, b"two")
    assert storage.read_bytes(uri) == b"one"
