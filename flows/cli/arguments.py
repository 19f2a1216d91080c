"""Arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token

from flows.cli import supervisor
from stylegan.errors import ConfigError

if TYPE_CHECKING:
    from stylegan.config.sections import Metric, RayConfig
    from stylegan.config.tree import Config

    File = str
else:
    File = Path  # so that shells complete it as a file; a command gets the text as it was typed, which may be a URL

MAX_SEEDS = 10_000


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


def _as_typed(_hint: Any, tokens: Sequence[Token]) -> str:
    return tokens[0].value


def _all_as_typed(_hint: Any, tokens: Sequence[Token]) -> list[str]:
    return [token.value for token in tokens]


def _read(tokens: Sequence[Token]) -> Any:
    from stylegan.config.yaml_text import read_argument

    with suppress(ConfigError):
        return read_argument(tokens[0].value, "")
    return None


# Numbers of options are those of a config: 7.6 is no whole number, 1_0 and 010 are none at all.
Whole = Annotated[int, Parameter(converter=_whole)]
Number = Annotated[float, Parameter(converter=_number)]

# A path or URL, as it was typed.
AnyFile = Annotated[File, Parameter(converter=_as_typed)]
ConfigFile = Annotated[
    File, Parameter(converter=_as_typed, help="YAML file of the run, such as configs/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    Parameter(name=["--set", "-s"], negative="", help="Override a value of the config: key.path=value. Repeatable."),
]
AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print the record as one JSON line on standard output.")
]
# Several of them, by an option that may be repeated.
Files = Annotated[list[AnyFile] | None, Parameter(converter=_all_as_typed, negative="")]
Device = Annotated[str, Parameter(help="Torch device that draws: cpu, cuda, cuda:1; auto is a GPU if there is one.")]
# `-` is standard output.
OutputFile = Annotated[File, Parameter(converter=_as_typed, allow_leading_hyphen=True)]
RegistryConfig = Annotated[
    File | None,
    Parameter(
        converter=_as_typed,
        name="--config",
        help="Config that names the MLflow registry and storage.root; unset: MLFLOW_TRACKING_URI and stylegan-data.",
    ),
]


def is_config_file(argument: str) -> bool:
    """Return whether an argument that may also name a model is the YAML file of a run."""
    return argument.endswith((".yaml", ".yml")) and not os.path.isdir(argument)


def load(config: str, overrides: list[str] | None) -> Config:
    """Read a config and its overrides. Raises ConfigError of one line."""
    from stylegan.config import file  # takes half a second, which help and mistakes of usage need not wait for

    found = file.load(config, overrides or [])
    supervisor.allow(found.ray.stop_grace_s)
    return found


def ray_cluster(address: str) -> RayConfig:
    """Return the section `ray` of a config that names a cluster, from its `--address`. Raises ConfigError for another form."""
    from pydantic import ValidationError

    from stylegan.config.sections import RayConfig

    rule = "must be host:port of the head of a cluster (port 6379 by default), `auto`, or the URL of its dashboard"
    try:
        return RayConfig(address=address)
    except ValidationError:
        raise ConfigError(f"--address {address}: {rule}") from None


def registry_config(config: str | None, overrides: list[str] | None) -> Config | None:
    """Load the config that names the registry and the storage root, if one is given.

    Raises:
        ConfigError: overrides without a config, or the config is not valid.
    """
    if config is None and overrides:
        raise ConfigError("--set needs --config FILE here, the config whose values it changes")
    return load(config, overrides) if config is not None else None


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """Parse `0-3,7` to [0, 1, 2, 3, 7]. Raises ConfigError, which names the option, if it is not such a list."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if (
            not first.isdecimal()
            or (dash and not last.isdecimal())
            or max(len(first), len(last)) > 18
            or (dash and int(last) < int(first))
        ):
            raise ConfigError(f"{option} {text}: must be numbers and rising ranges, such as 0-15 or 1,5,9-12")
        count = int(last) - int(first) + 1 if dash else 1
        if len(seeds) + count > MAX_SEEDS:
            raise ConfigError(f"{option} {text}: at most {MAX_SEEDS} images in one grid")
        seeds += range(int(first), int(first) + count)
    return seeds


def parse_metrics(text: str) -> tuple[Metric, ...]:
    """Parse `fid,ppl` to names of metrics; `ppl` means the four path lengths. Raises ConfigError for an unknown name."""
    from stylegan.config.sections import METRICS

    found: list[Metric] = []
    for name in (part.strip() for part in text.split(",")):
        same = [metric for metric in METRICS if metric == name or (name == "ppl" and metric.startswith("ppl_"))]
        if not same:
            raise ConfigError(
                f"--metrics {text}: no metric is called {name!r}; known are {', '.join(METRICS)}, and ppl for all of ppl_*"
            )
        found += same
    return tuple(dict.fromkeys(found))
