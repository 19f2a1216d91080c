"""One native stack for all tests here, as `infra/stack.sh` starts it, and commands on it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from infra.stack import environment

ROOT = Path(__file__).parents[2]
STACK = ROOT / "infra" / "stack.sh"
DISK = "12G"  # the file behind it is sparse
STYLEGAN = Path(sys.executable).with_name("stylegan")
# Of the shell, what commands on a stack may see.
KEPT = ("HOME", "LANG", "PATH", "STYLEGAN_CACHE")


@dataclass(frozen=True)
class Stack:
    """A stack in a folder of its own.

    Attributes:
        folder: holds its env file and its data.
        disk: where the S3 server keeps its objects, if that is a disk of its own: the user who tests may mount one.
    """

    folder: Path
    disk: Path | None = None

    @property
    def env_file(self) -> Path:
        return self.folder / "stack.env"

    @property
    def values(self) -> dict[str, str]:
        return environment.read(self.env_file)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a shell that has read the env file."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        return kept | self.values | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}

    def command(self, *arguments: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        """Run `infra/stack.sh` with arguments, and return its end."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        return subprocess.run(
            [STACK, "--env", self.env_file, *arguments],
            env=kept,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def up(self, *services: str) -> str:
        """Start what is down, and return what was said."""
        done = self.command("up", *services)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the state of each service."""
        return {one["name"]: one for one in json.loads(self.command("status", "--json").stdout)}

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `stylegan` in the folder, as a user who has read the env file does."""
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
        return subprocess.Popen(
            [STYLEGAN, *arguments],
            env=self.environment,
            cwd=self.folder,
            **settings,
        )

    def stylegan(self, *arguments: str, code: int = 0, seconds: float = 300) -> str:
        """Run `stylegan` to its end, and return what it said."""
        process = self.start(*arguments)
        try:
            said, _ = process.communicate(timeout=seconds)
        finally:
            process.kill()
        assert process.returncode == code, said
        return said


@pytest.fixture(scope="package")
def new_stack() -> Iterator[Any]:
    """Return a function that makes a stack which is not started; all are ended and removed at the end."""
    made: list[Stack] = []

    def make() -> Stack:
        folder = Path(tempfile.mkdtemp(prefix="stack-", dir="/tmp"))
        folder.chmod(0o711)  # PostgreSQL's user must reach its data
        made.append(Stack(folder))
        return made[-1]

    yield make
    for stack in made:
        if stack.env_file.exists():
            stack.command("down")
        shutil.rmtree(stack.folder, ignore_errors=True)


@pytest.fixture(scope="package")
def stack(new_stack: Any) -> Iterator[Stack]:
    """Yield a stack that is up, its S3 server on a disk of its own. Who ends a service of it starts it again."""
    made: Stack = new_stack()
    made.command("init")
    folder = Path(made.values["STACK_DATA"], "s3")
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(
        prefix="disk-", dir="/tmp"
    ) as beside:  # no file of the stack: some tests read them all
        image = Path(beside, "disk")
        mount = f"truncate -s {DISK} {image} && mkfs.ext4 -q -m 0 {image} && mount -o loop {image} {folder}"
        mounted = subprocess.run(mount, shell=True, capture_output=True).returncode == 0
        try:
            made.up()
            yield replace(made, disk=folder if mounted else None)
        finally:
            made.command("down")
            if mounted:
                subprocess.run(["umount", "-l", folder], check=True)
