"""Faults of the native stack: each service is killed for half a minute while runs are in each of their phases.

A run is four phases long, and each kill meets four runs, one in each phase. So the runs follow one another: what is in its
first phase when one service is killed is in its second at the kill of the next. A run that reaches its next phase early is
suspended there (SIGSTOP) until that kill, as by its own lines on the terminal. At the end each must have the results of a
run that nothing has disturbed.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from infra.stack.processes import kill, services
from stylegan import storage

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[2]
AWAY_SECONDS = float(os.environ.get("STACK_FAULT_SECONDS", "30"))
PHASES = ("shard", "train", "evaluate", "register")
# The line with which a run shows that it enters a phase.
ENTERED = (r": \d steps; to do: shard", r"^shard: .*, done", r"^train 8x8: .*, done", r"^evaluate: no figure")
LONGEST = float(os.environ.get("STACK_FAULT_LONGEST", "300"))  # seconds that a run may take to its next phase
ENOUGH = 400  # images after which a stage is in the middle of its work
NUM_IMAGES = 600
TREE = {
    "data": {"resolution": 8, "channels": 1},
    "model": {"latent_size": 8, "mapping_layers": 2, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8, "conditional": True},
    "training": {"start_resolution": 8, "stable_kimg": 2, "batch": 8, "ema_kimg": 0.2},
    "snapshots": {"checkpoint_kimg": 0.4, "log_kimg": 0.1, "samples_kimg": 1, "grid": 4},
    "evaluation": {"num_images": 200, "metrics": ["fid"]},
    "ray": {"cpus_per_worker": 0.5},
}  # fmt: skip


def kill_services(stack, *names):
    """Kill services, all of their processes; without a name all services."""
    for service in services(stack.values, names):
        kill(service, stack.values)


def fill(disk):
    """Fill a disk, and return the file that does it."""
    ballast = disk / "ballast"
    with open(ballast, "wb") as file:
        size, step = 0, 2**28  # the file system itself needs some of what it calls free
        while step >= 2**16:
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
            except OSError:
                step //= 4
    return ballast


def draw(folder):
    """Write digits as a folder of images for each class: fewer than the embedded ones, since runs take turns on them."""
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:NUM_IMAGES], digits.target, strict=False)):
        path = folder / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(path)
    return folder


@dataclass
class Run:
    """A run of the command, which is suspended where it enters a phase that it may not enter yet.

    Attributes:
        name: of its config.
        folder: with its config and its output.
        source: of its images.
        env: environment variables of the command.
    """

    name: str
    folder: Path
    source: Path
    env: dict[str, str]
    process: subprocess.Popen = None
    allowed: int = -1  # phases that it may enter
    repeats: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self):
        """Start the command."""
        self.folder.mkdir(exist_ok=True)
        config = self.folder / "config.yaml"
        data = TREE["data"] | {"source": str(self.source)}
        config.write_text(
            yaml.safe_dump(TREE | {"name": self.name, "storage": {"root": f"faults/{self.name}"}, "data": data})
        )
        command = [sys.executable, "-m", "flows.cli.main", "run", str(config), "--json"]
        self.err = self.folder / f"stderr-{self.repeats}"
        with open(self.folder / "stdout", "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self.env, stdout=out, stderr=err, start_new_session=True
            )
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()
        return self

    @property
    def text(self):
        """What it has printed for people."""
        return self.err.read_text()

    @property
    def entered(self):
        """The last phase that it has entered; -1 before the first, and the number of phases once it has ended."""
        if self.process.poll() is not None:
            return len(PHASES)
        return max((number for number, line in enumerate(ENTERED) if re.search(line, self.text, re.M)), default=-1)

    def repeat(self, phase):
        """Type the command again, to go on into a phase."""
        self.repeats += 1
        self.start().let(phase)

    def wait(self, phase):
        """Wait until it has entered a phase, or has ended."""
        wait_for(lambda: self.entered >= phase, self)

    def let(self, phase):
        """Let it go on until it enters the phase after this one."""
        with self._lock:
            self.allowed = phase
            self._signal(signal.SIGCONT)

    def _watch(self, process):
        while process.poll() is None:
            with self._lock:
                if self.entered > self.allowed and self.entered < len(PHASES):
                    self._signal(signal.SIGSTOP)
            time.sleep(0.05)

    def _signal(self, number):
        """Send a signal to the program below its supervisor."""
        with contextlib.suppress(psutil.Error):
            for program in psutil.Process(self.process.pid).children():
                program.send_signal(number)

    def kill(self):
        """Kill it."""
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
        self.process.wait()

    def trained(self):
        """Return how many images its stage has trained, by its curves."""
        with contextlib.suppress(Exception):
            root = f"s3://stylegan/faults/{self.name}/stages"
            (stage,) = storage.names(root)
            lines = storage.read_bytes(f"{root}/{stage}/stats.jsonl").splitlines()
            return json.loads(lines[-1])["nimg"]
        return 0


def results(run):
    """Return what a finished run has made: weights, metrics, verdict, its versions, and its curves in MLflow."""
    from mlflow import MlflowClient

    assert run.process.returncode == 0, run.text
    summary = json.loads((run.folder / "stdout").read_text())
    state = torch.load(
        io.BytesIO(storage.read_bytes(f"{summary['checkpoints'][-1]['uri']}/training.pt")), weights_only=True
    )
    tensors = [tensor for name in ("G", "D", "G_ema") for tensor in state[name].values()]
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    tracked = client.get_run(summary["mlflow_run_id"])
    names = [name for name in tracked.data.metrics if name.startswith(("loss/", "scores/"))]
    of_name = [
        one for one in client.search_runs([tracked.info.experiment_id]) if one.info.run_name == tracked.info.run_name
    ]
    curves = {
        name: [(point.step, point.value) for point in client.get_metric_history(summary["mlflow_run_id"], name)]
        for name in names
    }
    return {
        "weights": hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()[:12],
        "metrics": summary["report"]["metrics"],
        "verdict": summary["verdict"]["promote"],
        "versions": len(client.search_model_versions(f"name='{run.name}'")),
        "runs": len(of_name),
        "curves": {name: sorted(points) for name, points in curves.items()},
    }  # fmt: skip


def wait_for(condition, run):
    """Wait until a condition on a run holds."""
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, f"{run.name}: {run.text}"
        time.sleep(0.1)


HOWS = {
    "joined the next cluster": "joined the next cluster",
    "its workers start again": "new workers, from a checkpoint",
    "trying again": "step repeated",
    "waiting for": "waited",
}


def how(lines, repeated):
    """Return in words how a run has come through."""
    found = [words for mark, words in HOWS.items() if mark in lines]
    return ", ".join(found + ["command repeated"] * repeated) or "went on"


def test_each_service_may_be_killed_in_each_phase_of_a_run(stack, capsys, monkeypatch):
    """So may all of them at once; and the disk of the S3 server may be full for a while. The table says how."""
    source = draw(stack.folder / "digits")
    faults = {service.name: lambda name=service.name: kill_services(stack, name) for service in services(stack.values)}
    faults["all"] = lambda: kill_services(stack)
    if stack.disk:
        faults["disk of s3"] = lambda: fill(stack.disk)
    if only := os.environ.get("STACK_FAULTS"):
        faults = {name: faults[name] for name in only.split(",")}
    for name, value in stack.values.items():
        if name.startswith(("AWS_", "MLFLOW_")):
            monkeypatch.setenv(name, value)

    def make(name):
        env = stack.environment | {"PREFECT_HOME": str(stack.folder / f"home-{name}")}
        return Run(name, stack.folder / name, source, env)

    def say(text):
        with capsys.disabled():
            print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr)

    table, found, expected, began, last = [], {}, None, time.monotonic(), len(PHASES) - 1
    runs = []
    try:
        # The newest run is in its first phase, and the three before it in the next ones.
        row = [make(f"run-{number}").start() for number in range(len(PHASES))]
        runs += row
        for number, (fault, act) in enumerate(faults.items()):
            phases = list(zip(reversed(range(len(PHASES))), row, strict=True))
            for phase, run in phases:
                run.let(phase - 1)
            for phase, run in phases:
                run.wait(phase)
            trainee = row[last - PHASES.index("train")]
            trainee.let(PHASES.index("train"))
            wait_for(lambda run=trainee: run.trained() >= ENOUGH or run.entered > 1, trainee)
            before = {run.name: len(run.text) for run in row}
            for phase, run in phases:
                run.let(phase)
            time.sleep(0.3)
            say(f"{fault}: killed")
            killed, ballast = time.monotonic(), act()
            time.sleep(AWAY_SECONDS)
            if ballast:
                ballast.unlink()
            starts = re.findall(r"^(\S+: started in \d+ s)", stack.up(), re.M)
            say(f"{fault}: up again ({', '.join(starts)})")
            if number + 1 < len(faults):  # it has begun by the time that the others have come through
                runs.append(make(f"run-{number + len(PHASES)}").start())
            for phase, run in phases:
                run.wait(phase + 1)
                seconds, lines, repeated = time.monotonic() - killed, run.text[before[run.name] :], False
                if run.process.poll():
                    say(f"{run.name} ended with {run.process.returncode}: {lines}")
                    run.repeat(phase)
                    run.wait(phase + 1)
                    repeated = True
                table.append((fault, PHASES[phase], run.name, how(lines, repeated), seconds))
                say(f"{fault}, {PHASES[phase]}, {run.name}: {how(lines, repeated)}, after {seconds:.0f} s")
            row = runs[-len(PHASES) :]
        quiet = make("undisturbed").start()  # nothing is killed any more
        for run in (*runs, quiet):
            run.let(len(PHASES))
        runs.append(quiet)
        quiet.wait(len(PHASES))
        expected = results(quiet)
        assert expected["versions"] == expected["runs"] == 1
        say(f"undisturbed: {expected['weights']}, {expected['metrics']}")
        for run in runs[:-1]:
            run.wait(len(PHASES))
            found[run.name] = results(run)
            say(f"{run.name}: {'same' if found[run.name] == expected else found[run.name]}")
    finally:
        for run in runs:
            run.kill()
        with capsys.disabled():
            lines = ["| away | in phase | how the run came through | seconds | same result |", "|---|---|---|---|---|"]
            for fault, phase, run, way, seconds in table:
                same = {True: "yes", False: "NO"}[found[run] == expected] if run in found else "?"
                lines.append(f"| {fault} | {phase} | {way} | {seconds:.0f} | {same} |")
            print("", *lines, sep="\n", file=sys.stderr)
    assert found == dict.fromkeys(found, expected)
