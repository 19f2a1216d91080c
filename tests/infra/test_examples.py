"""The committed manifests are those that `make manifests` would write now."""

import shlex
import subprocess
from pathlib import Path

import pytest

from flows.cli.main import main

ROOT = Path(__file__).parents[2]


def recipes() -> dict[str, list[str]]:
    """Return the arguments of `stylegan` in the recipe of `make manifests`, by the file that each command writes."""
    printed = subprocess.run(
        ["make", "--dry-run", "manifests"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = [shlex.split(line) for line in printed.replace("\\\n", " ").splitlines() if "/stylegan manifest" in line]
    return {words[words.index("--out") + 1]: words[1:] for words in lines}


RECIPES = recipes()


def test_every_committed_manifest_has_a_recipe():
    files = [file for folder in ("k8s", "ray") for file in (ROOT / "infra" / folder).glob("*.yaml")]
    made = {str(file.relative_to(ROOT)) for file in files if file.read_text().startswith("# Made from ")}
    assert made == set(RECIPES)
    assert len(RECIPES) == 4


@pytest.mark.parametrize("name", RECIPES)
def test_a_committed_manifest_is_current(monkeypatch, tmp_path, name):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "made.yaml"
    assert main([str(out) if word == name else word for word in RECIPES[name]]) == 0
    assert out.read_text() == (ROOT / name).read_text(), f"{name} is not what it would be now; run `make manifests`"
