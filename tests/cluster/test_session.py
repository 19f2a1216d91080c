"""The Ray session: addresses where nothing answers, and who leaves Ray at the end."""

import os
import socket
import subprocess
import sys

import pytest

from stylegan.cluster.session import check_address, connect, ray_session
from stylegan.config.sections import RayConfig
from stylegan.errors import StepError


def test_a_closed_port_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(StepError, match=f"ray.address={address}: nothing answers there .* or leave it unset"):
        check_address(RayConfig(address=address))


@pytest.mark.parametrize("address", [None, "auto", "ray://host:10001"])
def test_addresses_that_ray_resolves_itself_are_not_checked(address):
    check_address(RayConfig(address=address))


def test_an_open_port_is_enough():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(RayConfig(address=f"127.0.0.1:{server.getsockname()[1]}"))


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


WITHOUT_HOME = """
import signal
from stylegan.cluster.session import connect, ray_session
from stylegan.config.sections import RayConfig

def handler(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, handler)
with ray_session():
    connect(RayConfig())
    import ray
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    assert signal.getsignal(signal.SIGTERM) is handler
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_ray_starts_without_a_home_and_leaves_the_handler_of_sigterm():
    """The token of a Ray of our own stays in the environment. Ray's own handler would abort with a stack of C++.

    In a process of its own: Ray's C++ code keeps the token of the first session of a process.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", WITHOUT_HOME]
    done = subprocess.run(
        command, env=env | {"HOME": "/dev/null"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


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
