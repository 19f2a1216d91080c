"""Read YAML 1.2 as plain values, and refuse text that two readers could take for different values; write YAML.

`ruamel.yaml` parses. Its own rules for plain text are wider than YAML 1.2 (`1_000` is a number, `2026-11-26` a date), so
the types of values are decided here, by the core schema of YAML 1.2 (section 10.3.2). Everything else is text: `yes`,
`12:30`, `0b11`. A number with a leading zero is refused, since YAML 1.1 reads 0123 as 83 and YAML 1.2 as 123.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from stylegan.errors import ConfigError, one_line

Keys = tuple[str, ...]  # the path of a value: its keys and positions, as text
TAG = "tag:yaml.org,2002:"
MAX_VALUES = 100_000  # with aliases, a few lines can be any number of values
_CORE = {  # in this order
    "null": re.compile(r"null|Null|NULL|~|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "leading-zero": re.compile(r"[-+]?0[0-9]+"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII
    ),
    "merge": re.compile("<<"),
    # Text here, something else for readers of YAML 1.1: it is written in quotes.
    "text-in-1.2": re.compile(
        r"(?i:yes|no|on|off|y|n|=)|[-+]?0b[01_]+|[-+]?0[xo][0-9a-f_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
        r"|[-+]?[0-9.][0-9_.]*([eE][-+]?[0-9]+)?|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*",
        re.DOTALL,
    ),
}
_WORDS = re.compile(r"[A-Za-z0-9_./][\w./-]*( [\w./-]+)*")
_LINES = re.compile(r"(?! )([ -~]*[!-~]\n)+")  # none of them empty or with a blank at its end
_NO_CHARACTER = re.compile(r"\\U(?!000|0010)[0-9a-fA-F]{8}")  # which the parser leaves to chr()
_TEXT = ("str", "text-in-1.2")
_KEY_WITHOUT_COLON = "could not find expected ':'"


class Document:
    """The value of a YAML text, and the line, from 1 on, of every key and list entry in it."""

    def __init__(self, value: Any, lines: dict[Keys, int]) -> None:
        self.value, self.lines = value, lines


def read(text: str, origin: str) -> Document:
    """Read a YAML text of at most one document.

    Raises:
        ConfigError: not YAML, a key twice, or a value that is not plain; one line with `origin`, line and cure.
    """
    try:
        nodes = _compose(text)
        if len(nodes) > 1:
            line = _line(nodes[1])
            raise ConfigError(f"{origin}: line {line}: a second document begins here; keep one document in a file")
        reader = _Reader(origin)
        value = reader.value(nodes[0], ()) if nodes and nodes[0] is not None else None
    except YAMLError as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or one_line(error, 100)
        line = _line_of(error, text)
        raise ConfigError(f"{origin}: line {line}: not valid YAML ({problem}); {_cure(problem)}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: is nested too deeply; a config has four levels") from None
    return Document(value, reader.lines)


def read_argument(text: str, origin: str) -> Any:
    """Read the value of a command-line argument.

    A number, `true`, `false`, `null`, text in quotes, and a list or table in brackets are read as YAML. Anything else is
    text and taken whole, so a path may hold `#`, `: `, `*` or brackets.

    Raises:
        ConfigError: no value, or one that `read` refuses.
    """
    if not text:
        raise ConfigError(f"{origin}: has no value; write null to unset it, or '\"\"' for an empty text")
    plain = text[0] not in "[{\"'"
    if plain and _resolve(text) in _TEXT:
        return text
    try:
        node = _compose(text)[0]
        whole = text[node.end_mark.index :].strip() == ""
    except (YAMLError, RecursionError):
        whole = False
    if not whole and text[0] in "\"'":
        raise ConfigError(
            f"{origin}: has text after its closing quote, or no closing quote; put the whole value in quotes"
        )
    return _Reader(origin, lines=False).value(node, ()) if whole else text


def write(value: Any, *, inline: bool = False) -> str:
    """Return plain values as YAML that `read`, and any reader of YAML 1.1, reads back; `inline`: in one line."""
    yaml = _yaml()
    yaml.default_flow_style, yaml.width, yaml.allow_unicode = inline, 100_000, True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.representer.blocks = not inline
    stream = io.StringIO()
    yaml.dump(value, stream)
    text = stream.getvalue()
    return text.removesuffix("\n").removesuffix("\n...") if inline else text


class _CoreResolver(VersionedResolver):
    """Finds the type of a plain scalar by YAML 1.2, also below `%YAML 1.1`; an explicit tag never comes here."""

    processing_version = (1, 2)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        plain = kind is ScalarNode and implicit[0]
        return Tag(suffix=f"{TAG}{_resolve(value)}") if plain else super().resolve(kind, value, (False, False))


def _resolve(text: str) -> str:
    """Return the type of a plain scalar."""
    return next((kind for kind, pattern in _CORE.items() if pattern.fullmatch(text)), "str")


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Representer = _CoreResolver, _Representer
    return yaml


def _compose(text: str) -> list[Any]:
    """Return the top node of each document. Raises YAMLError, RecursionError."""
    try:
        return list(_yaml().compose_all(text))
    except ValueError:
        error = YAMLError("an escape \\U above \\U0010ffff is no character")
        match = _NO_CHARACTER.search(text)
        error.position = match.start() if match else 0  # type: ignore[attr-defined]
        raise error from None


class _Reader:
    """Makes plain values of nodes, and keeps their lines."""

    def __init__(self, origin: str, *, lines: bool = True) -> None:
        self.origin, self.lines, self._show_lines = origin, dict[Keys, int](), lines
        self._open: list[Node] = []  # from the top down to the present one
        self._count = 0

    def value(self, node: Node, path: Keys) -> Any:
        self._enter(node, path)
        try:
            if _is_table(node):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode) and node.tag == f"{TAG}seq":
                return [self._entry(item, (*path, str(i))) for i, item in enumerate(node.value)]
            if isinstance(node, ScalarNode):
                return self._scalar(node, path)
        finally:
            self._open.pop()
        raise self._error(node, path, f"the tag {_shown_tag(node)} is not read here; remove it")

    def _entry(self, node: Node, path: Keys) -> Any:
        self.lines[path] = _line(node)
        return self.value(node, path)

    def _enter(self, node: Node, path: Keys) -> None:
        self._count += 1
        if node in self._open or self._count > MAX_VALUES:
            raise self._error(node, path, "its alias repeats too much or contains itself; write the values out")
        self._open.append(node)

    def _mapping(self, node: Node, path: Keys) -> dict[Any, Any]:
        table: dict[Any, Any] = {}
        for key, (key_node, value_node) in self._pairs(node, path).items():
            below = (*path, str(key))
            self.lines[below] = _line(key_node)
            table[key] = self.value(value_node, below)
        return table

    def _pairs(self, node: Node, path: Keys) -> dict[Any, tuple[Node, Node]]:
        """Return the nodes of a table by key: its own keys, then those that `<<` merges into it; the first ones hold."""
        own: dict[Any, tuple[Node, Node]] = {}
        merged: dict[Any, tuple[Node, Node]] = {}
        seen = 0
        for key_node, value_node in node.value:
            if key_node.tag != f"{TAG}merge":
                key = self._key(key_node, path)
                if key in own:
                    first = _line(own[key][0])
                    problem = f"is given twice (first in line {first}); write one, with the values of both"
                    raise self._error(key_node, (*path, str(key)), problem)
                own[key] = key_node, value_node
                continue
            seen += 1
            sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            if seen > 1 or not all(_is_table(source) for source in sources):
                raise self._error(key_node, path, "`<<` must stand once, before a table or a list of tables")
            for source in sources:
                self._enter(source, path)
                merged = self._pairs(source, path) | merged
                self._open.pop()
        return own | {key: pair for key, pair in merged.items() if key not in own}

    def _key(self, node: Node, path: Keys) -> Any:
        key = self.value(node, path)
        if type(key) not in (str, int):
            shown = node.value if isinstance(node, ScalarNode) else "in brackets"
            raise self._error(node, path, f"the key {shown} is no name; put it in quotes")
        return key

    def _scalar(self, node: ScalarNode, path: Keys) -> Any:
        kind, text = str(node.tag).removeprefix(TAG), str(node.value)
        if kind in _TEXT or kind == "merge":
            return text
        if kind == "leading-zero":
            digits = text.lstrip("+-").lstrip("0") or "0"
            raise self._error(
                node,
                path,
                f"{text} begins with a zero, which some programs read as octal; write {digits} for the number, '{text}' in "
                "quotes for the text",
            )
        fits = kind in _CORE and _CORE[kind].fullmatch(text)
        if not fits:
            raise self._error(node, path, f"the tag {_shown_tag(node)} of {text[:50]!r} is not read here; remove it")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            special = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
            return special[text.lower()] if text.lower() in special else float(text)
        if len(text) > 100:
            raise self._error(node, path, "a number of more than 100 digits; write a smaller one")
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)

    def _error(self, node: Node, path: Keys, problem: str) -> ConfigError:
        key = f"{'.'.join(path)}: " if path else ""
        where = f"line {_line(node)}: " if self._show_lines else ""
        return ConfigError(f"{self.origin}: {where}{key}{problem}")


class _Representer(SafeRepresenter):
    """Writes floats with a point, as YAML 1.1 has them, text in quotes or as lines unless it is words, and never an alias."""

    blocks = False  # whether lines are written below each other

    def represent_str(self, data: Any) -> Any:
        if _WORDS.fullmatch(data) and _resolve(data) == "str":
            style = None
        else:
            style = "|" if self.blocks and _LINES.fullmatch(data) else '"'
        return self.represent_scalar(f"{TAG}str", data, style=style)

    def represent_float(self, data: Any) -> Any:
        node = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e", 1)
        return node

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def _is_table(node: Node) -> bool:
    return isinstance(node, MappingNode) and bool(node.tag == f"{TAG}map")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _line_of(error: YAMLError, text: str) -> int:
    """Return the line of an error of the parser."""
    if hasattr(error, "position"):  # of a character that YAML does not allow
        return text.count("\n", 0, error.position) + 1
    marks = [getattr(error, "problem_mark", None), getattr(error, "context_mark", None)]
    if _KEY_WITHOUT_COLON in str(error):
        marks.reverse()
    return next((int(mark.line) + 1 for mark in marks if mark), 1)


def _shown_tag(node: Node) -> str:
    return str(node.tag).replace(TAG, "!!")


def _cure(problem: str) -> str:
    """Return what to do about an error of the parser."""
    if "\\t" in problem:
        return "replace the tab by blanks"
    if "cannot start any token" in problem:
        return "put text that begins with a special character in quotes"
    if "mapping values are not allowed" in problem:
        return "put text with a colon in quotes, or correct the indentation"
    if "alias" in problem:
        return "put text that begins with * in quotes"
    if _KEY_WITHOUT_COLON in problem:
        return "write `key: value`, with a blank after the colon"
    return "correct the file"
