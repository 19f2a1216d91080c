"""Shell commands for messages: whatever this program prints as a command works as typed.

Every message that names a command builds it here, so that it is complete, quoted, and found by the user's shell.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys


def shell_command(program: str, *arguments: str, **environment: str) -> str:
    """Return the text of a shell command.

    A program of this virtual environment that the shell does not find is written with its path. A variable of
    `environment` that has this value already is left out.
    """
    settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items() if os.environ.get(name) != value]
    return " ".join([*settings, shlex.quote(_as_typed(program)), *map(shlex.quote, arguments)])


def pip_install(*requirements: str) -> str:
    """Return the shell command that installs packages into the Python that runs this program."""
    return " ".join(map(shlex.quote, [sys.executable, "-m", "pip", "install", *requirements]))


def _as_typed(program: str) -> str:
    """Return the name of a program if the shell finds that of this environment by it, else its path.

    Whoever typed `.venv/bin/stylegan` reads `.venv/bin/mlflow`.
    """
    ours, found = os.path.join(os.path.dirname(sys.executable), program), shutil.which(program)
    if not os.path.exists(ours) or (found and os.path.samefile(found, ours)):
        return program
    folder, name = os.path.split(sys.argv[0])
    beside = os.path.join(folder, program)
    return (
        beside if folder and name == "stylegan" and os.path.exists(beside) and os.path.samefile(beside, ours) else ours
    )
