"""Serve a model as a web app; an alias in the registry is followed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import ConfigDict, ValidationError
from starlette.types import ASGIApp

from stylegan import storage
from stylegan.cluster.replicas import replicated
from stylegan.config.file import load
from stylegan.config.tree import Config
from stylegan.drawing.device import ALLOWED, AUTO, FORM, choose_device
from stylegan.drawing.perceptual import perceptual_distance
from stylegan.errors import ConfigError
from stylegan.networks.generator import Generator
from stylegan.records import Record
from stylegan.serving.app import make_app
from stylegan.serving.models import Found, Models, ProjectionMeans
from stylegan.serving.server import bind, check_access, run, url_of
from stylegan.training.state import MARKER, read_checkpoint
from stylegan.verbs.find_model import SHORT_VERSION, find_model
from stylegan.verbs.project import check_projects, convert_picture, picture_settings

MOST_PICTURE_PIXELS = 2**25  # of an uploaded picture
TOKEN_VARIABLE = "STYLEGAN_SERVE_TOKEN"


class Serving(Record):
    """A server that is ready.

    Attributes:
        url: of its page.
        name: the model.
        version: its number in the registry, or the beginning of its digest.
        alias: the alias that is followed.
        checkpoint_uri: the folder of its checkpoint.
        device: on which it draws.
    """

    url: str
    name: str
    version: str
    alias: str | None
    checkpoint_uri: str
    device: str


def serve(
    config: Config | None,
    model: str,
    *,
    host: str,
    port: int,
    token: str | None,
    device: str,
    ready: Callable[[Serving], None],
) -> None:
    """Serve a model until the process is interrupted.

    Args:
        config, model: as for `find_model`.
        host, port: where; see `bind`.
        token: what whoever asks must know; None takes that of STYLEGAN_SERVE_TOKEN, if it is set.
        device: on which it draws; see `choose_device`.
        ready: is called once when requests can come.

    Raises:
        ConfigError, StepError: a value is not allowed, or there is no such model.
        KeyboardInterrupt: the process was interrupted; the requests under way have ended.
    """
    token = token if token is not None else os.environ.get(TOKEN_VARIABLE) or None
    check_access(host, token)
    device = choose_device(device)
    with bind(host, port) as sock:
        models = Models(partial(find, config, model), device, partial(projection_means, config, device))
        current = models.current
        record = Serving(
            url=url_of(sock, host),
            name=current.found.name,
            version=current.version,
            alias=current.found.alias,
            checkpoint_uri=current.found.checkpoint_uri,
            device=device,
        )
        run(make_app(models, token=token), sock, lambda: ready(record))


class Replicas(Record):
    """The arguments of `replicas`, in a config of Ray Serve.

    Attributes:
        model: as for `find_model`.
        config: path of the YAML file that names the registry, which every node can read; None as for the verb.
        device: of each replica; see `choose_device`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    config: str | None = None
    device: str = AUTO


def replicas(arguments: dict[str, Any]) -> Any:
    """Return the app as an application of Ray Serve, which imports this function by its name in infra/serve.yaml.

    Each replica loads the model and follows its alias. There are no projections: they live in the memory of one process.
    STYLEGAN_SERVE_TOKEN in the environment of the replicas is the token.

    Args:
        arguments: see `Replicas`.

    Raises:
        ConfigError: they are not valid, or Ray Serve is not installed.
    """
    try:
        given = Replicas.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"args.{place}: {first['msg']}; the arguments are model, config and device") from None
    if given.device != AUTO and not FORM.fullmatch(given.device):  # whether it is there, only a replica can say
        raise ConfigError(f"args.device: {given.device}: must be {ALLOWED}")
    return replicated(partial(_replica, given), name="stylegan")


def _replica(arguments: Replicas) -> ASGIApp:
    """Make the app of one replica."""
    config = load(arguments.config) if arguments.config else None
    token = os.environ.get(TOKEN_VARIABLE) or None
    check_access("localhost", token)
    device = choose_device(arguments.device)
    models = Models(partial(find, config, arguments.model), device, _no_projections)
    return make_app(models, token=token)


def _no_projections(found: Found, generator: Generator) -> ProjectionMeans:
    raise ConfigError("replicas do not share projections; a single server has them")


def find(config: Config | None, model: str) -> Found:
    """Return what a text names at this moment. Arguments and errors as for `find_model`."""
    found = find_model(config, model)
    alias = None
    name, version = found.name, None
    if found.kind == "version":
        name, _, version = found.name.rpartition(" version ")
        short = re.fullmatch(SHORT_VERSION, model.removeprefix("models:/"))
        alias = short[2][1:] if short and short[2].startswith("@") else None
    if found.run_uri:
        run_id: str | None = storage.name(found.run_uri)
    elif storage.exists(storage.join(found.checkpoint_uri, MARKER)):
        run_id = read_checkpoint(found.checkpoint_uri).run_id
    else:
        run_id = None
    return Found(name, version, alias, run_id, found.run_uri, found.checkpoint_uri)


def projection_means(config: Config | None, device: str, found: Found, generator: Generator) -> ProjectionMeans:
    """Return what pictures are projected with, as the verb `project` does it.

    Raises:
        ConfigError, DamagedError: the generator has no w, there is no network to compare images with, or the run is damaged.
    """
    check_projects(generator, found.name)
    distance = perceptual_distance(generator, found.run_uri, config=config, device=device)
    data = picture_settings(found.run_uri, config, generator).data
    limited = data.model_copy(update={"max_pixels": min(data.max_pixels, MOST_PICTURE_PIXELS)})
    return ProjectionMeans(partial(convert_picture, data=limited), distance)
