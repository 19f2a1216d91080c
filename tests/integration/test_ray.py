"""Tests of launching on Ray: impossible resources, an address without a cluster, and joining a running cluster."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def free_port():
    """Return a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_impossible_resources_are_refused_with_what_the_cluster_has(make_place):
    """A stage whose workers fit on no node does not wait for them, and the message says what the cluster has."""
    place = make_place()
    place.run("train", str(place.config), "--set", "ray.cpus_per_worker=999", code=2)
    (line,) = [line for line in place.errors().splitlines() if line.startswith("stylegan: ")]
    assert "asks for 1 worker(s) with 999 CPU each" in line
    assert f"the cluster has 1 node(s): {os.cpu_count()} CPU" in line
    place.wait_until_empty()


def test_a_closed_address_is_one_line(make_place):
    """An address where no cluster answers is not waited for."""
    place = make_place()
    address = f"127.0.0.1:{free_port()}"
    place.run("run", str(place.config), "--set", f"ray.address={address}", code=1)
    assert (
        "Error logging" not in place.errors()
    )  # Prefect prints it for lines that are logged after its server has ended
    assert f"stylegan: ray.address={address}: nothing answers there" in place.errors()


def test_joins_a_running_cluster_with_two_workers(make_place, tmp_path_factory):
    """With `ray.address` the stage trains on that cluster with two gloo ranks, and does not stop the cluster."""
    # Start a cluster with ports of its own.
    place = make_place()
    place.env |= {"RAY_AUTH_MODE": "disabled"}
    port, bin_folder = free_port(), Path(sys.executable).parent
    temp = f"/tmp/ray-{port}"  # Ray's sockets allow short paths only
    agents = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
    head = [
        str(bin_folder / "ray"),
        "start",
        "--head",
        f"--port={port}",
        f"--temp-dir={temp}",
        "--num-cpus=2",
        "--block",
    ]
    head += [f"--{name}-port={free_port()}" for name in agents] + ["--include-dashboard=false", "--disable-usage-stats"]
    env = os.environ | place.env
    with open(place.folder / "head", "wb") as log:
        process = subprocess.Popen(head, env=env, stdout=log, stderr=log, start_new_session=True)

    # Wait until it answers, and train on it.
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        record = place.json(
            "train",
            str(place.config),
            "--until",
            "4",
            "--set",
            f"ray.address=127.0.0.1:{port}",
            "--set",
            "ray.workers=2",
        )
        assert record["nimg"] == 1000
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(temp, ignore_errors=True)
    place.wait_until_empty()
