"""The process of one run of a sweep, `python -m flows.cli.sweep_child`: an ordinary run that ends with the sweep.

The first line of standard input says what to do (`flows.children.ChildRequest`). Its end, while the run is under way, is
the end of the sweep's process, and of this one. The last line of standard output says what has become of the run.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from flows.cli import supervisor

if TYPE_CHECKING:
    from flows.children import ChildOutcome, ChildRequest


def main() -> int:
    """Do what standard input says, under a supervisor, and return the exit code."""
    return supervisor.supervise(lambda: _run(sys.stdin.buffer.readline()))


def _run(line: bytes) -> int:
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    supervisor.begin()
    from flows.cli import console
    from flows.cli.run_commands import quiet_prefect

    quiet_prefect()
    with console.logging_to_terminal():
        outcome, code = _outcome(line)
    print(outcome.model_dump_json(), flush=True)
    return code


def _end_with_sweep() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(0, signal.SIGKILL)


def _outcome(line: bytes) -> tuple[ChildOutcome, int]:
    """Do the run; return what has become of it, and the exit code."""
    from flows.children import ChildOutcome, ChildRequest
    from stylegan.errors import ConfigError, Stopped, UserError, one_line
    from stylegan.places import explain_full_disk

    request = ChildRequest.model_validate_json(line)
    try:
        return ChildOutcome(facts=_facts(request)), 0
    except Stopped as error:
        return ChildOutcome(why=str(error), error="Stopped"), 128 + error.number
    except Exception as error:
        full = explain_full_disk(error)
        why = full or (str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}")
        if not full and not isinstance(error, UserError):
            import traceback

            traceback.print_exc(file=supervisor.terminal())
        return ChildOutcome(why=why, error=type(error).__name__), 2 if isinstance(error, ConfigError) else 1


def _facts(request: ChildRequest) -> dict[str, Any]:
    from stylegan.config.file import build

    config = build(request.values)
    config._arguments = request.arguments
    supervisor.allow(config.ray.stop_grace_s)
    from flows.train import run_child

    return run_child(config, request)


if __name__ == "__main__":
    sys.exit(main())
