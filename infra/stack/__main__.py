"""The command `infra/stack.sh`: start, look at and end the stack on this machine."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from infra.stack import backup, environment, processes
from infra.stack.environment import DEFAULT, stack_command
from infra.stack.service import Values
from infra.stack.services import SERVICES
from stylegan.errors import ConfigError, UserError

NAMES = [service.name for service in SERVICES]


def main() -> int:
    """Run the command and return its exit code: 0 done, 1 a service is down or does not start, 2 bad usage."""
    arguments = _parser().parse_args()
    path = Path(arguments.env)
    try:
        if arguments.verb in ("init", "up", "restore"):
            environment.make(path)
        values = environment.read(path)
        return int(arguments.act(arguments, values, path))
    except UserError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="infra/stack.sh",
        description="The whole stack on this machine: S3, PostgreSQL (SQLite where it is not installed), MLflow, Prefect with "
        "a worker, and Ray with a head and a node. `. infra/stack.env` lets `stylegan` find it.",
    )
    parser.add_argument(
        "--env", default=str(environment.DEFAULT), help="env file of the stack (default: infra/stack.env)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, act: object, text: str, *, several: bool = True) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(act=act)
        if several:
            made.add_argument("services", nargs="*", metavar="SERVICE", help=f"some of them: {', '.join(NAMES)}")
        return made

    verb("init", _init, "Write the env file with random secrets, and start nothing.", several=False)
    verb("up", _up, "Start what is down and wait until all is well; makes the env file at the first start.")
    status = verb("status", _status, "Show what is up or down, where, and why; exit code 1 if something is down.")
    status.add_argument("--json", action="store_true", help="print one line of JSON")
    logs = verb("logs", _logs, "Show the ends of the logs.")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logs.add_argument("-n", "--lines", type=int, default=20, help="lines of each (default: 20)")
    made = verb("backup", _backup, "Copy databases and S3 of the stack, which runs, into one file.", several=False)
    made.add_argument("--out", help="path or URI of the file (default: one with the time, beside the data folder)")
    made = verb(
        "restore", _restore, "Fill an empty stack from a backup; makes the env file if there is none.", several=False
    )
    made.add_argument("backup", metavar="FILE", help="path or URI of the backup")
    made.add_argument("--replace", action="store_true", help="put the data of this stack aside, if it has some")
    verb("down", _down, "End the services; runs write a checkpoint first. All data stays.")
    return parser


def _init(arguments: argparse.Namespace, values: Values, path: Path) -> int:
    print(f"{path}: ports and secrets of a stack with its data in {values['STACK_DATA']}")
    return 0


def _up(arguments: argparse.Namespace, values: Values, path: Path) -> int:
    began = time.monotonic()
    _check_names(arguments, values)
    backup.require_whole(values, path)
    processes.start(values, arguments.services, print)
    found = [processes.state_of(one, values) for one in processes.services(values, arguments.services)]
    _show(found)
    print(f"up after {time.monotonic() - began:.0f} s. In the shell that runs stylegan: {_source(path)}")
    print(f"MLflow's login: {values['MLFLOW_TRACKING_USERNAME']}, its password is MLFLOW_TRACKING_PASSWORD in {path}; "
          "Prefect's page asks for PREFECT_API_AUTH_STRING")  # fmt: skip
    return int(any(one.state == "down" for one in found))


def _status(arguments: argparse.Namespace, values: Values, path: Path) -> int:
    _check_names(arguments, values)
    found = [processes.state_of(one, values) for one in processes.services(values, arguments.services)]
    if arguments.json:
        print(json.dumps([one.model_dump() for one in found]))
    else:
        _show(found)
    return int(any(one.state == "down" for one in found))


def _logs(arguments: argparse.Namespace, values: Values, path: Path) -> int:
    _check_names(arguments, values)
    files = [str(file) for file in processes.log_files(values, arguments.services).values() if file.exists()]
    if not files:
        print("there are no logs yet")
        return 0
    return subprocess.call(["tail", f"--lines={arguments.lines}", *(["-F"] if arguments.follow else []), *files])


def _down(arguments: argparse.Namespace, values: Values, path: Path) -> int:
    _check_names(arguments, values)
    processes.stop(values, arguments.services, print)
    return 0


def _backup(arguments: argparse.Namespace, values: Values, path: Path) -> int:
    made = backup.backup(values, arguments.out, print)
    print(f"{made}: bring it to another machine; there: {stack_command(DEFAULT, 'restore', Path(made).name)}")
    return 0


def _restore(arguments: argparse.Namespace, values: Values, path: Path) -> int:
    backup.restore(values, arguments.backup, replace=arguments.replace, tell=print)
    print(f"restored; start it: {stack_command(path, 'up')}")
    return 0


def _check_names(arguments: argparse.Namespace, values: Values) -> None:
    """Raise ConfigError at a name that is no service of this stack."""
    there = [one.name for one in processes.services(values)]
    for name in arguments.services:
        if name not in there:
            raise ConfigError(f"{name}: is no service of this stack; they are {', '.join(there)}")


def _source(path: Path) -> str:
    """Return the shell command that reads an env file."""
    near = path.resolve().is_relative_to(Path.cwd())
    return f". {shlex.quote(f'./{path.resolve().relative_to(Path.cwd())}' if near else str(path.resolve()))}"


def _show(found: list[processes.State]) -> None:
    for one in found:
        print(f"{one.name:<9} {one.state:<5} {one.version:<9} {one.url}{f'  ({one.why})' if one.why else ''}")


if __name__ == "__main__":
    sys.exit(main())
