"""Replicas of a web app on a cluster: Ray Serve starts them, spreads the requests, and replaces those that die."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stylegan.commands import pip_install
from stylegan.errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def replicated(build: Callable[[], ASGIApp], *, name: str) -> Any:
    """Return an application of Ray Serve whose replicas each make the web app for themselves.

    Args:
        build: makes the app; picklable, called once in each replica.
        name: of the deployment, by which a config of Ray Serve sets its replicas and their resources.

    Raises:
        ConfigError: the packages that Ray Serve needs are not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        command = pip_install("stylegan-pipeline[serve]")
        raise ConfigError(f"Ray Serve cannot be imported ({error}); install what it needs: {command}") from error

    def make() -> ASGIApp:  # Ray Serve wants a function: it would call any other object to answer requests
        return build()

    return serve.deployment(serve.ingress(make)(), name=name).bind()
