"""Fixtures for the integration tests: a tiny run of the real `stylegan` command, with a Prefect home of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

TREE = {
    "name": "tiny",
    "data": {"source": "digits", "resolution": 8, "channels": 1},
    "model": {
        "latent_size": 8,
        "mapping_layers": 2,
        "mapping_fmaps": 8,
        "fmap_base": 64,
        "fmap_max": 8,
        "conditional": True,
    },
    "training": {"start_resolution": 4, "fade_kimg": 0.6, "stable_kimg": {4: 1.0, 8: 0.6}, "batch": 8, "ema_kimg": 0.2},
    "snapshots": {"checkpoint_kimg": 0.2, "log_kimg": 0.1, "samples_kimg": 0.5, "grid": 4},
    "evaluation": {"num_images": 400, "metrics": ["fid", "ppl_wend"], "ppl_samples": 64, "ppl_crop": False},
}
MARK = "STYLEGAN_TEST_MARK"


def _default_signals() -> None:
    """Ignore no signal, also if the tests run in the background of a shell, which lets them ignore some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Place:
    """A folder with a config, a storage root and a Prefect home of its own, in which the command can be run.

    Attributes:
        folder: the folder.
        root: `storage.root`, a path or a URL.
        env: environment variables of the command, beside those of the tests.
    """

    folder: Path
    root: str
    env: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The path of the config."""
        return self.folder / "tiny.yaml"

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the command as the leader of a process group.

        Its output goes to files, because a process that outlives the command could block a pipe.
        """
        command = [sys.executable, "-m", "flows.cli.main", *arguments]
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | self.env,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_default_signals,
            )

    def run(self, *arguments: str, code: int = 0, seconds: float = 600) -> str:
        """Run the command and return its standard output. Another exit code or a longer run fails the test."""
        process = self.start(*arguments)
        try:
            got = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{arguments} took longer than {seconds} s: {self.errors()}") from None
        assert got == code, f"{arguments} ended with {got}: {self.errors()}"
        return (self.folder / "stdout").read_text()

    def json(self, *arguments: str) -> dict:
        """Return the record that a verb prints with --json, and check that standard output has only this one line."""
        lines = self.run(*arguments, "--json").splitlines()
        assert len(lines) == 1, lines
        return json.loads(lines[0])

    def errors(self) -> str:
        """Return the standard error of the last command."""
        return (self.folder / "stderr").read_text()

    def processes(self) -> list[str]:
        """Return the command lines of all living processes that descend from the commands of this place."""
        lines = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.env[MARK] and process.status() != psutil.STATUS_ZOMBIE:
                    lines.append(" ".join(process.cmdline())[:200])
            except psutil.Error:
                continue
        return lines

    def wait_until_empty(self, seconds: float = 20) -> None:
        """Fail if a process of this place outlives its command."""
        deadline = time.monotonic() + seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert self.processes() == []


@pytest.fixture(scope="session")
def make_place(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Place]:
    """Return `make_place(root=None, **sections)`, which makes a new `Place`; `root` may be a URL."""

    def make(root: str | None = None, **sections: object) -> Place:
        folder = tmp_path_factory.mktemp("place")
        home = folder / "prefect"
        mark = uuid.uuid4().hex
        place = Place(
            folder, root or str(folder / "data"), {"PREFECT_HOME": str(home), MARK: mark, "PREFECT_API_URL": ""}
        )
        place.config.write_text(yaml.safe_dump({**TREE, "storage": {"root": place.root}, **sections}))
        return place

    return make


@pytest.fixture(scope="session")
def finished(make_place: Callable[..., Place]) -> tuple[Place, dict]:
    """Return a place where the tiny config has been run to its end, and the summary that the command printed."""
    place = make_place()
    summary = place.json("run", str(place.config))
    (place.folder / "first.log").write_text(place.errors())  # the next command replaces them
    return place, summary
