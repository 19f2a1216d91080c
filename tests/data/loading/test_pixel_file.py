"""The raw-pixel cache: processes share it, unsynced data are dropped at a restart, and a complete file stays valid."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from stylegan.data.loading import pixel_file
from stylegan.data.loading.pixel_file import GOOD, REPLACED, PixelFile, read_complete

SHAPE = (10, 3, 4, 4)
IMAGES = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(file: PixelFile, *numbers: int, flag: int = GOOD) -> None:
    file.write(np.array(numbers), IMAGES[list(numbers)], flag)


def test_what_one_writes_all_see():
    """Runs and single images are seen through another opening of the same file; the rest stays missing."""
    first, second = PixelFile("x", SHAPE), PixelFile("x", SHAPE)
    write(first, 1, 2, 3, 7, 9)
    write(first, 5, flag=REPLACED)
    assert second.flags.tolist() == [0, 1, 1, 1, 0, 2, 0, 1, 0, 1]
    kept = np.flatnonzero(second.flags)
    assert (second.images[kept] == IMAGES[kept]).all()
    with pytest.raises(ValueError, match="read-only"):
        second.images[0] = 1


def test_not_more_than_the_limit_is_kept():
    """As many of the first images are kept as the limit allows."""
    file = PixelFile("x", SHAPE, cache_gb=(4.5 * 48 + 18 * 10 + 2**16) / 1e9)
    assert file.kept == 4
    write(file, 2, 3, 4, 5)
    assert file.flags.tolist() == [0, 0, 1, 1] + [0] * 6
    file.finish()
    assert read_complete("x") is None


def test_flags_end_with_the_boot(monkeypatch):
    """After a restart of the machine, pages that were never synced may be lost: only a complete file stays valid."""
    write(PixelFile("x", SHAPE), 1, 2)
    monkeypatch.setattr(pixel_file, "boot_id", lambda: "another")
    file = PixelFile("x", SHAPE)
    assert not file.flags.any()
    write(file, *range(9))
    write(file, 9, flag=REPLACED)
    file.finish()
    monkeypatch.setattr(pixel_file, "boot_id", lambda: "a third")
    again = PixelFile("x", SHAPE)
    assert again.complete
    assert again.flags.tolist() == [GOOD] * 9 + [REPLACED]
    assert (again.images == IMAGES).all()


def test_machines_share_a_cache_folder(monkeypatch):
    """Each fills a file of its own, and neither takes anything from the other; a complete file serves all of them."""
    machine = monkeypatch.setattr
    machine(pixel_file, "boot_id", lambda: "one")
    first = PixelFile("x", SHAPE)
    write(first, 0, 1)
    machine(pixel_file, "boot_id", lambda: "two")
    second = PixelFile("x", SHAPE)
    assert not second.flags.any()
    write(second, 8, 9)
    machine(pixel_file, "boot_id", lambda: "one")
    assert PixelFile("x", SHAPE).flags.tolist() == [1, 1] + [0] * 8
    write(first, *range(2, 10))
    first.write_labels(np.arange(10), None)
    first.finish()
    machine(pixel_file, "boot_id", lambda: "two")
    write(second, 7)
    assert second.flags.tolist() == [0] * 7 + [1, 1, 1]
    assert (read_complete("x").images == IMAGES).all()
    assert PixelFile("x", SHAPE).folder == first.folder
    machine(pixel_file, "boot_id", lambda: "one")
    assert first.flags.all()


def test_files_of_a_machine_are_held_against_the_limit(monkeypatch):
    """A machine that needs room removes what nobody holds, and not what another machine fills."""
    monkeypatch.setattr(pixel_file, "boot_id", lambda: "one")
    first = PixelFile("x", SHAPE)
    forgotten = PixelFile("y", SHAPE).folder
    monkeypatch.setattr(pixel_file, "boot_id", lambda: "two")
    PixelFile("z", SHAPE, cache_gb=0)
    assert not forgotten.exists()
    write(first, *range(10))
    assert first.flags.all()


def test_complete_file_needs_nothing_else():
    """Labels and attributes are stored beside the images. A file with a replaced image, or cut short, is not used as it
    is.
    """
    file = PixelFile("x", SHAPE)
    file.write_labels(np.arange(10), np.eye(10, 2, dtype=np.uint8))
    assert read_complete("x") is None
    write(file, *range(10))
    file.finish()
    found = read_complete("x")
    assert (found.images == IMAGES).all()
    assert (found.labels == np.arange(10)).all()
    assert (found.attributes == np.eye(10, 2)).all()
    write(file, 3, flag=REPLACED)
    file.finish()
    assert read_complete("x") is None
    os.truncate(file.folder / "images.npy", 200)
    assert read_complete("x") is None
    file = PixelFile("x", SHAPE)
    assert not file.complete
    assert not file.flags.any()


def test_a_block_is_claimed_by_one_process():
    """The claim ends with its block, or with its process, even at kill -9."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_hold, args=(theirs,))
    child.start()
    assert ours.recv() == "held"
    file = PixelFile("x", SHAPE)
    with file.claim(3) as mine, file.claim(4) as other:
        assert (mine, other) == (False, True)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with file.claim(3) as mine:
        assert mine
    assert (file.images[2] == IMAGES[2]).all()
    assert file.flags[2] == GOOD


def _hold(pipe) -> None:
    file = PixelFile("x", SHAPE)
    write(file, 2)
    with file.claim(3):
        pipe.send("held")
        signal.pause()
