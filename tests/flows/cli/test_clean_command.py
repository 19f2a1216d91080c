"""`stylegan gc`: what it prints, and the lines of mistakes."""

import json
import os

import pytest
from command_line import fail

from flows.cli.main import main
from stylegan import storage


@pytest.fixture
def config(write, tmp_path):
    """A config whose root holds a stage that nothing needs, as old as can be."""
    path = tmp_path / "root" / "stages" / "0008-0123456789" / "done.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    os.utime(path, (1, 1))
    return write()


def test_it_says_what_is_marked_and_what_is_deleted(capsys, config, tmp_path):
    root = str(tmp_path / "root")
    assert main(["gc", config, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "marked     would be 1: stages/0008-0123456789\n" in out
    assert "by the same command without --dry-run" in out
    assert list(storage.files(root)) == ["stages/0008-0123456789/done.json"]
    assert main(["gc", config]) == 0
    out = capsys.readouterr().out
    assert "marked     1: stages/0008-0123456789\n" in out
    assert "deleted after 1 day(s), by the same command\n" in out
    assert main(["gc", config, "--set", "retention.grace_days=0", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["deleted"], found["freed"]) == (["stages/0008-0123456789"], {"stages": 2})
    assert "stages/0008-0123456789/done.json" not in storage.files(root)
    assert main(["gc", config]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_mistakes_are_one_line_and_delete_nothing(capsys, config, tmp_path):
    before = storage.files(str(tmp_path / "root"))
    assert "retention.versions=0" in fail(capsys, 2, "gc", config, "--set", "retention.versions=0")
    assert "retention.max_gib=0" in fail(capsys, 2, "gc", config, "--set", "retention.max_gib=0")
    assert "retention.days" in fail(capsys, 2, "gc", config, "--set", "retention.day=3")
    away = fail(capsys, 1, "gc", config, "--set", "tracking.uri=http://127.0.0.1:1")
    assert "tracking.uri=http://127.0.0.1:1: does not answer" in away
    now = storage.files(str(tmp_path / "root"))
    assert {path for path in now if not path.startswith("locks/")} == before.keys()
