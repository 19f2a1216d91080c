"""Run the commands that messages print, as a person would: copied into a shell that knows nothing of this environment."""

import os
import re
import subprocess


def printed(message: str) -> str:
    """Return the first shell command between backticks in a message."""
    return re.search(r"`([^`]*)`", message).group(1)


def shell(folder, **settings: str) -> dict:
    """Return the arguments for `subprocess` of a shell in a folder whose PATH lacks this virtual environment."""
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "MLFLOW_TRACKING_URI")}
    return {"shell": True, "cwd": folder, "env": env | {"PATH": "/usr/bin:/bin"} | settings, "executable": "/bin/sh"}


def type_in(command: str, folder, **settings: str) -> subprocess.CompletedProcess[str]:
    """Type a command into such a shell, and fail if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **shell(folder, **settings)
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done
