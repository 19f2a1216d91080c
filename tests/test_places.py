"""Folders that a command writes to: those that refuse, and disks that are full."""

import errno
import os

import pytest

from stylegan import places
from stylegan.errors import StepError


@pytest.fixture(autouse=True)
def _no_places(monkeypatch):
    monkeypatch.setattr(places, "_places", {})


def test_a_folder_that_can_be_written_is_made(tmp_path):
    places.check_place("STYLEGAN_CACHE", tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere"])
def test_a_home_that_cannot_be_written_is_named_with_the_setting_that_moves_it(home, monkeypatch):
    monkeypatch.setenv("HOME", home)
    with pytest.raises(
        StepError, match=rf"^PREFECT_HOME: cannot write ~/.prefect .* HOME is {home}: set PREFECT_HOME to"
    ):
        places.check_place("PREFECT_HOME", "~/.prefect")


def test_only_errors_of_a_full_disk_are_explained_by_one():
    assert places.explain_full_disk(StepError("corrupt")) is None
    error = StepError("cannot write")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert places.explain_full_disk(error).startswith("no space left; free some space, then the same command goes on")
    assert places.explain_full_disk(RuntimeError("(sqlite3.OperationalError) database or disk is full")) is not None


def test_the_full_disk_is_named_though_the_error_does_not_speak_of_it(tmp_path, monkeypatch):
    places.use_place("storage.root", tmp_path / "not" / "there")
    monkeypatch.setattr(places, "FULL", 2**62)
    line = places.explain_full_disk(StepError("a worker failed"))
    assert f"{tmp_path}/not/there (" in line
    assert "MiB free; storage.root moves it)" in line


def test_a_folder_of_two_settings_is_named_once(tmp_path, monkeypatch):
    for setting in ("storage.root", "tracking.uri"):
        places.use_place(setting, tmp_path)
    monkeypatch.setattr(places, "FULL", 2**62)
    assert "MiB free; storage.root and tracking.uri move it)" in places.explain_full_disk(StepError("a worker failed"))


def test_a_line_that_says_so_itself_is_kept():
    assert places.explain_full_disk(StepError("storage: cannot write /x: [Errno 28] No space left on device")) is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_refuses_is_no_full_disk(tmp_path, monkeypatch, number):
    places.use_place("storage.root", tmp_path)
    monkeypatch.setattr(places, "FULL", 2**62)
    error = StepError("PREFECT_HOME: cannot write")
    error.__cause__ = OSError(number, os.strerror(number))
    assert places.explain_full_disk(error) is None
