"""The spare worker on real Ray: it is placed although no CPU is free, lets everything else go first, and ends when closed."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from stylegan.cluster.session import connect, ray_session
from stylegan.cluster.spare_worker import SpareWorker
from stylegan.config.sections import RayConfig
from stylegan.errors import StepError, UnavailableError


@pytest.fixture
def busy_cluster():
    """Start Ray on this machine and give every CPU of it to something else."""
    import ray

    with ray_session():
        connect(RayConfig())
        ray.remote(num_cpus=os.cpu_count())(lambda: time.sleep(300)).remote()
        while ray.available_resources().get("CPU"):
            time.sleep(0.1)
        yield


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


def test_a_spare_worker_comes_back_after_a_kill_and_ends_when_it_is_closed(busy_cluster, tmp_path):
    def touch_and_wait(path):
        Path(path).write_text(str(os.getpid()))
        time.sleep(100)

    def process(_item):
        return os.getpid()

    worker, note, ended = SpareWorker(), tmp_path / "note", []
    first = worker.call(process, None)
    os.kill(first, signal.SIGKILL)
    assert patiently(lambda: worker.call(process, None)) != first

    def call():
        with pytest.raises(UnavailableError):
            worker.call(touch_and_wait, str(note))
        ended.append(True)

    thread = threading.Thread(target=call)
    thread.start()
    patiently(lambda: int(note.read_text()))
    worker.close()
    thread.join(20)
    assert ended
    with pytest.raises(UnavailableError, match="closed"):
        worker.call(process, None)


def patiently(function):
    """Return its result as soon as it has one: calls may be lost until Ray has noticed that a process is gone."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return function()
        except (UnavailableError, OSError, ValueError):
            assert time.monotonic() < deadline, "did not happen within 30 s"
            time.sleep(0.2)
