"""The commands of `stylegan`. Results go to standard output, everything else to standard error.

Exit codes: 0 done (also when the gate says no), 1 a step failed, 2 bad usage or config; those of signals are in
supervisor.py. Each command imports the heavy libraries that it needs, so that help and mistakes are answered at once.
"""

from __future__ import annotations

from importlib.metadata import version

from cyclopts import App, CycloptsError

from flows.cli import console, model_commands, registry_commands, run_commands
from stylegan.errors import ConfigError, UserError, one_line
from stylegan.places import explain_full_disk

app = App(
    name="stylegan",
    version=lambda: version("stylegan-pipeline"),
    help="Train, evaluate and register StyleGAN as a workflow. CONFIG is a YAML file such as configs/quickstart.yaml.",
)
COMMANDS = (
    run_commands.plan,
    run_commands.run,
    run_commands.shard,
    run_commands.train,
    run_commands.evaluate,
    run_commands.register,
    model_commands.sample,
    model_commands.import_weights,
    model_commands.export,
    registry_commands.promote,
    registry_commands.rollback,
    run_commands.doctor,
)
for command in COMMANDS:
    app.command(command, version_flags=[])


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    # Behind a command --version is an option of that command, or a mistake: never the version of this program.
    app.version_flags = ["--version"] if not arguments or arguments[0].startswith("-") else []
    try:
        with console.logging_to_terminal():
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        chain = " ".join(["stylegan", *(error.command_chain or ())])
        console.print_error(f"{' '.join(str(error).split())} (see `{chain} --help`)")
        return 2
    except ConfigError as error:
        console.print_error(str(error))
        return 2
    except Exception as error:
        full = explain_full_disk(error)
        if full is None and not isinstance(error, UserError):
            raise
        console.print_error(f"{full} ({one_line(error)})" if full else str(error))
        return 1
    return 0
