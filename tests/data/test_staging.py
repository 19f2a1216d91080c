"""The staging folder: one holder at a time, empty at the start, gone at the end."""

import threading

import pytest

from stylegan.data.staging import exclusive_folder


def test_one_holder_at_a_time_and_nothing_left(tmp_path):
    """Threads that want the same folder get it one after the other, each time empty; leftovers are cleared."""
    folder, inside, seen = tmp_path / "deep" / "staging", [], []
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


def test_failure_inside_clears_too(tmp_path):
    """An exception leaves no folder and no lock."""
    with pytest.raises(RuntimeError, match="inside"), exclusive_folder(tmp_path / "staging"):
        raise RuntimeError("inside")
    assert list(tmp_path.iterdir()) == []


def test_folder_may_be_moved_away(tmp_path):
    """The finished folder is moved to its place by its holder."""
    with exclusive_folder(tmp_path / "staging") as folder:
        (folder / "done").write_text("x")
        folder.rename(tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
