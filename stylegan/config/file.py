"""Read a config from a YAML file, its `base:` files and `--set` overrides; write one as YAML.

    name: faces
    base: common.yaml       # relative to this file; this file replaces its values key by key

Every mistake is a ConfigError of one line.
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
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

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
    config = build(_read_with_bases(Path(path), ()), str(path), overrides)
    config._arguments = (str(path), *(argument for override in overrides for argument in ("--set", override)))
    return config


def build(tree: dict[str, Any], origin: str = "config", overrides: Sequence[str] = ()) -> Config:
    """Check plain values and return them as a `Config`.

    Args:
        tree: the values as nested dicts; not changed.
        origin: named in errors.
        overrides: as in `load`.

    Raises:
        ConfigError: as in `load`.
    """
    if overrides:
        tree = copy.deepcopy(tree)
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(error)}") from None


def dump(config: Config) -> str:
    """Return the complete config as YAML; `load` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: Config) -> dict[str, str]:
    """Return every value as text, by its dotted key (for MLflow params)."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value)

    walk("", config.model_dump(mode="json"))
    return flat


def parse(text: str, origin: str) -> dict[str, Any]:
    """Read YAML text as a dict of plain values.

    Args:
        text: `key: value` lines.
        origin: named in errors.

    Raises:
        ConfigError: not YAML, or something else than `key: value` lines.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "unreadable"
        raise ConfigError(f"{origin}: not valid YAML{line} ({reason}); correct the file") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{origin}: must hold `key: value` lines, found {type(tree).__name__}; see configs/quickstart.yaml"
        )
    return tree


def _read_with_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file and the files below its `base:` keys; `above` are the files that led to it."""
    if path.resolve() in above:
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
    if base is None:
        return tree
    return _merge(_read_with_bases(path.parent / str(base), (*above, path.resolve())), tree)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with its values replaced by those of `changes`, key by key at every depth."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Change `tree` in place as a `key.path=value` string says."""
    keys, equals, text = override.partition("=")
    if not equals or not all(keys.split(".")):
        raise ConfigError(f"--set {override}: must be key.path=value, e.g. --set training.batch=32")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text

    # Walk down to the dict that contains the last key; make what is missing on the way.
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
    """Return the default table of the key at `path`, so that overriding one entry keeps the others; else {}."""
    field = _field_at(path)
    return dict(field.default) if field and isinstance(field.default, dict) else {}


def _explain(error: ValidationError) -> str:
    """Return one line about the first problem: key, value and what is allowed."""
    problem = min(error.errors(), key=_comes_later)
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "config"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; {_suggest(location)}"
    if problem["type"] == "missing":
        field = _field_at(location)
        meaning = field.description if field and field.description else "set it in the file or with --set"
        return f"{key} is missing; {meaning.rstrip('.')}"
    message = problem["msg"].removeprefix("Value error, ")
    if not location:
        return message
    return f"{key}={problem['input']!r}: {message[0].lower()}{message[1:]}"


def _comes_later(problem: ErrorDetails) -> bool:
    """Return False for an unknown key, which is reported first: misspelling a key also makes the right one missing."""
    return problem["type"] != "extra_forbidden"


def _suggest(location: list[str]) -> str:
    """Return the known key that is most like an unknown one, or all known keys of its section."""
    section = _section_at(location[:-1])
    names = list(section.model_fields) if section else []
    near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {'.'.join([*location[:-1], near[0]])}?"
    return f"known here: {', '.join(names)}"


def _field_at(path: list[str]) -> FieldInfo | None:
    """Return the field of the key at `path`, None if there is no such key."""
    section = _section_at(path[:-1])
    return section.model_fields.get(path[-1]) if section else None


def _section_at(path: list[str]) -> type[BaseModel] | None:
    """Return the model that checks the section at `path`, also inside a table by resolution: training.stages.8."""
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
