"""The cache folder and its locks.

Copies are made once, the limit holds, and nothing is removed that is in use or belongs to others.
"""

import os
import signal
import threading
from pathlib import Path

import fsspec
import pytest

from stylegan import storage
from stylegan.data.cache import Entry, cache_root, exclusive_folder, limit, local_copy, reserve
from stylegan.data.sources.access.unpacked import unpacked
from stylegan.errors import ConfigError, StepError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(kind: str, name: str, num_bytes: int, *, used: float) -> Path:
    """Make an entry that nobody holds and that was last used at the time `used`."""
    with Entry(kind, name) as folder:
        (folder / "data").write_bytes(bytes(num_bytes))
    os.utime(folder / ".stylegan-lock", (used, used))
    return folder


def test_copy_is_made_once_for_each_version(tmp_path, s3_server):
    """The same URI and token give the same file, another token gives another file; a local file is its own copy."""
    uri = s3_server() + "/a/images.zip"
    storage.write_bytes(uri, b"one")
    with local_copy(uri, "1") as first:
        assert (first.read_bytes(), first.name) == (b"one", "images.zip")
    storage.write_bytes(uri, b"two")
    with local_copy(uri, "1") as again, local_copy(uri, "2") as other:
        assert (again, again.read_bytes()) == (first, b"one")
        assert other.read_bytes() == b"two"
    with local_copy(str(tmp_path / "x.zip"), "1") as local:
        assert local == tmp_path / "x.zip"
    with pytest.raises(FileNotFoundError), local_copy(uri + "x", "1"):
        pass


def test_copy_is_made_once_by_many():
    """Threads that need a copy at the same moment wait for the one that makes it."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/cache-test/x.bin", b"abc" * 1000)
    seen = []

    def work() -> None:
        with local_copy("memory://cache-test/x.bin", "t") as path:
            seen.append((path.stat().st_ino, path.read_bytes() == b"abc" * 1000))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(seen[0][0], True)] * 8


def test_a_copy_that_was_cut_is_made_again(cache):
    """After a power cut a file may be shorter than it was written: then it does not count as whole, nor without its size."""
    fsspec.filesystem("memory").pipe_file("/cache-test/cut.bin", b"abc" * 1000)
    for damage in (lambda path: os.truncate(path, 7), lambda path: (path.parent / f".{path.name}.size").unlink()):
        with local_copy("memory://cache-test/cut.bin", "t") as path:
            damage(path)
        with local_copy("memory://cache-test/cut.bin", "t") as path:
            assert path.read_bytes() == b"abc" * 1000
    with unpacked("cut", 3, lambda file: file.write(b"abc")) as path:
        os.truncate(path, 1)
    with unpacked("cut", 3, lambda file: file.write(b"abc")) as path:
        assert path.read_bytes() == b"abc"


def test_partial_files_of_other_machines_stay(cache, monkeypatch):
    """A download removes what a killed one of this machine left, but not what another machine may be writing."""
    fsspec.filesystem("memory").pipe_file("/cache-test/part.bin", b"abc")
    with local_copy("memory://cache-test/part.bin", "t") as path:
        path.unlink()
    names = []
    for machine in ("one", "two"):
        monkeypatch.setattr(storage, "boot_id", lambda machine=machine: f"{machine:x<8}")
        with storage.replacing(path.with_name("part.bin")) as partial:
            partial.touch()
            names.append(partial)
        path.unlink()
    for partial in names:
        partial.write_bytes(b"a")  # as after a kill
    with local_copy("memory://cache-test/part.bin", "t") as path:
        assert [partial.exists() for partial in names] == [True, False]


def test_least_recently_used_goes_first(cache):
    """Only as many entries are removed as necessary, and never one that is held."""
    oldest, middle, newest = (
        fill("archives", name, 100_000, used=used) for name, used in (("m", 1e9), ("z", 1.1e9), ("a", 1.2e9))
    )
    with Entry("archives", "m"), Entry("images", "new") as folder:
        assert reserve(folder, 100_000, cache_gb=330_000 / 1e9) == 100_000
        assert [path.exists() for path in (oldest, middle, newest, folder)] == [True, False, True, True]
    assert not list((cache / ".removed").glob("*"))


def test_limit_is_never_passed(cache):
    """Held entries count towards the limit, and so do reservations. `reserve` grants less than requested, or nothing."""
    fill("archives", "a", 100_000, used=1e9)
    with Entry("archives", "a"), Entry("images", "new") as folder, Entry("images", "other") as other:
        granted = reserve(folder, 10**9, cache_gb=500_000 / 1e9)
        assert 300_000 < granted < 400_000
        assert reserve(other, 10**9, cache_gb=500_000 / 1e9) < 20_000
        assert reserve(other, 10**9, cache_gb=0) == 0


def test_folders_of_others_are_left_alone(cache):
    """The cache folder may contain other things, even below the same names. They stay."""
    (cache / "images" / "cats").mkdir(parents=True)
    (cache / "images" / "cats" / "1.png").write_bytes(bytes(100_000))
    (cache / "weights").mkdir()
    with Entry("images", "new") as folder:
        reserve(folder, 100_000, cache_gb=0)
    assert (cache / "images" / "cats" / "1.png").exists()
    assert (cache / "weights").exists()


def test_entry_can_be_held_again_after_it_was_removed():
    """A thread that waits for the lock of an entry that is being removed gets a new entry."""
    fill("images", "x", 1000, used=1e9)
    done = threading.Event()

    lost = []

    def hold_often() -> None:
        try:
            while not done.is_set():
                with Entry("images", "x") as folder:
                    assert (folder / ".stylegan-lock").exists()
        except Exception as error:
            lost.append(error)

    threads = [threading.Thread(target=hold_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    with Entry("archives", "y") as other:
        for _ in range(300):
            reserve(other, 10**9, cache_gb=0)
    done.set()
    for thread in threads:
        thread.join()
    assert lost == []


def test_limit_comes_from_setting_environment_or_disk(monkeypatch):
    """Without a setting, the limit is half of what the disk would have free without the cache."""
    cache_root().mkdir()
    assert limit(1.5) == 1_500_000_000
    monkeypatch.setenv("STYLEGAN_CACHE_GB", "2")
    assert limit() == 2_000_000_000
    monkeypatch.setenv("STYLEGAN_CACHE_GB", "much")
    with pytest.raises(ConfigError, match="STYLEGAN_CACHE_GB=much: must be GB"):
        limit()
    monkeypatch.delenv("STYLEGAN_CACHE_GB")
    free = os.statvfs(cache_root()).f_bavail * os.statvfs(cache_root()).f_frsize
    assert limit() == pytest.approx(free / 2, rel=0.2)
    before = limit()
    fill("archives", "a", 50_000_000, used=1e9)
    assert limit() == pytest.approx(before, abs=2e7)


def test_archive_that_does_not_fit(monkeypatch):
    """The message gives the size and the setting to raise; no reservation remains."""
    fsspec.filesystem("memory").pipe_file("/cache-test/large.zip", bytes(50_000_000))
    monkeypatch.setenv("STYLEGAN_CACHE_GB", "0.02")
    with (
        pytest.raises(StepError, match=r"its 0.05 GB do not fit .* raise storage.cache_gb"),
        local_copy("memory://cache-test/large.zip", ""),
    ):
        pass
    with Entry("images", "new") as folder:
        assert reserve(folder, 10_000_000) == 10_000_000


def test_cache_below_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "file"))
    fsspec.filesystem("memory").pipe_file("/cache-test/y", b"")
    with pytest.raises(StepError, match="STYLEGAN_CACHE"), local_copy("memory://cache-test/y", ""):
        pass


def test_one_holder_at_a_time_and_nothing_left(tmp_path):
    """Threads get the same folder one after the other, each time empty; leftovers are removed."""
    folder, inside, seen = tmp_path / "deep" / "scratch", [], []
    folder.mkdir(parents=True)
    (folder / "left-by-a-killed-run").write_text("x")

    def work() -> None:
        for _ in range(20):
            with exclusive_folder(folder) as mine:
                inside.append(1)
                seen.append((len(inside), list(mine.iterdir())))
                (mine / "file").write_text("x")
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(1, [])] * 80
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_lock_of_a_folder_ends_with_its_process(tmp_path):
    """After kill -9 of its holder, a waiting thread gets the folder, empty, and nothing of the killed process remains."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with exclusive_folder(tmp_path / "scratch") as folder:
            (folder / "half").write_text("x")
            os.write(writer, b"held")
            signal.pause()
    os.read(reader, 4)
    waiting = threading.Thread(target=_enter, args=(tmp_path / "scratch", entered := threading.Event()))
    waiting.start()
    assert not entered.wait(0.3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert entered.wait(10)
    waiting.join()
    assert list(tmp_path.iterdir()) == []


def _enter(folder: Path, entered: threading.Event) -> None:
    with exclusive_folder(folder) as mine:
        if not list(mine.iterdir()):
            entered.set()


def test_processes_take_turns(tmp_path):
    """Though each holder removes the lock file, two processes are never in the folder at the same time."""
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(25):
                with exclusive_folder(tmp_path / "scratch"):
                    os.close(os.open(tmp_path / "inside", os.O_CREAT | os.O_EXCL))
                    os.unlink(tmp_path / "inside")
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_failure_inside_clears_too(tmp_path):
    """After an exception neither the folder nor its lock file remains."""
    with pytest.raises(RuntimeError, match="inside"), exclusive_folder(tmp_path / "scratch"):
        raise RuntimeError("inside")
    assert list(tmp_path.iterdir()) == []


def test_folder_may_be_moved_away(tmp_path):
    """The holder may move the finished folder to its place."""
    with exclusive_folder(tmp_path / "scratch") as folder:
        (folder / "done").write_text("x")
        folder.rename(tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
