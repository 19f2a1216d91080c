"""A config from a YAML file, its `base:` files and `--set` overrides; every mistake is one line.

name: faces
base: common.yaml       # relative to this file; replaced key by key
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from stylegan.config.tree import Config
from stylegan.errors import ConfigError


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, merge and check a config.

    Args:
        path: YAML file; a `base:` key names another one (relative to it) whose values it replaces key by key.
        overrides: `key.path=value` strings, the value read as YAML; later ones win.

    Raises:
        ConfigError: file missing, not YAML, unknown key or value not allowed; the message is one line.
    """
    tree = _read(Path(path), ())
    return build(tree, str(path), overrides)


def build(tree: dict[str, Any], origin: str = "config", overrides: Sequence[str] = ()) -> Config:
    """A checked `Config` from plain values, changed by `overrides` as in `load`; `origin` is named in errors.

    Raises:
        ConfigError: as in `load`.
    """
    if overrides:
        tree = copy.deepcopy(tree)
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error, tree)}") from None


def dump(config: Config) -> str:
    """The resolved config as YAML; `load` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: Config) -> dict[str, str]:
    """Every value by its dotted key, as text (for MLflow params)."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    walk("", config.model_dump(mode="json"))
    return flat


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: its `base:` files lead back to itself; remove the loop")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such config file; give the path of a YAML file such as configs/quickstart.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}); give the path of a YAML file") from None
    tree = parse(text, str(path))
    base = tree.pop("base", None)
    return tree if base is None else _merge(_read(path.parent / str(base), (*seen, path.resolve())), tree)


def parse(text: str, origin: str) -> dict[str, Any]:
    """The plain values in YAML text; `origin` is named in errors. Raises ConfigError if they are none."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise ConfigError(
            f"{origin}: not valid YAML{line} ({getattr(error, 'problem', None) or 'unreadable'}); mend the file"
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{origin}: must hold `key: value` lines, found {type(tree).__name__}; see configs/quickstart.yaml"
        )
    return tree


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    keys, equals, text = override.partition("=")
    if not equals or not all(keys.split(".")):
        raise ConfigError(f"--set {override}: must be key.path=value, e.g. --set training.batch=32")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    node: dict[Any, Any] = tree
    *path, last = (int(key) if key.isdecimal() else key for key in keys.split("."))
    for depth, key in enumerate(path):
        child = node.get(key)
        if child is None:
            child = node[key] = _default_table([str(part) for part in path[: depth + 1]])
        elif not isinstance(child, dict):  # a plain value stands for all resolutions
            child = node[key] = {4: child}
        node = child
    node[last] = value


def _default_table(path: list[str]) -> dict[Any, Any]:
    """What an override of one entry starts from: the default table, so that the other resolutions keep their values."""
    section = _section(path[:-1])
    field = section.model_fields.get(path[-1]) if section else None
    return dict(field.default) if field and isinstance(field.default, dict) else {}


def _explain(error: ValidationError, tree: dict[str, Any]) -> str:
    """The first problem, in one line: key, value, what is allowed."""
    # A misspelt key explains a missing one, so it is told first.
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        section = _section(location[:-1])
        names = list(section.model_fields) if section else []
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known here: {', '.join(names)}"
        return f"unknown key {key}; {hint}"
    if problem["type"] == "missing":
        return f"{key} is missing; {_describe(location)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not location:
        return message
    return f"{key}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def _describe(location: list[str]) -> str:
    section = _section(location[:-1])
    field = section.model_fields.get(location[-1]) if section else None
    return (field.description if field and field.description else "set it in the file or with --set").rstrip(".")


def _section(path: list[str]) -> type[BaseModel] | None:
    """The model that checks the section at `path`, also inside a table by resolution such as training.stages.8."""
    model: Any = Config
    for part in path:
        if get_origin(model) is dict:
            model = get_args(model)[1]
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
            if type(None) in get_args(model):  # an optional section
                model = get_args(model)[0]
        else:
            return None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None
