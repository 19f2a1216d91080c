"""Read a config from a YAML file, its `base:` files and `--set` overrides; write one as YAML.

    name: faces
    base: common.yaml       # relative to this file; this file replaces its values key by key

Every mistake is a ConfigError of one line.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from stylegan.config.tree import Config
from stylegan.config.yaml_text import Keys, read_argument, write
from stylegan.config.yaml_text import read as read_yaml
from stylegan.errors import ConfigError
from stylegan.uris import redact

MAX_BYTES = 2**20  # of a file; a device or a picture may have no end
MAX_SHOWN = 200  # characters of a wrong value in a message
MAX_LISTED = 6  # config files in a message
ENDINGS = (".yaml", ".yml")
SHIPPED = Path(__file__).parents[2] / "configs"  # in a clone of the repository; else it does not exist
# Pydantic's errors about types, as what is allowed.
_TYPES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list such as [a, b]",
    "dict_type": "must be a table such as {a: 1}",
    "model_type": "must be a section, a table of keys",
    "model_attributes_type": "must be a section, a table of keys",
}


@dataclass
class _Tree:
    """The plain values of a config, and the place that each was read from: `faces.yaml: line 3`, "" for `--set`."""

    values: dict[Any, Any]
    places: dict[Keys, str]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, merge and check a config.

    Args:
        path: YAML file; a `base:` key names another one (relative to it) whose values it replaces key by key.
        overrides: `key.path=value` strings; later ones win. A value is read as YAML, but text without quotes is taken
            whole: `data.source=/data/set #2`. A list needs no brackets, which shells would have quoted:
            `evaluation.metrics=fid,pr`.

    Raises:
        ConfigError: file missing, not YAML, unknown key or value not allowed; the message is one line.
    """
    if not str(path):
        raise ConfigError("the path of the config is empty; give that of a YAML file such as configs/quickstart.yaml")
    config = _build(_read_with_bases(Path(path), ()), str(path), overrides)
    config._arguments = (str(path), *(argument for override in overrides for argument in ("--set", override)))
    return config


def build(tree: dict[str, Any], origin: str = "config", overrides: Sequence[str] = ()) -> Config:
    """Check plain values, as Python or JSON has them, and return them as a `Config`.

    Args:
        tree: the values as nested dicts; not changed. The keys of tables by resolution may be text, as in JSON.
        origin: named in errors.
        overrides: as in `load`.

    Raises:
        ConfigError: as in `load`.
    """
    return _build(_Tree(copy.deepcopy(tree), {}), origin, overrides)


def read(text: str, origin: str, overrides: Sequence[str] = ()) -> Config:
    """Check the text of a complete config, as `dump` writes it, and return it as a `Config`.

    Args:
        text: YAML without a `base:`.
        origin: named in errors.
        overrides: as in `load`.

    Raises:
        ConfigError: as in `load`.
    """
    return _build(_parse(text, origin), origin, overrides)


def _build(tree: _Tree, origin: str, overrides: Sequence[str]) -> Config:
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate(tree.values)
    except ValidationError as error:
        place, problem = _explain(error, tree.places)
        raise ConfigError(f"{place or origin}: {problem}") from None


def dump(config: Config) -> str:
    """Return the complete config as YAML; `load` reads it back."""
    return write(config.model_dump(mode="json"))


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


# Settings of where a run works and what it shows: they differ without anything being trained or measured differently.
_OF_PLACE = ("name", "base", "storage.", "ray.", "tracking.", "registry.", "snapshots.", "retrain.", "retention.")


def is_of_place(key: str) -> bool:
    """Return whether a dotted key decides where a run works or what it shows, and nothing that is trained or measured."""
    return any(key.startswith(part) if part.endswith(".") else key == part for part in _OF_PLACE)


def _parse(text: str, origin: str) -> _Tree:
    """Read YAML text as plain values. Raises ConfigError: not YAML, or something else than `key: value` lines."""
    found = read_yaml(text, origin)
    if not isinstance(found.value, dict):
        kind = {"NoneType": "nothing", "list": "a list"}.get(type(found.value).__name__, "a single value")
        raise ConfigError(f"{origin}: must hold `key: value` lines, found {kind}; see configs/quickstart.yaml")
    return _Tree(found.value, {keys: f"{origin}: line {line}" for keys, line in found.lines.items()})


def _read_with_bases(path: Path, above: tuple[Path, ...]) -> _Tree:
    """Read a file and the files below its `base:` keys; `above` are the files that led to it."""
    try:
        real = path.resolve()
        if real in above:
            raise ConfigError(f"{path}: its `base:` files lead back to itself; remove the loop")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path}: has more than {MAX_BYTES:,} bytes; give the path of a YAML file")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise _no_such_file(path) from None
    except IsADirectoryError:
        raise _is_a_folder(path) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: is not UTF-8 text; save the file as UTF-8") from None
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ConfigError(f"{path}: cannot be read as text ({error}); give the path of a YAML file") from None
    tree = _parse(text, str(path))
    base, place = tree.values.pop("base", None), tree.places.get(("base",), str(path))
    if base is None:
        return tree
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{place}: base={base!r}: must be the path of another config, relative to this one")
    return _merge(_read_with_bases(path.parent / base, (*above, real)), tree)


def _no_such_file(path: Path) -> ConfigError:
    """Return the error for a config file that does not exist: with the one that was meant, or with those that are there."""
    key = str(path).partition("=")[0]
    if "=" in str(path) and is_key(key):
        return ConfigError(
            f"{path}: is no config file, but a value of the config; give it after the file: --set {path}"
        )
    files = [*_configs(path.parent), *_configs(Path("configs")), *_configs(SHIPPED)]
    by_stem = {file.stem: file for file in reversed(files)}
    near = difflib.get_close_matches(path.stem, by_stem, n=1)
    if near:
        right = _as_short(by_stem[near[0]])
        return ConfigError(f"{path}: no such config file; did you mean {right}?", instead=(str(path), right))
    listed = list(dict.fromkeys(map(_as_short, files)))[:MAX_LISTED]
    there = (
        f"there are {', '.join(listed)}" if listed else "give the path of a YAML file such as configs/quickstart.yaml"
    )
    return ConfigError(f"{path}: no such config file; {there}")


def _is_a_folder(path: Path) -> ConfigError:
    """Return the error for a folder in place of a config file."""
    files = [_as_short(file) for file in _configs(path)]
    if len(files) == 1:
        return ConfigError(f"{path}: is a folder; did you mean {files[0]}?", instead=(str(path), files[0]))
    if files:
        more = " ..." if len(files) > MAX_LISTED else ""
        return ConfigError(f"{path}: is a folder; give a config file of it: {', '.join(files[:MAX_LISTED])}{more}")
    return ConfigError(
        f"{path}: is a folder, and a config is a YAML file; images are named in it: `data: {{source: {path}, resolution: 64}}`"
    )


def _configs(folder: Path) -> list[Path]:
    """Return the YAML files in a folder; none if it cannot be listed."""
    with suppress(OSError):
        return sorted(file for file in folder.iterdir() if file.suffix in ENDINGS and file.name[0] != ".")
    return []


def _as_short(file: Path) -> str:
    """Return the path of a file from the working folder, if that is not longer."""
    return min(str(file), os.path.relpath(file), key=len)


def _merge(base: _Tree, changes: _Tree) -> _Tree:
    """Return `base` with its values replaced by those of `changes`, key by key at every depth."""

    def replace(old: dict[Any, Any], new: dict[Any, Any], path: Keys) -> dict[Any, Any]:
        merged = dict(old)
        for key, value in new.items():
            below, here = (*path, str(key)), merged.get(key)
            if isinstance(here, dict) and isinstance(value, dict):
                merged[key] = replace(here, value, below)
            else:
                _forget(places, below)
                merged[key] = value
        return merged

    places = dict(base.places)
    values = replace(base.values, changes.values, ())
    return _Tree(values, places | changes.places)


def _forget(places: dict[Keys, str], path: Keys) -> None:
    """Remove the places of a value that is replaced, and of all values in it."""
    for keys in [keys for keys in places if keys[: len(path)] == path]:
        del places[keys]


def _apply_override(tree: _Tree, override: str) -> None:
    """Change `tree` in place as a `key.path=value` string says."""
    place = f"--set {override}"
    keys, equals, text = override.partition("=")
    path = tuple(keys.strip().split("."))
    if not equals or not all(path):
        raise ConfigError(f"{place}: must be key.path=value, e.g. --set {_with_equals(override)}")
    value = read_argument(text, place)
    if _is_list(path) and value is not None and not isinstance(value, list):
        value = read_argument(f"[{text}]", place)

    # Walk down to the dict that contains the last key; make what is missing on the way.
    node = tree.values
    for depth in range(1, len(path)):
        key = _key_in(node, path[depth - 1])
        child = node.get(key)
        if child is None:
            child = node[key] = _default_table(path[:depth])
        elif not isinstance(child, dict):
            if not _is_table(path[:depth]):
                raise ConfigError(f"{place}: {'.'.join(path[:depth])} is a single value; it has no key {path[depth]}")
            child = node[key] = {4: child}  # a plain value stands for all resolutions
        node = child
    node[_key_in(node, path[-1])] = value
    _forget(tree.places, path)
    tree.places[path] = ""


def _with_equals(override: str) -> str:
    """Return what an override without `=` was meant to be, an example if that is not clear."""
    key, _, value = re.sub(r"[:\s]+", " ", override.strip()).partition(" ")
    return f"{key}={value or 'VALUE'}" if is_key(key) else "training.batch=32"


def is_key(name: str) -> bool:
    """Return whether a dotted name is a key of the config, or a section."""
    return _field_at(name.split(".")) is not None


def keys_called(name: str) -> list[str]:
    """Return the keys of the config, outside tables by resolution, whose last part is this name."""

    def walk(path: tuple[str, ...]) -> Iterator[str]:
        section = _section_at(path)
        for key in section.model_fields if section else ():
            if key == name:
                yield ".".join((*path, key))
            elif _section_at((*path, key)):
                yield from walk((*path, key))

    return list(walk(()))


def _is_list(path: Keys) -> bool:
    """Return whether the value of the key at `path` is a list."""
    field = _field_at(path)
    return field is not None and get_origin(field.annotation) is tuple


def _key_in(node: dict[Any, Any], text: str) -> Any:
    """Return the key of a table that a part of a path means: one that is there as a number, else the text itself."""
    return next((key for key in node if str(key) == text), text)


def _is_table(path: Keys) -> bool:
    """Return whether the key at `path` has one value for all resolutions, or a table of them."""
    field = _field_at(path)
    kinds = [field.annotation, *get_args(field.annotation)] if field else []
    plain = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]
    return any(get_origin(kind) is dict and get_args(kind)[0] is int for kind in plain)


def _default_table(path: Keys) -> dict[Any, Any]:
    """Return the default table of the key at `path`, so that overriding one entry keeps the others; else {}."""
    field = _field_at(path)
    return dict(field.default) if field and isinstance(field.default, dict) else {}


def _explain(error: ValidationError, places: dict[Keys, str]) -> tuple[str, str]:
    """Return the place of the first problem, "" if it has none, and one line: key, value, what is allowed, the cure."""
    problem = min(error.errors(), key=_comes_later)
    location = [str(part) for part in problem["loc"] if not str(part).startswith("[")]
    key = ".".join(location) or "config"
    message = problem["msg"].removeprefix("Value error, ")
    if not location:  # a check of several values, whose message begins with the first key
        return _place(places, re.split("[=: ]", message)[0].split(".")), message
    place = _place(places, location)
    if problem["type"] == "extra_forbidden":
        return place, f"unknown key {key}; {_suggest(location)}"
    if problem["type"] == "missing":
        field = _field_at(location)
        meaning = field.description if field and field.description else "set it in the file or with --set"
        return place, f"{key} is missing; {meaning.rstrip('.')}"
    shown = f"{key}={_shown(problem['input'])}"
    field = _field_at(location)
    if problem["type"] == "string_pattern_mismatch" and field and field.description:
        return place, f"{shown}: has another form than is allowed: {field.description.rstrip('.')}"
    return place, f"{shown}: {_allowed(problem['type'], message, problem['input'])}"


def _place(places: dict[Keys, str], location: Sequence[str]) -> str:
    """Return the place of the innermost part of a key that was written anywhere; "" if it was not."""
    parts = (tuple(location[:depth]) for depth in range(len(location), 0, -1))
    return next((places[part] for part in parts if part in places), "")


def _shown(value: Any) -> str:
    text = redact(repr(value))  # before it is cut
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _allowed(kind: str, message: str, value: Any) -> str:
    """Return what is allowed in place of a value, and how to write it if it only has another type."""
    if kind not in _TYPES:
        return f"{message[0].lower()}{message[1:]}"
    if value is None:
        return f"{_TYPES[kind]}; write one, or remove the key to get its default"
    if kind == "string_type":
        return f"{_TYPES[kind]}; put it in quotes" if isinstance(value, bool | int | float) else _TYPES[kind]
    if kind == "tuple_type" and isinstance(value, str | int | float):
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else [value]
        return f"must be a list; write {write(items, inline=True)}"
    cure = _in_type(kind, value)
    return f"{_TYPES[kind]}; write {cure}" if cure else _TYPES[kind]


def _in_type(kind: str, value: Any) -> str | None:
    """Return a value as it is written in another type, None if that is not clear."""
    if kind == "bool_type":
        meant = {"yes": "true", "on": "true", "y": "true", "1": "true", "true": "true", "1.0": "true"}
        meant |= {"no": "false", "off": "false", "n": "false", "0": "false", "false": "false", "0.0": "false"}
        return meant.get(str(value).lower())
    if kind in ("int_type", "float_type") and isinstance(value, str | float):
        with suppress(ValueError, OverflowError):
            number = float(str(value).replace("_", ""))
            if not math.isfinite(number):
                return None
            return f"{int(number)}" if number.is_integer() else f"{number:g}" if kind == "float_type" else None
    return None


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


def _field_at(path: Sequence[str]) -> FieldInfo | None:
    """Return the field of the key at `path`, None if there is no such key."""
    section = _section_at(path[:-1])
    return section.model_fields.get(path[-1]) if section else None


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield the plain types of a union, however deep."""
    parts = get_args(annotation)
    if not parts or get_origin(annotation) is dict:
        yield annotation
    for part in parts:
        yield from _parts(part)


def _section_at(path: Sequence[str]) -> type[BaseModel] | None:
    """Return the model that checks the section at `path`, also inside a table by resolution: training.stages.8."""
    model: Any = Config
    for part in path:
        if get_origin(model) is dict:
            model = get_args(model)[1]
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
            if get_origin(model) is not dict:  # an optional section, or a section in place of a plain value
                model = next(
                    (part for part in _parts(model) if isinstance(part, type) and issubclass(part, BaseModel)), model
                )
        else:
            return None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None
