"""The reference of the config, generated from its fields: tables in configs/README.md and a JSON schema for editors.

    python -m stylegan.config.reference            # write both files
    python -m stylegan.config.reference --check    # exit with 1 if one of them is stale

The schema describes what the loader reads, which is more than a complete config: a `base:` key, keys that the base
supplies, and a plain value in place of a table by resolution. It does not know whether values fit together; `checks.py`
does. The tables are rendered from the schema, so the two cannot disagree.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from stylegan.config.resolutions import RESOLUTIONS, spread
from stylegan.config.tree import Config
from stylegan.config.yaml_text import write

FOLDER = Path(__file__).parents[2] / "configs"
README, SCHEMA = FOLDER / "README.md", FOLDER / "config.schema.json"
SOURCE = "stylegan/config/sections.py"
BEGIN = f"<!-- Begin of the part that `make config-reference` writes from {SOURCE}. -->\n"
END = "<!-- End of the part that `make config-reference` writes. -->\n"

Schema = dict[str, Any]
BASE: Schema = {
    "type": "string",
    "description": "Another config file, relative to this one, whose values this file replaces key by key.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files that are stale, or with `--check` only name them.

    Returns:
        The exit code: 1 if `--check` finds a stale file or configs/README.md lacks its marker comments, else 0.
    """
    description = "Document the config."
    return write_stale(
        render_files,
        arguments,
        module="stylegan.config.reference",
        make="config-reference",
        source=SOURCE,
        about=description,
    )


def write_stale(
    render: Callable[[], dict[Path, str]],
    arguments: Sequence[str] | None,
    *,
    module: str,
    make: str,
    source: str,
    about: str,
) -> int:
    """Run the command of a module that writes generated files: write those that are stale, or with `--check` name them.

    Args:
        render: returns the text that each file must have, and raises ValueError if that cannot be said.
        arguments: of the command line.
        module: the name of the module.
        make: the target of the Makefile that calls it.
        source: the file that the text follows from.
        about: what the command is for.

    Returns:
        The exit code: 1 if `--check` finds a stale file or `render` fails, else 0.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    check = parser.parse_args(arguments).check

    try:
        files = render()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [path for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text]
    names = " and ".join(f"{path.parent.name}/{path.name}" for path in stale)

    if check and stale:
        print(f"{names}: does not match {source}; run `make {make}`", file=sys.stderr)
        return 1
    for path in stale:
        path.write_text(files[path], "utf-8")
    if stale:
        print(f"wrote {names}")
    return 0


def render_files() -> dict[Path, str]:
    """Return the text that each generated file must have.

    Raises:
        ValueError: configs/README.md lacks one of the two marker comments.
    """
    readme = replace_between(README, BEGIN, END, markdown())
    return {README: readme, SCHEMA: json.dumps(json_schema(), indent=2) + "\n"}


def replace_between(path: Path, begin: str, end: str, text: str) -> str:
    """Return a file's text with `text` between two marker comments, each a line of its own.

    Raises:
        ValueError: the file lacks one of them.
    """
    before, found_begin, rest = path.read_text("utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{path}: lacks the comments {begin.strip()} and {end.strip()}; restore them")
    return f"{before}{begin}\n{text}\n{end}{after}"


# The JSON schema.


class _LoaderSchema(GenerateJsonSchema):
    """Pydantic's generator, with the tables by resolution as the loader reads them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out the titles of fields, which repeat their names."""
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Restrict whole-number keys to resolutions; JSON knows the keys of a YAML table as strings only."""
        table = super().dict_schema(schema)
        if schema.get("keys_schema", {}).get("type") == "int":
            table["propertyNames"] = {"enum": [str(resolution) for resolution in RESOLUTIONS]}
        return table

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Accept a plain value wherever the loader spreads it over all resolutions."""
        table = super().function_before_schema(schema)
        if schema["function"]["function"] is not spread:
            return table
        value = table["additionalProperties"]
        return {"anyOf": [*value.get("anyOf", [value]), table]}


def json_schema() -> Schema:
    """Return the JSON schema (draft 7) of a config file. It contains no references, so every editor understands it."""
    generated = Config.model_json_schema(schema_generator=_LoaderSchema)
    definitions = generated.pop("$defs")
    schema = _inline(generated, definitions)
    required = _remove_required(schema)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Config of the StyleGAN pipeline",
        "type": "object",
        "additionalProperties": False,
        "properties": {"base": BASE, **schema["properties"]},
        # A base supplies what a file lacks.
        "if": {"not": {"required": ["base"]}},
        "then": required,
    }


def _inline(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return a schema with every reference replaced by its definition, and without titles and defaults of sections."""
    reference = schema.get("$ref")
    if reference:
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return _inline({**definitions[reference.removeprefix("#/$defs/")], **own}, definitions)

    inlined: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            inlined[key] = {name: _inline(part, definitions) for name, part in value.items()}
        elif key in ("anyOf", "oneOf"):
            parts = [_inline(part, definitions) for part in value]
            inlined["anyOf"] = [option for part in parts for option in part.get("anyOf", [part])]
        elif key in ("additionalProperties", "items") and isinstance(value, dict):
            inlined[key] = _inline(value, definitions)
        elif key in ("title", "discriminator") or (key == "default" and "properties" in schema):
            continue
        elif key == "default":
            inlined[key] = _shortest(value)
        else:
            inlined[key] = value
    return inlined


def _shortest(default: Any) -> Any:
    """Return a default as people write it: a plain value for a table with one entry, and whole numbers without `.0`."""
    if isinstance(default, dict):
        return _shortest(default["4"]) if list(default) == ["4"] else {k: _shortest(v) for k, v in default.items()}
    if isinstance(default, list):
        return [_shortest(value) for value in default]
    return int(default) if isinstance(default, float) and default.is_integer() else default


def _remove_required(section: Schema) -> Schema:
    """Take the lists of required keys out of a section and of those in it; return them as a schema of their own."""
    parts = {
        name: _remove_required(part) for name, part in section.get("properties", {}).items() if "properties" in part
    }
    parts = {name: part for name, part in parts.items() if part}
    required = section.pop("required", [])
    return ({"required": required} if required else {}) | ({"properties": parts} if parts else {})


# The tables.


def markdown() -> str:
    """Return the tables of all keys, a table for each section, in the order of the tree."""
    schema = json_schema()
    blocks = []
    for path, section in _sections("", schema):
        required = _required_keys(schema["then"], path)
        if path:
            blocks.append(f"### {path}")
            blocks.append(section["description"])
        rows = [_row(path, key, value, key in required) for key, value in section["properties"].items()]
        blocks.append("\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(blocks) + "\n"


def _sections(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield a section and all sections in it, each with its path of keys, from the top down."""
    yield path, schema
    for key, value in schema["properties"].items():
        section = _section_of(value)
        if section is not None:
            yield from _sections(_join(path, key, value), section)


def _section_of(value: Schema) -> Schema | None:
    """Return the section in a key, also an optional one or one for each resolution; None for a plain value.

    A table that may stand in place of a plain value is no section: its entries are in the description of the key.
    """
    options = value.get("anyOf", [value])
    if any(option.get("type") not in ("object", "null") for option in options):
        return None
    for option in options:
        for candidate in (option, option.get("additionalProperties")):
            if isinstance(candidate, dict) and "properties" in candidate:
                return candidate
    return None


def _join(path: str, key: str, value: Schema) -> str:
    """Return the path of the section in `key`; one for each resolution gets that as a last part."""
    below = f"{path}.{key}" if path else key
    return f"{below}.RESOLUTION" if "propertyNames" in value else below


def _required_keys(required: Schema, path: str) -> list[str]:
    """Return the keys of the section at `path` that every complete config must have."""
    for key in path.split(".") if path else []:
        required = required.get("properties", {}).get(key, {})
    return list(required.get("required", []))


def _row(path: str, key: str, value: Schema, required: bool) -> str:
    """Return the row of one key."""
    default = "required" if required else ""
    if "default" in value:
        default = f"`{_as_yaml(value['default'])}`"
    section = _section_of(value)
    if section is None:
        allowed, meaning = _allowed(value), value["description"]
    else:
        name = _join(path, key, value)
        allowed = f"[{name}](#{name.replace('.', '').lower()})"
        # The first paragraph; the whole description is at the section itself.
        meaning = (value if "default" in value else section)["description"].partition("\n\n")[0]
    return f"| `{key}` | {allowed} | {default} | {' '.join(meaning.split())} |"


def _as_yaml(value: Any) -> str:
    """Return a default as one line of YAML, ready to be pasted."""
    if isinstance(value, dict):
        value = {int(key) if key.isdecimal() else key: item for key, item in value.items()}
    return write(value, inline=True)


def _allowed(value: Schema) -> str:
    """Return the allowed values of a key in words."""
    options = value.get("anyOf", [value])
    by_resolution = any("propertyNames" in option for option in options)
    plain = [_kind(option) for option in options if "propertyNames" not in option and option.get("type") != "null"]
    words = " or ".join(plain) + (", by resolution" if by_resolution else "")
    return words if all(option.get("type") != "null" for option in options) else f"{words}, or `null`"


def _kind(option: Schema) -> str:
    """Return one alternative of the allowed values in words."""
    choices = option["enum"] if "enum" in option else [option["const"]] if "const" in option else []
    if choices:
        quoted = [f"`{choice}`" for choice in choices]
        return f"{', '.join(quoted[:-1])} or {quoted[-1]}" if len(quoted) > 1 else quoted[0]
    if option["type"] in ("integer", "number"):
        return _number(option)
    if option["type"] == "array":
        items = option["items"]
        words = ", ".join(f"`{choice}`" for choice in items["enum"]) if "enum" in items else _kind(items)
        return f"list of {words.replace('number', 'numbers')}"
    if "properties" in option:
        return f"table of {' and '.join(f'`{name}`' for name in option['properties'])}"
    if option["type"] == "object":
        values = option.get("additionalProperties") or next(iter(option["patternProperties"].values()))
        return f"table of names, each with a {_kind(values)}"
    return {"string": "text", "boolean": "`true` or `false`"}[option["type"]]


def _number(option: Schema) -> str:
    """Return the range of a number in words: `number from 0 to 1`, `integer >= 1`."""
    kind = option["type"]
    if kind == "integer" and "exclusiveMaximum" in option:
        option = {"minimum": option["minimum"], "maximum": option["exclusiveMaximum"] - 1}
    if "minimum" in option and "maximum" in option:
        return f"{kind} from {_digits(option['minimum'])} to {_digits(option['maximum'])}"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_digits(option[bound])}" for bound, sign in signs.items() if bound in option]
    return " ".join([kind, " and ".join(bounds)]).strip()


def _digits(bound: float) -> str:
    """Return a bound with a comma after every three digits."""
    return f"{_shortest(bound):,}"


if __name__ == "__main__":
    sys.exit(main())
