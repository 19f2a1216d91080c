"""Addresses of clusters that cannot be joined: each is one line within seconds, where Ray itself would wait for minutes."""

import contextlib
import http.server
import json
import shutil
import socket
import tempfile
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from stylegan.cluster import head
from stylegan.cluster.head import check_address, find_head
from stylegan.cluster.session import import_ray
from stylegan.config.sections import RayConfig
from stylegan.errors import StepError, UnavailableError


@pytest.fixture
def closed():
    """Return an address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def quick(monkeypatch):
    """Wait for an answer for one second."""
    monkeypatch.setattr(head, "ANSWER_SECONDS", 1.0)


@pytest.mark.parametrize("client", ["", "ray://"])
def test_a_closed_port_is_refused_at_once(closed, client):
    line = f"ray.address={client}{closed}: nothing answers there .* or leave it unset"
    with pytest.raises(UnavailableError, match=line):  # a run that meets it on its way tries again
        check_address(RayConfig(address=client + closed))


@pytest.mark.parametrize("address", [None, "local", "auto"])
def test_what_only_ray_can_find_is_not_checked_without_it(address, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_address(RayConfig(address=address))


def test_auto_means_ray_address_where_it_is_set(closed, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(StepError, match=rf"^RAY_ADDRESS={closed} \(ray.address=auto\): nothing answers there"):
        check_address(RayConfig(address="auto"))
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(StepError, match=r"^RAY_ADDRESS=http://.*: must be host:port of the head"):
        check_address(RayConfig(address="auto"))


def test_a_host_that_swallows_packets_is_waited_for_only_so_long(quick):
    """The queue of the listener is full, so that the kernel drops what comes."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        with pytest.raises(StepError, match=r"nothing answers there \(timed out\)"):
            check_address(RayConfig(address=f"127.0.0.1:{listener.getsockname()[1]}"))


@pytest.mark.parametrize(("client", "kind"), [("", "the head of a Ray cluster"), ("ray://", "Ray Client's server")])
def test_what_does_not_answer_as_ray_does_is_named(quick, client, kind):
    """One server says nothing at all, another one speaks HTTP/1.1."""
    import_ray()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        check_address(
            RayConfig(address=f"{client}127.0.0.1:{silent.getsockname()[1]}")
        )  # without Ray, an open port is enough
        with pytest.raises(StepError, match=rf"does not answer as {kind} \(no answer in 1 s\); the head has port 6379"):
            find_head(RayConfig(address=f"{client}127.0.0.1:{silent.getsockname()[1]}"))

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StepError, match=rf"does not answer as {kind} \(.*HTTP/2.*while 8265 is the dashboard"):
            find_head(RayConfig(address=f"{client}127.0.0.1:{server.server_port}"))
        server.shutdown()


def test_auto_without_a_cluster_is_one_line(closed, monkeypatch, tmp_path):
    """Neither a process nor the file of the last `ray start`, or only a file that outlived its cluster."""
    import_ray()
    from ray._private import services

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)  # other processes of this machine may be some
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(
        StepError, match=r"^ray.address=auto: this machine belongs to no cluster .*`.*ray start --address"
    ):
        find_head(RayConfig(address="auto"))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(closed)
    with pytest.raises(StepError, match=rf"^ray.address=auto, here [0-9.]+:{closed[10:]}: nothing answers there"):
        find_head(RayConfig(address="auto"))


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (
            ("9.9.9", None),
            r"runs Ray 9\.9\.9 on Python .*, and this process Ray .*pip install 'ray\[default,train\]==9\.9\.9'`",
        ),
        ((None, "3.99.1"), r"on Python 3\.99\.1, and this process Ray .* run this with Python 3\.99\.1, or Python "),
    ],
)
def test_other_versions_are_named_with_those_of_this_process(theirs, words):
    import_ray()
    from ray._private.utils import compute_version_info

    ours = compute_version_info()
    metadata = {"ray_version": theirs[0] or ours[0], "python_version": theirs[1] or ours[1]}
    with pytest.raises(StepError, match=words):
        head._check_versions(head._Place("ray.address=h:1", "h:1"), json.loads(json.dumps(metadata)))
    head._check_versions(head._Place("", ""), {"ray_version": ours[0], "python_version": ours[1]})


def test_a_cluster_is_lost_at_once_with_the_node_of_this_process_and_after_a_while_with_its_head(closed, monkeypatch):
    """A new head at the old address does not count: the node that had joined the old one is gone."""
    import ray
    from ray._private import worker

    monkeypatch.setattr(head, "HEAD_SECONDS", 1.5)
    folder = tempfile.mkdtemp(dir="/tmp")  # names of sockets are short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as raylet, socket.create_server(("127.0.0.1", 0)) as server:
        raylet.bind(f"{folder}/raylet")
        raylet.listen(64)
        addresses = {"there": f"127.0.0.1:{server.getsockname()[1]}", "gone": closed}
        context = SimpleNamespace(gcs_address=addresses["there"])
        monkeypatch.setattr(worker, "_global_node", SimpleNamespace(raylet_socket_name=f"{folder}/raylet"))
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        assert head.head_answers()
        assert not head.is_lost()

        context.gcs_address = addresses["gone"]
        began = time.monotonic()
        assert head.is_lost()
        assert time.monotonic() - began > 1.5

        context.gcs_address = addresses["there"]
    assert not head.node_answers()
    began = time.monotonic()
    assert head.is_lost()
    assert time.monotonic() - began < 1
    shutil.rmtree(folder)
