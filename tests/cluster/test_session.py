"""The Ray session: a Ray of its own is alone and leaves nothing behind, and who leaves Ray at the end."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from stylegan.cluster.session import connect, import_ray, is_shared, ray_session, shared_environment
from stylegan.config.sections import RayConfig


def test_ray_starts_at_its_first_use_and_ends_with_the_session_that_started_it():
    import ray

    with ray_session():
        assert not ray.is_initialized()
        with ray_session():
            connect(RayConfig())
            assert ray.is_initialized()
        assert not ray.is_initialized()
        connect(RayConfig())
        with ray_session():
            connect(RayConfig())  # a second time changes nothing
        assert ray.is_initialized()
    assert not ray.is_initialized()


SHARES = """
import ray
from stylegan.cluster.session import connect, is_shared, ray_session
from stylegan.config.sections import RayConfig
with ray_session():
    connect(RayConfig())
    print(is_shared(), ray.get_runtime_context().gcs_address, ray.cluster_resources()["CPU"])
"""


def test_a_process_of_a_sweep_shares_the_ray_of_the_one_that_started_it():
    """It joins it with its token, and leaves it as it was."""
    import ray

    with ray_session():
        connect(RayConfig())
        assert not is_shared()
        env = os.environ | shared_environment() | {"RAY_ADDRESS": "127.0.0.1:1"}
        done = subprocess.run([sys.executable, "-c", SHARES], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        own = (ray.get_runtime_context().gcs_address, ray.cluster_resources()["CPU"])
        assert done.stdout.split() == ["True", *map(str, own)]
        assert ray.is_initialized()


ALONE = """
import os, signal, sys
from stylegan.cluster.session import connect, ray_session
from stylegan.config.sections import RayConfig

def handler(number, frame):
    raise KeyboardInterrupt

def settings():
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_") and name != "RAY_CLIENT_MODE"}

signal.signal(signal.SIGTERM, handler)
before, tokens = settings(), []
for _ in range(int(sys.argv[1])):
    with ray_session():
        connect(RayConfig())
        import ray
        there = ray.get(ray.remote(settings).remote())
        assert there["RAY_ADDRESS"] == ray.get_runtime_context().gcs_address  # its processes follow no other
        assert there["RAY_AUTH_MODE"] == "token"
        tokens.append(there["RAY_AUTH_TOKEN"])
        assert not settings().keys() & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_GCS_SERVER_PORT"}
        assert signal.getsignal(signal.SIGTERM) is handler
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            print("interrupted")
    assert settings() == before, settings()
assert len(set(tokens)) == len(tokens)
from ray._raylet import AuthenticationMode, get_authentication_mode
assert get_authentication_mode() == AuthenticationMode.DISABLED
"""


@pytest.mark.parametrize(("home", "times"), [("fresh", 2), ("none", 1)])
def test_a_ray_of_its_own_is_alone_and_leaves_nothing_behind(home, times, tmp_path):
    """Whatever RAY_ADDRESS and the file of another cluster say. Its token stays in the environment of its own processes.

    It leaves the handler of SIGTERM: Ray's own would abort with a stack of C++. A process of its own, as the first session
    of a process is the one that Ray's C++ code would remember.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets allow short paths only
    try:
        (folder / "ray").mkdir()
        (folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
        env |= {"RAY_ADDRESS": "127.0.0.1:9", "RAY_TMPDIR": str(folder)}
        env |= {"HOME": str(tmp_path) if home == "fresh" else "/dev/null"}
        done = subprocess.run(
            [sys.executable, "-c", ALONE, str(times)], env=env, capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n" * times), done.stderr
    assert not (tmp_path / ".ray").exists()


def test_a_ray_of_our_own_that_cannot_start_says_what_it_needs(tmp_path):
    """Its sockets are files, whose paths have at most 107 characters. A process of its own: Ray reads the folder once."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    code = "from stylegan.cluster.session import connect; from stylegan.config.sections import RayConfig; connect(RayConfig())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    line = done.stderr.splitlines()[-1]
    assert "Ray did not start on this machine (OSError: " in line
    assert f"20 free ports, room in /dev/shm, and space and short paths in RAY_TMPDIR; {folder}/ray/" in line


def test_what_ray_prints_is_on_standard_error(capsys):
    """A raylet warns of many idle workers, say; `--json` prints one line, and nothing else may be beside it."""
    import_ray()
    import_ray()
    from ray._private import worker

    worker.print_to_stdstream({"lines": ["many workers"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("many workers") == 1


def test_a_process_that_waits_for_a_lost_head_asks_it_a_few_times_a_second():
    """Ray itself asks tens of thousands of times, which keeps a CPU busy."""
    import_ray()
    import_ray()
    from ray._raylet import GcsErrorSubscriber

    subscriber, asked, end = GcsErrorSubscriber(address="127.0.0.1:1"), 0, time.monotonic() + 1
    while time.monotonic() < end:
        assert subscriber.poll() == (None, None)
        asked += 1
    assert 1 <= asked <= 5
