"""The help of the command: groups and examples in the help, and completion by real shells."""

import json
import shlex
import shutil
import subprocess

import pytest

from flows.cli import app
from flows.cli.main import main

VERBS = {command.__name__.replace("_", "-"): command for commands in app.COMMANDS.values() for command in commands}


def test_the_help_shows_every_command_in_its_group_in_the_order_of_work(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"─ {title} ─") for title in app.COMMANDS]
    assert places == sorted(places)
    listed = [line.split()[1] for line in text.splitlines() if line.startswith("│ ") and line[2] not in " -"]
    assert listed == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_command_shows_an_example_that_is_read(capsys, monkeypatch, verb):
    """The command is not carried out: only its arguments are checked, so an example cannot name an option that is gone."""
    assert main([verb, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    lines = app.examples(VERBS[verb]).splitlines()
    assert lines
    for line in lines:
        assert " ".join(line.split()) in shown
        arguments = shlex.split(line[line.index("stylegan ") :].rstrip(")").split(" | ")[0])[1:]
        assert app.app.parse_args(arguments, exit_on_error=False, print_error=False)[0] is VERBS[verb]


def completed(script: str, line: str, folder) -> list[str]:
    """Return what bash offers for the last word of a line, by the function and by its own completion of files."""
    words = line.split(" ")
    code = f"""{script}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words) - 1}
_stylegan
[[ ${{#COMPREPLY[@]}} == 0 && $(complete -p stylegan) == *"-o default"* ]] && COMPREPLY=($(compgen -f -- '{words[-1]}'))
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_options_values_and_files(capsys, tmp_path):
    """The script holds all of it: nothing of this program is started when a key is pressed."""
    (tmp_path / "faces.yaml").touch()
    assert main(["completion", "bash", "--json"]) == 0
    script = json.loads(capsys.readouterr().out)["script"]
    assert set(completed(script, "stylegan ", tmp_path)) == set(VERBS)
    assert sorted(completed(script, "stylegan tr", tmp_path)) == ["train", "transfer"]
    assert completed(script, "stylegan train fa", tmp_path) == ["faces.yaml"]
    assert completed(script, "stylegan sample x --config fa", tmp_path) == ["faces.yaml"]
    assert completed(script, "stylegan train faces.yaml --un", tmp_path) == ["--until"]
    assert completed(script, "stylegan completion f", tmp_path) == ["fish"]
    assert "__complete" not in script


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", ["bash", "-n"]), ("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])]
)
def test_the_script_of_each_shell_is_one_that_it_reads(capsys, tmp_path, shell, check):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([*check, str(tmp_path / "script")], check=True)
