"""The Ray session: addresses where nothing answers, and who leaves Ray at the end."""

import signal
import socket

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


def test_ray_starts_without_a_home_and_leaves_the_handler_of_sigterm(monkeypatch):
    """The token of a Ray of our own stays in the environment. Ray's own handler would abort with a stack of C++."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null")

    def handler(_number, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with ray_session():
            connect(RayConfig())
            assert signal.getsignal(signal.SIGTERM) is handler
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
