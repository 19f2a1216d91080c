"""The commands of `stylegan`. Results go to standard output, everything else to standard error.

Exit codes: 0 done (also when the gate says no), 1 a step failed, 2 bad usage or config; those of signals are in
supervisor.py. A command that follows a job of a cluster returns that of the job. Each command imports the heavy libraries
that it needs, after it has read its config, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from typing import Any, Literal

from cyclopts import App, CycloptsError, Group

import stylegan
from flows.cli import (
    ablation_command,
    clean_command,
    compare_command,
    console,
    job_commands,
    listing,
    manifest_command,
    mistakes,
    model_commands,
    picture_commands,
    projection_command,
    registry_commands,
    retrain_command,
    run_commands,
    schedule_command,
    serve_command,
    sweep_command,
    transfer_command,
)
from flows.cli.arguments import AsJson
from stylegan.commands import shell_command
from stylegan.errors import ConfigError, Stopped, UserError, one_line
from stylegan.places import explain_full_disk

EXAMPLES = "Examples\n--------\n"  # the heading of the last section of a command's docstring


def completion(shell: Literal["bash", "zsh", "fish"], /, *, as_json: AsJson = False) -> None:
    """Print the script by which a shell completes commands, options and files.

    Parameters
    ----------
    shell
        The shell that reads the script. Put its line of the examples into ~/.bashrc, ~/.zshrc (below `compinit`) or
        ~/.config/fish/config.fish.

    Examples
    --------
    source <(stylegan completion bash)
    source <(stylegan completion zsh)
    stylegan completion fish | source
    """
    script = app.generate_completion(shell=shell)
    if shell == "bash":  # its own completion of files knows folders, blanks and what follows key.path=
        script = script.replace('COMPREPLY=( $(compgen -f -- "${cur}") )', "COMPREPLY=()")
        script = script.replace("complete -F", "complete -o default -F")
    elif shell == "zsh":  # the script is meant for a file in $fpath, where compinit does this
        script += "compdef _cyclopts_stylegan stylegan\n"
    else:  # the first word is a command and never a file
        script += "complete -c stylegan -n __fish_use_subcommand -f\n"
    print(json.dumps({"shell": shell, "script": script}) if as_json else script)


# By what people want to do, in the order of the help.
COMMANDS: dict[str, tuple[Callable[..., int | None], ...]] = {
    "Plan and run": (run_commands.plan, run_commands.run),
    "Again and again": (retrain_command.retrain, schedule_command.schedule),
    "Many runs": (sweep_command.sweep, compare_command.compare, ablation_command.ablation),
    "Single steps": (run_commands.shard, run_commands.train, run_commands.evaluate, run_commands.register),
    "Clusters": (
        job_commands.launch,
        job_commands.jobs,
        job_commands.logs,
        job_commands.stop,
        manifest_command.manifest,
    ),
    "Models": (
        model_commands.sample,
        picture_commands.figures,
        picture_commands.mix,
        picture_commands.video,
        projection_command.project,
        projection_command.edit,
        transfer_command.transfer,
        serve_command.serve,
        model_commands.export,
        model_commands.import_weights,
    ),
    "Registry": (registry_commands.promote, registry_commands.rollback, clean_command.gc),
    "Look around": (listing.ls, run_commands.doctor),
    "This command": (completion,),
}


def examples(command: Callable[..., Any]) -> str:
    """Return the lines of shell in the docstring of a command."""
    return (inspect.getdoc(command) or "").partition(EXAMPLES)[2].strip()


app = App(
    name="stylegan",
    version=lambda: stylegan.__version__,
    help_format="plaintext",
    help="Train, evaluate and register StyleGAN as a workflow. CONFIG is a YAML file such as configs/quickstart.yaml.",
)
_examples: dict[str, str] = {}  # the first of each command
for title, commands in COMMANDS.items():
    group = Group.create_ordered(title)
    for position, command in enumerate(commands):
        _examples[command.__name__.replace("_", "-")] = examples(command).partition("\n")[0]
        epilogue = "\n  ".join(["Examples:", *examples(command).splitlines()])
        app.command(command, group=group, sort_key=position, version_flags=[], help_epilogue=epilogue)
app.group_commands = group  # --help and --version, of the last group
app.help_epilogue = f"Each command explains itself: `{shell_command('stylegan', 'plan', '--help')}`."


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    _spare_this_machine()
    # Behind a command --version is an option of that command, or a mistake: never the version of this program.
    app.version_flags = ["--version"] if not arguments or arguments[0].startswith("-") else []
    try:
        with console.logging_to_terminal():
            code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        console.print_error(mistakes.explain(error, arguments, _examples))
        return 2
    except ConfigError as error:
        console.print_error(f"{error}{mistakes.meant(error, arguments)}")
        return 2
    except Stopped as error:
        console.print_error(str(error))
        return 128 + error.number
    except Exception as error:
        full = explain_full_disk(error)
        if full is None and not isinstance(error, UserError):
            raise
        console.print_error(f"{full} ({one_line(error)})" if full else str(error))
        return 1
    return code if isinstance(code, int) else 0


def _spare_this_machine() -> None:
    """Keep what is meant for this machine from a proxy: Prefect, MLflow and S3 servers of its own."""
    if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        if spared.strip() != "*":
            os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(
                filter(None, [spared, "localhost,127.0.0.1,::1"])
            )
