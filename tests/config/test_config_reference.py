"""Tests of the generated reference: the committed files are current, and the schema accepts what the loader accepts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from stylegan.config import reference
from stylegan.config.file import build
from stylegan.errors import ConfigError

CONFIGS = sorted(reference.FOLDER.glob("**/*.yaml"))
SMALL: dict[str, Any] = {"name": "small", "data": {"source": "digits", "resolution": 32}}


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    """Return a validator of the committed schema, which is itself a valid schema."""
    schema = json.loads(reference.SCHEMA.read_text())
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def as_json(tree: object) -> Any:
    """Return a YAML tree as editors see it: every key is a string."""
    return json.loads(json.dumps(tree))


def errors(validator: Draft7Validator, **sections: object) -> list[str]:
    """Return what the schema has against `SMALL` with these sections merged into it."""
    tree = SMALL | sections
    if "data" in sections:
        tree["data"] = SMALL["data"] | sections["data"]
    return [error.message for error in validator.iter_errors(as_json(tree))]


def with_bases(path: Path) -> dict[str, Any]:
    """Return the tree of a config file merged into those of its bases."""
    tree = yaml.safe_load(path.read_text())
    base = tree.pop("base", None)
    return tree if base is None else merged(with_bases(path.parent / base), tree)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with its values replaced by those of `changes`, key by key."""
    nested = {key: merged(base[key], value) for key, value in changes.items() if isinstance(base.get(key), dict)}
    return base | changes | nested


def rows() -> list[tuple[str, str]]:
    """Return the key and the default of every row of the tables that has one."""
    found, section = [], ""
    for line in reference.markdown().splitlines():
        heading = re.match(r"### (\S+)", line)
        section = f"{heading[1]}." if heading else section
        row = re.match(r"\| `(\w+)` \| .* \| `(.*?)` \| ", line)
        if row:
            found.append((section.replace("RESOLUTION", "16") + row[1], row[2]))
    return found


def test_committed_files_are_current() -> None:
    """`make config-reference` was run after the last change of a field."""
    stale = [path.name for path, text in reference.render_files().items() if path.read_text("utf-8") != text]
    assert stale == [], "run `make config-reference`"
    assert reference.main(["--check"]) == 0


def test_check_names_the_stale_file_and_write_repairs_it(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "configs").mkdir()
    for name in ("README", "SCHEMA"):
        copy = tmp_path / "configs" / getattr(reference, name).name
        copy.write_text(getattr(reference, name).read_text())
        monkeypatch.setattr(reference, name, copy)
    reference.SCHEMA.write_text("{}")
    assert reference.main(["--check"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "configs/config.schema.json" in message
    assert "make config-reference" in message
    assert "README.md" not in message
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


def test_readme_without_markers_is_an_error_of_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(reference, "README", tmp_path / "README.md")
    reference.README.write_text("# Configs\n")
    assert reference.main([]) == 1
    assert "restore them" in capsys.readouterr().err
    assert reference.README.read_text() == "# Configs\n"


def test_every_key_has_a_meaning_and_a_row() -> None:
    """The number of rows is the number of keys in the tree, and no cell of the meaning is empty."""

    def keys(section: dict[str, Any]) -> int:
        below = [reference._section_of(value) for value in section["properties"].values()]
        return len(section["properties"]) + sum(keys(part) for part in below if part)

    table = [line for line in reference.markdown().splitlines() if line.startswith("| `")]
    assert len(table) == keys(reference.json_schema())
    assert [line for line in table if not re.search(r"[.\])`] \|$", line)] == []


TRANSFER = {
    "transfer": {},
    "evaluation": {"metrics": ["transfer"]},
    "registry": {"gate": {"metric": "transfer_loss"}},
}


@pytest.mark.parametrize(("key", "default"), rows())
def test_defaults_can_be_pasted(key: str, default: str) -> None:
    """A default of the tables, given as an override, changes nothing."""
    tree = SMALL
    if key.startswith("training.warm_start."):
        tree = SMALL | {"training": {"warm_start": {"checkpoint": "/stages/0016-0123456789/checkpoint-000001000"}}}
    elif key not in (
        "training.rotation",
        "training.stages",
        "ray.stages",
        "training.warm_start",
    ):  # keys inside need these
        tree = SMALL | {"training": {"rotation": {}, "stages": {16: {}}}, "ray": {"stages": {16: {}}}}
    if key.startswith("training.warm_start."):
        tree = SMALL | {"training": {"warm_start": {"checkpoint": "stages/0032-0/checkpoint-000000000"}}}
    if key.startswith("transfer."):
        tree = SMALL | TRANSFER
    assert build(tree, overrides=[f"{key}={default}"]) == build(tree)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_schema_accepts_the_shipped_configs(validator: Draft7Validator, path: Path) -> None:
    """Both the file itself, with or without a base, and what it becomes with its bases are valid."""
    raw = yaml.safe_load(path.read_text())
    assert list(validator.iter_errors(as_json(raw))) == []
    complete = with_bases(path)
    assert "base" not in complete
    assert list(validator.iter_errors(as_json(complete))) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_name_the_schema(path: Path) -> None:
    """The first line leads editors to the schema, from the folder of the file."""
    line = path.read_text().splitlines()[0]
    assert line.startswith("# yaml-language-server: $schema=")
    assert (path.parent / line.partition("=")[2]).resolve() == reference.SCHEMA


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"batch": "auto"}},
        {"training": {"batch": {4: 128, 32: "auto"}}},
        {"training": {"batch": 8, "max_batch_per_worker": {256: 16}, "fade_kimg": 0, "stable_kimg": {4: 6, 16: 26.5}}},
        {"training": {"max_batch_per_worker": None, "rotation": None, "total_kimg": None}},
        {"training": {"rotation": {}, "stages": {16: {"batch": 4}}}},
        {"ray": {"address": None, "stages": {8: {"workers": 1}}, "resources_per_worker": {"a100": 0.5}}},
        {"evaluation": {"num_reals": "all", "metrics": [], "weights": {"vgg16": "s3://bucket/x.pth"}}},
        {"snapshots": {"metrics_kimg": {4: 0, 32: 10}, "probe_kimg": 20}},
    ],
    ids=str,
)
def test_schema_accepts_what_the_loader_accepts(validator: Draft7Validator, sections: dict[str, Any]) -> None:
    build(SMALL | sections)
    assert errors(validator, **sections) == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"trainng": {}}, "'trainng' was unexpected"),
        ({"training": {"bach": 8}}, "'bach' was unexpected"),
        ({"training": {"rotation": {"weight": 1}}}, "not valid under any of the given schemas"),
        ({"training": {"stages": {16: {"bach": 4}}}}, "'bach' was unexpected"),
        ({"training": {"batch": {12: 4}}}, "not valid under any of the given schemas"),
        ({"training": {"stages": {12: {}}}}, "'12' is not one of"),
        ({"training": {"batch": "all"}}, "not valid under any of the given schemas"),
        ({"training": {"batch": 0}}, "not valid under any of the given schemas"),
        ({"training": {"mirror": "sometimes"}}, "'sometimes' is not of type 'boolean'"),
        ({"training": {"loss": "lsgan"}}, "'lsgan' is not one of"),
        ({"model": {"style_mixing_prob": 1.5}}, "1.5 is greater than the maximum of 1"),
        ({"data": {"resolution": 33}}, "33 is not one of"),
        ({"data": {"resolution": "large"}}, "'large' is not"),
        ({"storage": None}, "None is not of type 'object'"),
        ({"name": "My Run"}, "does not match"),
    ],
)
def test_schema_refuses_what_the_loader_refuses(
    validator: Draft7Validator, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError):
        build(SMALL | sections | ({"data": SMALL["data"] | sections["data"]} if "data" in sections else {}))
    assert any(words in message for message in errors(validator, **sections))


@pytest.mark.parametrize("missing", ["name", "data", "source", "resolution"])
def test_schema_requires_keys_only_without_a_base(validator: Draft7Validator, missing: str) -> None:
    tree = as_json(SMALL)
    tree.pop(missing, None)
    tree.get("data", {}).pop(missing, None)
    assert [error.message for error in validator.iter_errors(tree)] == [f"'{missing}' is a required property"]
    assert list(validator.iter_errors(tree | {"base": "other.yaml"})) == []
