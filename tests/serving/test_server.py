"""Where the server listens and who may reach it, checked before a model is read."""

import socket

import pytest

from stylegan.errors import ConfigError
from stylegan.serving.server import bind, check_access, url_of


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machine_needs_no_token(host):
    check_access(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gpu7.example.com", ""])
def test_any_other_host_needs_one(host):
    with pytest.raises(ConfigError, match="needs a token: set STYLEGAN_SERVE_TOKEN"):
        check_access(host, None)
    check_access(host, "correct-horse-battery")


@pytest.mark.parametrize(
    "token", ["", "short", "with blank here", "täglich-frisch", "a" * 201, "semi;colon;", 'quo"te"quote']
)
def test_a_token_must_fit_into_headers_cookies_and_addresses(token):
    with pytest.raises(ConfigError, match="--token: must be 8 to 200"):
        check_access("127.0.0.1", token)


def test_a_port_in_use_is_one_line():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert url_of(first, "127.0.0.1") == f"http://127.0.0.1:{port}/"
        with pytest.raises(ConfigError, match=f"--port {port}: is in use on 127.0.0.1; give another --port, or 0"):
            bind("127.0.0.1", port)
    bind("127.0.0.1", port).close()  # free again at once


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("127.0.0.1", -1, "--port -1: must be from 0"),
        ("127.0.0.1", 65536, "--port 65536: must be from 0"),
        ("no-such-host.invalid", 0, "--host no-such-host.invalid: cannot be used"),
        ("192.0.2.1", 0, "--host 192.0.2.1: cannot be used"),
    ],
)
def test_a_place_that_cannot_be_listened_on_is_one_line(host, port, says):
    with pytest.raises(ConfigError, match=says):
        bind(host, port)


def test_an_address_that_a_browser_can_open_is_told():
    with bind("0.0.0.0", 0) as every:
        assert url_of(every, "0.0.0.0") == f"http://{socket.gethostname()}:{every.getsockname()[1]}/"
