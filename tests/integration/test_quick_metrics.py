"""Quick metrics beside training on real Ray: their points in MLflow, a kill in the middle of one, and the process that measures."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from test_pipeline import curve, kill_when, there, weights

from stylegan.cluster.session import connect, ray_session
from stylegan.cluster.spare_worker import SpareWorker
from stylegan.config.sections import RayConfig
from stylegan.errors import StepError, UnavailableError

SNAPSHOTS = {
    "checkpoint_kimg": 0.2,
    "log_kimg": 0.1,
    "samples_kimg": 0.5,
    "grid": 4,
    "metrics": ["fid", "pr"],
    "metrics_kimg": {4: 0, 8: 0.4},
    "metrics_images": 300,
}


@pytest.mark.timeout(400)
def test_points_are_in_mlflow_once_and_training_is_the_same(finished, make_place):
    """kill -9 while a checkpoint is measured, then the same command: every row and every point is there once, the end of the stage
    among them, and the weights are those of a run without quick metrics that nobody has killed."""
    _, expected = finished
    place = make_place(snapshots=SNAPSHOTS)
    kill_when(place, there(place, "stages/0008-*/measuring/*"))
    summary = place.json("run", str(place.config))
    assert weights(summary) == weights(expected)
    assert summary["run_id"] == expected["run_id"]
    (path,) = Path(place.root, "stages").glob("*/metrics-*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    nimgs = [row["nimg"] for row in rows]
    assert nimgs == sorted(set(nimgs))
    assert nimgs[-1] == 2200
    assert not (path.parent / "measuring").exists()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))  # as if stopped while the end was measured
    place.run("train", str(place.config))
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    for key in ("quick/fid_classifier", "quick/recall_classifier"):
        first = {row["nimg"] // 1000: row["metrics"][key] for row in reversed(rows)}  # of a kimg
        assert curve(place, summary["mlflow_run_id"], key) == sorted(first.items())
    place.wait_until_empty()


@pytest.fixture
def busy_cluster():
    """Ray on this machine, every CPU of it promised to something else."""
    import ray

    with ray_session():
        connect(RayConfig())
        ray.remote(num_cpus=os.cpu_count())(lambda: time.sleep(300)).remote()
        while ray.available_resources().get("CPU"):
            time.sleep(0.1)
        yield


@pytest.mark.timeout(120)
def test_a_spare_worker_takes_no_share_and_stands_back(busy_cluster):
    """It runs although no CPU is free, behind everything that wants one; what it raises is raised here."""

    def settings(_item):
        return os.getpid(), os.nice(0), os.sched_getscheduler(0), torch.get_num_threads()

    def refuse(item):
        raise StepError(f"{item} cannot be measured")

    worker = SpareWorker()
    pid, nice, policy, threads = worker.call(settings, None)
    assert pid != os.getpid()
    assert (nice, policy, threads) == (19, os.SCHED_IDLE, 1)
    with pytest.raises(StepError, match="this cannot be measured"):
        worker.call(refuse, "this")
    worker.close()


@pytest.mark.timeout(120)
def test_a_spare_worker_comes_back_after_a_kill_and_ends_when_it_is_closed(busy_cluster, tmp_path):
    def touch_and_wait(path):
        Path(path).write_text(str(os.getpid()))
        time.sleep(100)

    def process(_item):
        return os.getpid()

    worker, note, told = SpareWorker(), tmp_path / "note", []
    first = worker.call(process, None)
    os.kill(first, signal.SIGKILL)
    assert patiently(lambda: worker.call(process, None)) != first

    def call():
        with pytest.raises(UnavailableError):
            worker.call(touch_and_wait, str(note))
        told.append(True)

    thread = threading.Thread(target=call)
    thread.start()
    patiently(lambda: int(note.read_text()))
    worker.close()
    thread.join(20)
    assert told
    with pytest.raises(UnavailableError, match="closed"):
        worker.call(process, None)


def patiently(function):
    """Its result as soon as it has one: calls may be lost until Ray has seen that a process is gone."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return function()
        except (UnavailableError, OSError, ValueError):
            assert time.monotonic() < deadline, "did not happen within 30 s"
            time.sleep(0.2)
