"""Every target that `make help` lists has a recipe that make and the shell can read."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> str:
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # `make test` runs this
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    return done.stdout


TARGETS = [line.split()[0] for line in make("help").splitlines()]


def test_the_targets_of_the_readme_are_there():
    assert {"help", "quickstart", "test", "long-test", "stack-test", "audit", "manifests"} <= set(TARGETS)
    assert len(TARGETS) == len(set(TARGETS))


def test_what_is_no_file_is_declared_so():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (phony,) = [line for line in text.splitlines() if line.startswith(".PHONY:")]
    assert set(phony.split()[1:]) == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_the_recipe_of_a_target_can_be_read(target):
    recipe = make("--dry-run", "--always-make", target)
    assert recipe.strip()
    subprocess.run(["sh", "-n"], input=recipe, text=True, check=True)
