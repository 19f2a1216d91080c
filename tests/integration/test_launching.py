"""Runs as jobs of a real cluster that wants tokens: launch, attach, list, follow over cut connections, stop, go on."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from clusters import free_port
from conftest import MARK
from printed import type_in
from test_signals import states

from stylegan.cluster import jobs
from stylegan.cluster.job_package import environment, make_package
from stylegan.cluster.jobs import JobServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


class Proxy:
    """A TCP proxy on a port of its own, all of whose connections can be cut."""

    def __init__(self, port):
        self.target, self.open, self.server = port, [], socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self.server.accept()
            try:
                upstream = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                client.close()
                continue
            self.open += [client, upstream]
            for ends in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with_end(end)

    def cut(self):
        """Cut all connections; return how many there were."""
        ends, self.open = self.open, []
        living = [end for end in ends if end.fileno() >= 0]
        for end in living:
            with_end(end)
        return len(living) // 2


def with_end(end):
    """Close a socket in both directions, also while another thread reads from it."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class Head:
    """The head of a cluster with a dashboard, whose processes are found again by a mark in their environment."""

    def __init__(self, env):
        self.env, self.port, self.dashboard = env, free_port(), free_port()
        self.temp = f"/tmp/ray-{self.port}"  # Ray's sockets allow short paths only
        agents = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={self.port}"]
        command += [f"--temp-dir={self.temp}", "--num-cpus=2", f"--dashboard-port={self.dashboard}"]
        command += [f"--{name}-port={free_port()}" for name in (*agents, "ray-client-server")]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=true", "--disable-usage-stats"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        self.url = f"http://127.0.0.1:{self.dashboard}"

    def processes(self):
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.env[MARK] and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def restart_dashboard(self, seconds):
        """Kill the dashboard, and start it again some seconds later."""
        (process,) = [
            one for one in self.processes() if any("dashboard/dashboard.py" in word for word in one.cmdline())
        ]
        command, env = process.cmdline(), process.environ()
        for one in [*process.children(recursive=True), process]:
            one.kill()
        time.sleep(seconds)
        with open(f"{self.temp}/dashboard-again.log", "wb") as log:
            subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        until(self.answers, 60)

    def answers(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.dashboard)) == 0

    def kill(self):
        for _ in range(3):
            for process in self.processes():
                process.kill()
            time.sleep(0.5)
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(make_place, tmp_path_factory):
    """Return a place whose commands reach the head of a cluster with a token, and that head."""
    training = {"start_resolution": 8, "stable_kimg": {8: 3.5}, "batch": 8, "ema_kimg": 0.2}
    place = make_place(training=training, evaluation={"num_images": 100, "metrics": ["fid"]})
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(secrets.token_hex(32))
    place.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "AWS_SECRET_ACCESS_KEY": "hush-hush"}
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | place.env
    env["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    del env["AWS_SECRET_ACCESS_KEY"]
    head = Head(env)
    place.env["RAY_API_SERVER_ADDRESS"] = head.url
    try:
        yield place, head
    finally:
        head.kill()
    place.wait_until_empty()


@pytest.fixture
def server(cluster, monkeypatch):
    """Return the job server of the cluster, for calls of this process."""
    place, head = cluster
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, place.env[name])
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")  # an address that is given counts more
    return JobServer(head.url)


def until(condition, seconds=180):
    """Return the first true value of a function."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s")


def test_a_run_is_launched_followed_stopped_and_goes_on(cluster):
    """The story of one run, from its launch to its summary."""
    place, head = cluster
    given = str(place.config)
    launched = place.json("launch", given)
    job = launched["job"]["id"]
    assert launched["outcome"] == "started"
    assert re.fullmatch(r"tiny-[0-9a-f]{10}", job)

    # The same command attaches, and all ways to name the run work.
    text = place.run("launch", given)
    assert f"{job}: runs already" in text
    assert "hush" not in text + place.errors()
    listed = type_in(re.search(r"^list +(.*)$", text, re.MULTILINE)[1], place.folder, **place.env)
    assert job in listed.stdout

    # Follow it through a proxy that cuts the connection twice, and over a restart of the dashboard.
    proxy = Proxy(head.dashboard)
    command = [sys.executable, "-m", "flows.cli.main", "logs", "tiny", "--follow", "--address", proxy.url]
    out, err = place.folder / "followed", place.folder / "followed.err"
    with open(out, "wb") as to, open(err, "wb") as errors:
        follower = subprocess.Popen(command, cwd=place.folder, env=os.environ | place.env, stdout=to, stderr=errors)
    until(lambda: b"Running entrypoint" in out.read_bytes())
    assert proxy.cut() >= 1
    until(lambda: b"to do: shard" in out.read_bytes())
    assert proxy.cut() >= 1
    head.restart_dashboard(3)

    def training():
        (listed,) = json.loads(place.run("jobs", "--json"))
        return listed["progress"] and listed["progress"]["name"].startswith("train") and listed["state"] == "running"

    until(training)
    assert follower.poll() is None

    # Stop it: the follower ends with the code of a stopped job and has every line once.
    stopped = place.run("stop", job[:9])
    assert stopped.startswith(f"{job}: stopped, at ")
    assert follower.wait(60) == 143, err.read_text()
    assert out.read_text() == place.run("logs", job)
    assert "was over already: stopped" in place.run("stop", "tiny")

    # The next attempt goes on from storage, to the end.
    text = place.run("launch", given, "--follow", seconds=900)
    assert f"{job}-2: started, attempt 2" in text
    assert "shard: taken from storage" in text
    again = place.run("launch", given)
    assert f"{job}-2: has finished" in again
    assert "Look at it:" in again
    assert "Running entrypoint" not in again
    assert {one["id"]: one["state"] for one in json.loads(place.run("jobs", "--json"))} == {
        job: "stopped",
        f"{job}-2": "finished",
    }
    assert states(place) == (["Cancelled", "Completed"], ["FINISHED"])

    # Every node is examined by a job, from a machine that is none.
    examined = place.json("doctor", given, "--address", head.url)
    assert all(finding["ok"] for finding in examined["findings"])
    assert len(examined["nodes"]) == 1
    assert len(json.loads(place.run("jobs", "--all", "--json"))) == 2


DRIVER = b"""
import os, sys, ray, stylegan
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
def seen():
    import stylegan
    return stylegan.__file__, stylegan.__version__, os.environ["AWS_SECRET_ACCESS_KEY"]
assert seen() == ray.get(ray.remote(seen).remote()), "driver and workers differ"
print("code", *seen(), "in", os.getcwd())
sys.exit(7)
"""


def test_driver_and_workers_run_the_code_that_was_sent(server):
    """Also its version; the exit code of the command is that of the job, of which no trace is kept."""
    package = make_package(None)
    metadata = next(path for path in package.files if path.endswith("METADATA"))
    files = {**package.files, "flows/cli/main.py": DRIVER, metadata: b"Name: stylegan-pipeline\nVersion: 9.8.7\n"}
    said: list[str] = []
    secret = environment({"AWS_SECRET_ACCESS_KEY": "hush"})
    code = server.run_as_job(["doctor"], replace(package, files=files), said.append, environment=secret, grace_s=1)
    line = next(line for line in "".join(said).splitlines() if line.startswith("code "))
    _, code_file, version, passed, _, folder = line.split()
    assert (code, version, passed) == (7, "9.8.7", "hush")
    assert code_file == f"{folder}/stylegan/__init__.py"
    assert not [job for job in server.jobs() if job.id.startswith("doctor")]


def sleeper(config):
    """Return the package of a run that says a word and then sleeps."""
    package = make_package(config)
    return replace(
        package, files={**package.files, "flows/cli/main.py": b"import time; print('here'); time.sleep(600)"}
    )


def test_a_follower_that_is_interrupted_leaves_the_job_alone(cluster, server, tiny_config):
    """Ctrl-C detaches, says how to come back, and ends with 130."""
    place, _ = cluster
    job = server.submit_run(sleeper(tiny_config(place.root)), "slow", environment={}, grace_s=1).job
    with pytest.raises(jobs.StepError, match=f"{job.id}: trains the same on this cluster, with other code"):
        server.submit_run(make_package(tiny_config(place.root)), "slow", environment={}, grace_s=1)
    follower = place.start("logs", "slow", "-f")
    until(lambda: "here" in (place.folder / "stdout").read_text())
    follower.send_signal(signal.SIGINT)
    assert follower.wait(30) == 130
    assert f"detached from {job.id}, which runs on; `" in place.errors()
    assert server.get(job.id).state == "running"
    assert server.stop(server.get(job.id)).state == "stopped"


def test_wrong_tokens_versions_and_ids_are_one_line(cluster, server, monkeypatch, tmp_path, tiny_config):
    place, head = cluster
    job = server.submit_run(sleeper(tiny_config(place.root, seed=1)), "named", environment={}, grace_s=1).job
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    right = dict(place.env)
    for settings, says in (
        ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, "refuses the token"),
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token"),
    ):
        place.env |= settings
        place.run("jobs", code=1)
        (line,) = place.errors().splitlines()
        assert f"stylegan: {head.url}: the cluster {says}" in line
    place.env |= right
    place.run("logs", "nothing", code=2)
    (line,) = place.errors().splitlines()
    assert "nothing: matches no job of" in line
    assert "there are " in line
    assert job.id in line
    server.stop(job)
    import ray

    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with pytest.raises(
        jobs.StepError, match=r"the cluster has Ray 2.*, this machine 2\.0\.0; use one version: `.*pip install .*==2"
    ):
        server.check_versions()


def test_a_cluster_that_is_gone_is_one_line_after_a_while(cluster, server, tiny_config):
    """The last test: it ends the cluster under a follower."""
    place, head = cluster
    job = server.submit_run(sleeper(tiny_config(place.root)), "lost", environment={}, grace_s=1).job
    threading.Timer(8, head.kill).start()
    with pytest.raises(jobs.UnavailableError, match=f"so what became of {job.id} is not known.* the same launch"):
        server.follow(job.id, lambda text: None, patience=4)
