"""Kill parts of a running stage at random, again and again, and compare its weights with those of an undisturbed run.

    python -m benchmarks.kills --kills 20        (from tests/; `make kill-test`)

One stage trains with two workers on two nodes of a cluster on this machine. The driver, a worker, a raylet or the head is
sent SIGTERM or SIGKILL at a random moment. What a person or an autoscaler would do is done: a node or a cluster is
started again, and the command is repeated if it has ended. Then the stage must train on, and the next checkpoint must
hold the same bits as that of the undisturbed run at the same image count.
"""

import argparse
import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml
from clusters import Machines

from stylegan.training.curves import read_rows

TREE = {
    "name": "kills",
    "data": {"source": "digits", "resolution": 8, "channels": 1},
    "model": {"latent_size": 8, "mapping_layers": 2, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
    "training": {"start_resolution": 8, "stable_kimg": 100_000, "batch": 8, "ema_kimg": 0.2},
    "snapshots": {"checkpoint_kimg": 0.2, "log_kimg": 0.1, "samples_kimg": 100_000, "grid": 2, "keep": 100_000},
}
TARGETS = ("driver", "worker", "raylet", "head")
MARK = "STYLEGAN_KILLS"


@dataclass
class Place:
    """A storage root, and the command that trains there."""

    folder: Path
    settings: dict
    log: Path
    process: subprocess.Popen | None = None

    def start(self):
        """Start the command, or repeat it."""
        config = self.folder / "config.yaml"
        config.write_text(
            yaml.safe_dump(
                TREE | {"storage": {"root": str(self.folder / "root")}, "ray": self.settings | {"wait_s": 30}}
            )
        )
        env = os.environ | {MARK: str(os.getpid()), "RAY_AUTH_MODE": "disabled", "STYLEGAN_LOG": str(self.log)}
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "flows.cli.main", "train", str(config)]
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def stop(self):
        """Stop the command in order."""
        self.process.terminate()
        return self.process.wait(60)

    @property
    def stage(self):
        """The folder of the stage; None before there is one."""
        return next((self.folder / "root" / "stages").glob("0008-*"), None)

    def trained(self):
        """Return the image count of the newest point of the curves."""
        rows = read_rows(f"{self.stage}/stats.jsonl") if self.stage else []
        return max((row["nimg"] for row in rows), default=0)

    def checkpoints(self):
        """Return the image counts of all complete checkpoints."""
        names = self.stage.glob("checkpoint-*/checkpoint.json") if self.stage else []
        return sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in names)

    def digest(self, nimg):
        """Return the digest of the networks and optimizers of a checkpoint."""
        (file,) = self.stage.glob(f"checkpoint-{nimg:09d}/training.pt")
        return _digest(torch.load(file, weights_only=True))


def _digest(state):
    parts = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                parts.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            parts.update(value.numpy().tobytes())
        else:
            parts.update(repr(value).encode())

    for name in ("G", "D", "G_ema", "opt_G", "opt_D"):
        add(state.get(name, {}))
    return parts.hexdigest()


def wait_for(condition, what, seconds=240):
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds} s for {what}")
        time.sleep(0.1)
    return value


def workers_of(machines):
    """Return the training workers of a cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name().startswith("ray::RayTrain") and machines.temp in " ".join(process.parent().cmdline()):
                found.append(process.pid)
        except (psutil.Error, AttributeError):
            continue
    return found


class Cluster:
    """A head and two nodes of one CPU, started again after each kill that takes something away."""

    def __init__(self):
        self.start()

    def start(self):
        """Start all of it anew."""
        self.machines = Machines()
        self.nodes = [self.machines.add(), self.machines.add()]

    def strike(self, target, number, driver, chance):
        """Send a signal to a part of the cluster or to the driver."""
        if target == "driver":
            os.kill(driver.pid, number)
        elif target == "worker":
            os.kill(chance.choice(workers_of(self.machines)), number)
        elif target == "raylet":
            self._strike(chance.choice(self.nodes), number, "raylet")
        else:
            self._strike(self.machines.head, number, "gcs_server")

    def _strike(self, node, number, name):
        self.struck = node
        for process in psutil.Process(node.pid).children(recursive=True):
            if process.name() == name:
                process.send_signal(number)

    def mend(self, target):
        """Do what a person or an autoscaler would: bring another node, or another cluster."""
        if target == "raylet":
            self.machines.kill(self.struck)
            self.nodes = [node for node in self.nodes if node is not self.struck] + [self.machines.add()]
        elif target == "head":
            self.machines.close()
            self.start()


def main():
    """Run the kills and print a line for each and the summary. Exit code 1 if the weights ever differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kimg", type=float, default=24.0, help="length of the undisturbed run")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    plan = [(target, number) for target in TARGETS for number in (signal.SIGTERM, signal.SIGKILL)]
    plan = (plan * (options.kills // len(plan) + 1))[: options.kills]
    chance.shuffle(plan)

    with tempfile.TemporaryDirectory(prefix="kills", ignore_cleanup_errors=True) as folder:
        calm, wild = (
            Place(Path(folder, name), {"workers": 2}, Path(folder, f"{name}.log")) for name in ("calm", "wild")
        )
        for place in (calm, wild):
            place.folder.mkdir()
        calm.start()
        wait_for(lambda: calm.trained() >= options.kimg * 1000, "the undisturbed run", 1800)
        calm.stop()
        known = {nimg: calm.digest(nimg) for nimg in calm.checkpoints()}

        cluster, seconds, same = Cluster(), [], 0
        try:
            for number, (target, sent) in enumerate(plan, start=1):
                wild.settings["address"] = cluster.machines.address
                if wild.process is None or wild.process.poll() is not None:
                    wild.start()
                before = wild.trained()
                wait_for(
                    lambda before=before: wild.trained() > before and len(workers_of(cluster.machines)) == 2, "training"
                )
                time.sleep(chance.uniform(0, 3))
                at, former = wild.trained(), set(workers_of(cluster.machines))
                cluster.strike(target, sent, wild.process, chance)
                struck = time.monotonic()
                repeated = _go_on(target, sent, wild, cluster)
                wait_for(lambda old=former: not old & set(workers_of(cluster.machines)), "the end of the workers")
                last = max(wild.checkpoints(), default=0)
                newest = wait_for(
                    lambda last=last: [n for n in wild.checkpoints() if n > last and n in known], "a checkpoint"
                )[0]
                seconds.append(time.monotonic() - struck)
                equal = wild.digest(newest) == known[newest]
                same += equal
                print(
                    f"{number:3d}  {target:7s}{signal.Signals(sent).name:8s} at {at / 1000:6.1f} kimg"
                    f"{', command repeated' if repeated else ''}: a new checkpoint after {seconds[-1]:4.0f} s, "
                    f"{'the same bits' if equal else 'OTHER WEIGHTS'}",
                    flush=True,
                )
            code = wild.stop()
        finally:
            if wild.process and wild.process.poll() is None:
                os.killpg(wild.process.pid, signal.SIGKILL)
            cluster.machines.close()
        left = wait_for_none()
    print(
        f"{same} of {len(plan)} kills end with the same weights; from the kill to the next checkpoint, with all restarts: "
        f"median {statistics.median(seconds):.0f} s, worst {max(seconds):.0f} s; stopped with {code}; "
        f"{len(left)} process(es) left {left or ''}"
    )
    return int(same != len(plan) or bool(left))


def _go_on(target, sent, place, cluster):
    """Mend the cluster, and repeat the command if it has ended or will; return whether it was repeated."""
    cluster.mend(target)
    ends = target in ("driver", "head") or (target == "worker" and sent == signal.SIGTERM)
    if ends:
        wait_for(lambda: place.process.poll() is not None, "the end of the command", 120)
        place.settings["address"] = cluster.machines.address
        place.start()
    return ends


def wait_for_none(seconds=30):
    """Return the names of processes of the runs that are left after a while."""
    deadline = time.monotonic() + seconds
    while True:
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(os.getpid()):
                    left.append(process.name())
            except psutil.Error:
                continue
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
