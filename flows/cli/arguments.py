"""Arguments that several commands share."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter

from stylegan.config.file import load
from stylegan.config.tree import Config
from stylegan.errors import ConfigError

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
    return load(config, overrides or []) if config else None
