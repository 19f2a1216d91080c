"""Commands in messages, typed as they are printed, where that takes a training, a server or a cluster."""

import os
import re
import signal
import socket
import subprocess
import time

import httpx
import pytest
from clusters import free_port
from printed import printed, shell, type_in

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


def test_each_step_names_the_command_of_the_one_before(make_place):
    """`register` asks for `evaluate`, that for `train`; with the --set of the first command, from the same folder."""
    place = make_place(evaluation={"num_images": 100, "metrics": ["fid"]})
    given = ["tiny.yaml", "--set", f"storage.root={place.folder}/a root #2", "--set", "training.stable_kimg=0.2"]
    place.run("shard", "--verify", *given, code=1)
    done = type_in(printed(place.errors()), place.folder, **place.env)
    assert "done" in done.stdout or "images" in done.stdout
    asked = []
    while True:
        place.run("register", *given, code=len(asked) < 2)
        if len(asked) == 2:
            break
        asked.append(printed(place.errors()))
        type_in(asked[-1], place.folder, **place.env)
    assert [re.search(r"stylegan (\w+)", command).group(1) for command in asked] == ["train", "evaluate"]


def serving(command, folder, url, **settings):
    """Type a command that serves, wait until the URL answers, and end it."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **shell(folder, **settings),
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(url, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise AssertionError(f"{command}: nothing answered at {url}")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_commands_after_a_run_open_what_it_made(finished):
    """The two user interfaces, and a grid from the new version."""
    place, _ = finished
    lines = place.run("run", "tiny.yaml").split("Look at it:")[1].strip().splitlines()
    mlflow, prefect, sample = (line.strip() for line in lines)
    port = free_port()
    assert "--port 5000" in mlflow  # a port of its own here, for tests beside each other
    serving(mlflow.replace("--port 5000", f"--port {port}"), place.folder, f"http://127.0.0.1:{port}/health")
    settings = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_HOME": place.env["PREFECT_HOME"]}
    serving(prefect, place.folder, f"http://127.0.0.1:{port}/api/health", **settings)
    type_in(sample, place.folder)
    assert (place.folder / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_servers_that_do_not_answer_are_started_by_what_the_line_says(make_place):
    place, port = make_place(), free_port()
    place.env["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    place.run("run", "tiny.yaml", code=1)
    settings = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT_HOME": place.env["PREFECT_HOME"]}
    serving(printed(place.errors()), place.folder, f"http://127.0.0.1:{port}/api/health", **settings)
    place.run("shard", "tiny.yaml", "--set", f"ray.address=127.0.0.1:{port}", code=1)
    # --block keeps the head in the process group that is ended here.
    head = subprocess.Popen(
        f"{printed(place.errors())} --block --num-cpus=1 --include-dashboard=false",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **shell(place.folder),
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError("no head at the port of the command")
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def test_a_missing_package_is_installed_by_what_the_line_says(tmp_path):
    from stylegan.commands import pip_install

    done = type_in(f"{pip_install('stylegan-pipeline[onnx]')} --dry-run --no-deps", tmp_path)
    assert "stylegan-pipeline" in done.stdout
