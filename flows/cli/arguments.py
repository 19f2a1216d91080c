"""Arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

from cyclopts import Parameter, Token

from stylegan.config.file import load
from stylegan.config.tree import Config
from stylegan.config.yaml_text import read_argument
from stylegan.errors import ConfigError


def _whole(_hint: Any, tokens: Sequence[Token]) -> int:
    value = _read(tokens)
    if type(value) is not int:
        raise ValueError(f"{tokens[0].value!r} is no whole number")
    return value


def _number(_hint: Any, tokens: Sequence[Token]) -> float:
    value = _read(tokens)
    if value in ("nan", "inf", "-inf"):  # the command refuses them with its bounds
        return float(value)
    if type(value) not in (int, float):
        raise ValueError(f"{tokens[0].value!r} is no number")
    return float(value)


def _read(tokens: Sequence[Token]) -> Any:
    with suppress(ConfigError):
        return read_argument(tokens[0].value, "")
    return None


# Numbers of options are those of a config: 7.6 is no whole number, 1_0 and 010 are none at all.
Whole = Annotated[int, Parameter(converter=_whole)]
Number = Annotated[float, Parameter(converter=_number)]

ConfigFile = Annotated[str, Parameter(help="YAML file of the run, such as configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    Parameter(name=["--set", "-s"], negative="", help="Override a value of the config: key.path=value. Repeatable."),
]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print the record as one JSON line on standard output.")
]
OutputFile = Annotated[str, Parameter(allow_leading_hyphen=True)]  # `-` is standard output
RegistryConfig = Annotated[
    str | None, Parameter(name="--config", help="Config that names the MLflow registry; unset is MLFLOW_TRACKING_URI.")
]


def is_config_file(argument: str) -> bool:
    """Return whether an argument that may also name a model is the YAML file of a run."""
    return argument.endswith((".yaml", ".yml")) and not os.path.isdir(argument)


def registry_config(config: str | None, overrides: list[str] | None) -> Config | None:
    """Load the config that names the registry and the storage root, if one is given.

    Raises:
        ConfigError: overrides without a config, or the config is not valid.
    """
    if config is None and overrides:
        raise ConfigError("--set needs --config FILE here, the config whose values it changes")
    return load(config, overrides or []) if config is not None else None
