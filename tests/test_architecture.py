"""The house: an import goes down, never up or in a circle, each engine has its place, and README's list is the tree."""

import ast
import posixpath
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; a module may import its own storey and those before it.
STOREYS = [
    # The table of metrics is plain data, which the config is checked against: it belongs to the ground, not to its
    # room.
    ["stylegan.evaluation.metric_table"],
    [
        "stylegan.uris",
        "stylegan.errors",
        "stylegan.commands",
        "stylegan.places",
        "stylegan.processes",
        "stylegan.records",
        "stylegan.processes",
        "stylegan.progress",
        "stylegan.images",
    ],
    ["stylegan.config"],
    ["stylegan.retry", "stylegan.storage", "stylegan.outputs"],
    ["stylegan.data", "stylegan.networks"],
    ["stylegan.training"],
    ["stylegan.evaluation"],
    ["stylegan.drawing"],
    ["stylegan.transfer"],
    ["stylegan.cluster"],
    ["stylegan.tracking"],
    ["stylegan.registry"],
    ["stylegan.pipeline"],
    ["stylegan.serving"],
    ["stylegan.verbs"],
    [
        "flows.artifacts",
        "flows.attempts",
        "flows.beginning",
        "flows.children",
        "flows.killed_runs",
        "flows.notify",
        "flows.optimize",
        "flows.outage",
        "flows.prefect_server",
        "flows.retrain",
        "flows.schedule",
        "flows.sweep",
        "flows.tasks",
        "flows.train",
    ],
    ["flows.cli"],
    ["infra.stack"],
]
# Engine -> the only places that may import it.
ENGINES = {
    "ray": ["stylegan/cluster/", "infra/stack/loopback_ray.py"],
    "prefect": ["flows/"],
    "mlflow": ["stylegan/tracking/", "stylegan/registry/"],
    "webdataset": ["stylegan/data/"],
    "optuna": ["stylegan/pipeline/study.py"],
    "s3fs": [],
}
FILES = {
    str(path.relative_to(ROOT)): path
    for top in ("stylegan", "flows", "infra/stack")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def module_of(name: str) -> str:
    """Return the module of a file: `stylegan/data/__init__.py` -> `stylegan.data`."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(name): name for name in FILES}


@cache
def imports(name: str) -> frozenset[str]:
    """Return every name that a file imports, at its top or inside a function; those for type checkers alone count too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def storey(module: str) -> int | None:
    """Return the storey of a module of the house, None for any other."""
    for height, names in enumerate(STOREYS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return height
    return None


def neighbours(name: str) -> set[str]:
    """Return the files that a file imports; a package that is only on the way to a module does not count."""
    found = {MODULES[module] for module in imports(name) if module in MODULES}
    return {file for file in found if not file.endswith("__init__.py") or FILES[file].read_text().strip()} - {name}


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down_and_engines_stay_in_their_place(name: str) -> None:
    height = storey(module_of(name))
    for imported in imports(name):
        above = storey(imported)
        assert above is None or height is None or above <= height, f"{name} imports {imported}, which is above it"
        engine = imported.split(".")[0]
        if engine in ENGINES:
            assert any(name.startswith(place) for place in ENGINES[engine]), f"{name} imports {engine}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter({name: neighbours(name) for name in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_every_module_has_a_storey() -> None:
    """A new module must be put into the list above, or the rule would not hold for it."""
    packages = ("stylegan", "flows")
    assert [module for module in MODULES if storey(module) is None and module not in packages] == []


def listed_files(text: str) -> set[str]:
    """Return the files of README's tree: folders are indented lines that start with a name and a slash."""
    block = re.search(r"<!-- files -->\n```\n(.*?)```", text, re.DOTALL)
    assert block, "README.md has no list of files between `<!-- files -->` and the end of its code block"
    found, folders = set(), list[tuple[int, str]]()
    for line in block[1].splitlines():
        words = line.split()
        indent = len(line) - len(line.lstrip())
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        if words and words[0].endswith("/"):
            folders.append((indent, words.pop(0)))
        above = "".join(folder for _, folder in folders)
        found |= {posixpath.normpath(above + word) for word in words if word.endswith(".py")}
    return found


def test_readme_lists_the_files_that_there_are() -> None:
    there = {name for name in FILES if not name.endswith("__init__.py")}
    listed = listed_files((ROOT / "README.md").read_text())
    assert sorted(there - listed) == [], "not in README.md's list of files"
    assert sorted(listed - there) == [], "in README.md's list of files, but gone"
