"""infra/compose.yaml as Docker Compose reads it: variables replaced, merges done."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

INFRA = Path(__file__).parents[1] / "infra"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")


class Unset(Exception):
    """A variable is not set that must be."""


def read(values: Mapping[str, str], name: str = "compose.yaml") -> dict[str, Any]:
    """Return a compose file with variables; as with Compose, an empty one counts as not set.

    Raises:
        Unset: one that must be set is not, with the message of the file.
    """

    def value(match: re.Match[str]) -> str:
        variable, kind, text = match.groups()
        if values.get(variable):
            return values[variable]
        if kind != ":-":
            raise Unset(f"{variable}: {text}")
        return text

    tree: dict[str, Any] = yaml.safe_load(VARIABLE.sub(value, (INFRA / name).read_text()))
    return tree


def variables(name: str = "compose.yaml") -> dict[str, str]:
    """Return the variables of a compose file with `:?` where it must be set and `:-` where it has a default."""
    return {variable: kind for variable, kind, _ in VARIABLE.findall((INFRA / name).read_text())}
