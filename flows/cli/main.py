"""The `stylegan` command: starts the program under its supervisor.

This file and `supervisor.py` import nothing that takes time, so that a signal is answered from the first moment on.
"""

from __future__ import annotations

import sys

import stylegan
from flows.cli import supervisor


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: run in this process, without a supervisor; unset are those of the command line, under a supervisor.
    """
    if (sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(stylegan.__version__)
        return 0
    if arguments is None:
        return supervisor.supervise(lambda: main(sys.argv[1:]))
    from flows.cli import app

    supervisor.begin()
    return app.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
