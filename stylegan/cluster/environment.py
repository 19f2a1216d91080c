"""The environment variables that Ray reads: change them for a while, and let Ray read them again."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# What a shell or a job of a cluster sets for another cluster; each would lead a Ray of its own, or a process that it starts,
# there.
OF_OTHERS = ("RAY_REDIS_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables in the block, or delete those that are None; afterwards they are as before."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def read_again() -> None:
    """Let Ray's C++ code read the variables again: it keeps the mode and the token of the first session of a process."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def has_token() -> bool:
    """Return whether the user has a token, in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Raises:
        ray.exceptions.AuthenticationError: RAY_AUTH_TOKEN_PATH names a file that cannot be read or is empty.
    """
    from ray._raylet import AuthenticationTokenLoader

    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def of_own_ray() -> dict[str, str | None]:
    """Return the variables with which a Ray on this machine starts: alone, at an address of its own, and with a token.

    Its processes know that address, so that none of them follows RAY_ADDRESS or the file of another cluster in Ray's
    temporary folder: Ray's state API, which Ray Train asks at the end of a stage, would wait for a dead one for minutes.

    The token is the user's own, or a new one. Ray itself would write one to ~/.ray/auth_token, which may not be writable,
    and which turns every later `ray start --head` of this user into a cluster with tokens.
    """
    from ray.util import get_node_ip_address

    values: dict[str, str | None] = dict.fromkeys(OF_OTHERS)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    values |= {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{get_node_ip_address()}:{port}"}
    values["GLOO_SOCKET_IFNAME"] = (
        "lo"  # or the ranks of a stage listen at the address that the name of the machine has
    )
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        values["RAY_AUTH_MODE"] = "token"
        if not has_token():
            values["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return values
