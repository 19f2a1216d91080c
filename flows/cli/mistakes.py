"""Explain a mistake on the command line in one line, with the command that was meant where it can be known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

from stylegan.commands import shell_command
from stylegan.errors import ConfigError

SET = ("-s", "--set")
DRY_RUN = ("--dry-run", "--dryrun", "--dry_run")
# Options of other trainers -> what does that here.
FOREIGN = {
    "--resume": "the same command goes on where it stopped, by itself; leave it out",
    "--gpus": "give --set ray.workers=N --set ray.gpus_per_worker=1",
    "--outdir": "give --set storage.root=FOLDER",
}


def explain(error: CycloptsError, arguments: Sequence[str], examples: Mapping[str, str]) -> str:
    """Return the line for a mistake that the parser of the command line has found.

    Args:
        arguments: the command line.
        examples: an example for each command.
    """
    verb = next(iter(error.command_chain or ()), "")
    if isinstance(error, UnknownCommandError):
        return _unknown_command(arguments, list(examples))
    if isinstance(error, UnknownOptionError):
        return _unknown_option(error, verb, arguments)
    if isinstance(error, UnusedCliTokensError):
        return _unused(error.unused_tokens or [], verb, arguments)
    told = " ".join(str(error).split())
    if isinstance(error, MissingArgumentError) and verb in examples and error.keyword is None:
        example = examples[verb].replace("stylegan", shell_command("stylegan"), 1)
        told = f"{told.rstrip('.')}, such as `{example}`"
    return f"{told} {_see(verb)}"


def meant(error: ConfigError, arguments: Sequence[str]) -> str:
    """Return the end of an error's line: the command with the argument that was meant; "" if that is not known."""
    wrong, right = error.instead or ("", "")
    if wrong not in arguments[1:]:
        return ""
    return f" (`{_command([right if argument == wrong else argument for argument in arguments])}`)"


def _unknown_command(arguments: Sequence[str], verbs: Sequence[str]) -> str:
    word = arguments[0]
    if word.endswith((".yaml", ".yml")):
        return f"{word}: a command comes before the config; did you mean `{_command(['run', *arguments])}`?"
    if word.startswith("-"):
        return f"{word}: a command comes first; there are {', '.join(verbs)} {_see('')}"
    near = difflib.get_close_matches(word, verbs, n=1)
    if near:
        return f"{word}: no such command; did you mean `{_command([near[0], *arguments[1:]])}`?"
    return f"{word}: no such command; there are {', '.join(verbs)} {_see('')}"


def _unknown_option(error: UnknownOptionError, verb: str, arguments: Sequence[str]) -> str:
    typed = error.token.keyword or error.token.value
    position = next(
        at for at, argument in enumerate(arguments) if argument.partition("=")[0] == typed.partition("=")[0]
    )
    name, equals, value = arguments[position].partition("=")
    no_option = f"{name}: no option of `{verb or 'stylegan'}`"
    options = [each for argument in error.argument_collection for each in argument.names if each.startswith("-")]
    has_config = "--set" in options

    if name in DRY_RUN and has_config:
        others = [*arguments[1:position], *arguments[position + 1 :]]
        command = _command(["sweep", *others, "--plan"] if verb == "sweep" else ["plan", *others])
        return f"{no_option}; what would run, without running it, is said by `{command}`"
    if name in FOREIGN and has_config:
        return f"{no_option}; {FOREIGN[name]}"

    # Much like an option of this command, or a key of the config, or a little like an option.
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.8)
    if not near and has_config:
        from stylegan.config.file import keys_called

        following = "" if equals else next(iter(arguments[position + 1 :]), "")
        given = value or ("VALUE" if following.startswith("-") or not following else following)
        keys = keys_called(name.lstrip("-").replace("-", "_"))
        if keys:
            return f"{no_option}; did you mean {' or '.join(f'--set {key}={given}' for key in keys)}?"
    near = near or difflib.get_close_matches(name, options, n=1)
    return f"{no_option}; did you mean {near[0]}? {_see(verb)}" if near else f"{no_option} {_see(verb)}"


def _unused(tokens: Sequence[str], verb: str, arguments: Sequence[str]) -> str:
    """Explain arguments that nothing takes: often an override without its `--set` or without its `=`."""
    first = len(arguments) - len(tokens)
    while first > 0 and list(arguments[first : first + len(tokens)]) != list(tokens):
        first -= 1
    before, after = list(arguments[:first]), list(arguments[first + len(tokens) :])
    words = list(tokens)
    if len(before) > 1 and before[-2] in SET:  # --set key value
        words, before = [before[-1], *words], before[:-2]

    from stylegan.config.file import is_key

    key, equals, value = words[0].partition("=")
    if is_key(key):
        value = value if equals and value else "".join(words[1:]).removeprefix("=")
        command = _command([*before, "--set", f"{key}={value or 'VALUE'}", *after])
        return f"{' '.join(words)}: a value of the config is given as --set key.path=value; did you mean `{command}`?"
    return f"{' '.join(tokens)}: more than `{verb}` takes {_see(verb)}"


def _see(verb: str) -> str:
    return f"(see `{shell_command('stylegan', *filter(None, [verb]), '--help')}`)"


def _command(arguments: Sequence[str]) -> str:
    return shell_command("stylegan", *arguments)
