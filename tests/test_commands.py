"""Shell commands in messages: complete, quoted, found by the user's shell."""

import ast
import re
import sys
from pathlib import Path

import pytest
from printed import type_in

from stylegan.commands import pip_install, shell_command

ROOT = Path(__file__).parents[1]
PROGRAM = re.compile(r"`(stylegan|mlflow|prefect|ray|python|pip|make|git|aws)\b[^`]* |`pip`")
FILES = sorted([*ROOT.glob("stylegan/**/*.py"), *ROOT.glob("flows/**/*.py")])


def messages(tree):
    """The texts of a module that are no docstrings."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_spells_out_a_command(path):
    """A command in a text is quoted by nobody, incomplete, and not found where the environment is not on the PATH."""
    if path.name == "reference.py":  # writes a page for people who work in a clone, where `make` is a command
        return
    found = [node.lineno for node in messages(ast.parse(path.read_text())) if PROGRAM.search(node.value)]
    assert found == [], f"{path}, lines {found}: build the command with stylegan.commands"


def test_a_program_of_this_environment_is_found_wherever_it_is_typed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert type_in(shell_command("stylegan", "--version"), tmp_path).stdout.strip() == "0.1.0"


def test_a_program_on_the_path_needs_no_path(monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert shell_command("stylegan", "plan", "a.yaml") == "stylegan plan a.yaml"


def test_arguments_and_variables_are_quoted(tmp_path, monkeypatch):
    monkeypatch.delenv("A_TEST", raising=False)
    text = "a b'c\"$HOME;#`x`"
    command = shell_command("printenv", "A_TEST", A_TEST=text)
    assert type_in(command, tmp_path).stdout == f"{text}\n"
    monkeypatch.setenv("A_TEST", text)
    assert shell_command("printenv", "A_TEST", A_TEST=text) == "printenv A_TEST"
    assert type_in(shell_command("printf", "%s", text), tmp_path).stdout == text


def test_packages_go_into_the_python_that_needs_them():
    assert pip_install("stylegan-pipeline[onnx]").startswith(f"{sys.executable} -m pip install 'stylegan")
