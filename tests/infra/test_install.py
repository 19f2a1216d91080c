"""The set-up of .venv: uv gets the indexes of pip, and what cannot work ends with one line."""

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("install", ROOT / "infra" / "install.py")
install = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(install)


def program(path, text):
    """Write an executable shell script and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path):
    """A clone with all that `make setup` needs, in a path with a space."""
    folder = tmp_path / "my clone"
    for name in ("Makefile", "infra/install.py", "pyproject.toml", "constraints.txt", "tests/reference.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def set_up(clone, *arguments, code=2, **settings):
    """Run `make setup` and return the lines that are not make's own."""
    command = ["make", "--no-print-directory", "setup", *arguments]
    # As typed into a shell, also where these tests are run by make itself, which hands its options and level down.
    env = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    done = subprocess.run(command, cwd=clone, env=env | settings, capture_output=True, text=True)
    assert (done.returncode == 0) == (code == 0), done
    return [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ")]


def fake_python(folder, *, venv="", pip=""):
    """Return a Python whose `venv` makes an environment of shell scripts; `pip` is what its pip does."""
    inner = f'case "$*" in *"pip config"*|*"pip --version"*) exit 0;; *) {pip or "exit 0"};; esac'
    program(folder / "inner", inner)
    made = venv or f'mkdir -p "$4/bin"; cp "{folder}/inner" "$4/bin/python"'
    # `python infra/install.py VENV` runs the real one, which takes this script for its own executable.
    run = (
        f"import runpy, sys; sys.executable = '{folder}/python'; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return program(
        folder / "python", f'if [ "$2" = venv ]; then {made}; else exec {sys.executable} -c "{run}" "$@"; fi'
    )


def test_uv_gets_the_indexes_of_pip():
    given = {
        "index-url": "https://a.example/simple",
        "extra-index-url": "https://b.example/simple\nfile:///wheels/simple",
        "find-links": "/wheels",
        "constraint": "/etc/pins.txt",
        "timeout": "60",
    }
    options = install.uv_options(given)
    pairs = list(itertools.pairwise(options))
    for pair in [
        ("--default-index", "https://a.example/simple"),
        ("--index", "https://b.example/simple"),
        ("--index", "file:///wheels/simple"),
        ("--find-links", "/wheels"),
        ("--constraint", "/etc/pins.txt"),
    ]:
        assert pair in pairs
    assert not any("60" in option for option in options)


@pytest.mark.parametrize("setting", ["trusted-host", "client-cert", "no-binary", "pre", "target"])
def test_a_setting_that_uv_does_not_know_leaves_it_to_pip(setting):
    assert install.uv_options({setting: "x"}) is None


def test_the_settings_of_pip_are_those_that_pip_would_use(tmp_path, monkeypatch):
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://a.example\ntimeout = 9\n[install]\ntimeout = 8\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://b.example")
    found = install.pip_settings(getattr(sys, "_base_executable", sys.executable))
    assert (found["index-url"], found["timeout"]) == ("https://b.example", "8")


def test_no_python_is_one_line(clone):
    (line,) = set_up(clone, "PYTHON=nopython")
    assert line.startswith("set-up: there is no nopython; install Python 3.11 or newer")


def test_an_older_python_is_one_line_that_names_a_newer_one(monkeypatch, capsys, tmp_path):
    program(tmp_path / "python3.12", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        install.wrong_python()
    assert capsys.readouterr().err.strip().endswith(f"add PYTHON={tmp_path}/python3.12 to the command")


def test_a_python_without_venv_is_one_line(clone, tmp_path):
    python = fake_python(tmp_path / "fake", venv='echo "ensurepip is not available."; exit 1')
    (line,) = set_up(clone, f"PYTHON={python}")
    assert re.search(r"no working module venv .* apt install python3\.\d+-venv", line)


def test_without_uv_pip_installs(clone, tmp_path):
    log = tmp_path / "log"
    python = fake_python(tmp_path / "fake", pip=f'echo "$*" >> "{log}"; case "$*" in *" uv") exit 1;; esac')
    (line,) = set_up(clone, f"PYTHON={python}", code=0)
    assert line.startswith("Installing into .venv")
    assert [re.search("uv$|editable|reference", call)[0] for call in log.read_text().splitlines()] == [
        "uv",
        "editable",
        "reference",
    ]
    assert (clone / ".venv" / ".installed").exists()


@pytest.mark.parametrize(
    ("says", "line"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after NewConnectionError\nERROR: No matching distribution",
            "cannot be reached",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "GB are needed"),
        ("ERROR: http://me:word@host/ says no", "http://***@host/ says no"),
    ],
)
def test_a_failure_of_pip_is_one_line_and_the_next_set_up_begins_anew(clone, tmp_path, says, line):
    (tmp_path / "says").write_text(says)
    python = fake_python(tmp_path / "fake", pip=f'cat "{tmp_path}/says"; exit 1')
    shown = set_up(clone, f"PYTHON={python}")
    assert len(shown) == 2
    assert line in shown[1]
    assert "repeat the command" in shown[1]
    python = fake_python(tmp_path / "fake")
    assert len(set_up(clone, f"PYTHON={python}", code=0)) == 1
    assert not (clone / ".venv" / ".unfinished").exists()
