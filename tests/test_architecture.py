"""The storeys of the house: an import goes down, never up, and each engine has its place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; a module may import its own storey and those before it.
STOREYS = [
    [
        "stylegan.errors",
        "stylegan.config",
        "stylegan.section",
        "stylegan.config_data",
        "stylegan.config_checks",
        "stylegan.tables",
        "stylegan.config_file",
        "stylegan.patience",
        "stylegan.storage",
        "stylegan.progress",
        "stylegan.images",
    ],
    ["stylegan.data", "stylegan.networks"],
    ["stylegan.training"],
    ["stylegan.evaluation"],
    ["stylegan.registry"],
    ["stylegan.tracking"],
    ["stylegan.cluster", "stylegan.spare", "stylegan.plan"],
    ["stylegan.models", "stylegan.sampling", "stylegan.exchange", "stylegan.evaluating"],
    ["stylegan.steps"],
    ["flows"],
]
# Engine -> the only places that may import it.
ENGINES = {
    "ray": ["stylegan/cluster.py", "stylegan/spare.py"],
    "prefect": ["flows/"],
    "mlflow": ["stylegan/tracking.py", "stylegan/registry/"],
    "webdataset": ["stylegan/data/"],
    "s3fs": [],
}
FILES = sorted([*ROOT.glob("stylegan/**/*.py"), *ROOT.glob("flows/**/*.py")])


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def storey(module: str) -> int | None:
    for height, names in enumerate(STOREYS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return height
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_and_engines_stay_in_their_place(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    height = storey(module)
    for imported in imports(path):
        above = storey(imported)
        assert above is None or height is None or above <= height, f"{name} imports {imported}, which is above it"
        engine = imported.split(".")[0]
        if engine in ENGINES:
            assert any(name.startswith(place) for place in ENGINES[engine]), f"{name} imports {engine}"


def test_every_module_has_a_storey() -> None:
    """A new module must be put into the list above, or the rule would not hold for it."""
    modules = [
        str(path.relative_to(ROOT)).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in FILES
    ]
    assert [module for module in modules if storey(module) is None and module != "stylegan"] == []
