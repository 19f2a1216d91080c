"""What tests read of infra/image/Dockerfile."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "infra" / "image"


class Instruction(NamedTuple):
    """An instruction of a Dockerfile, with the stage that it belongs to: RUN, COPY, ENV and their words."""

    stage: str
    name: str
    words: list[str]


def instructions() -> list[Instruction]:
    """Return all instructions in their order."""
    text = re.sub(r"^\s*#.*\n", "", (IMAGE / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found, stage = [], ""
    for line in filter(None, text.splitlines()):
        name, rest = line.split(maxsplit=1)
        words = shlex.split(rest)
        if name == "FROM":
            stage = words[2]
        found.append(Instruction(stage, name, words))
    return found


def options_apart(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the options of an instruction, such as `--from=build`, and the other words."""
    options = [word for word in words if word.startswith("--")]
    return options, words[len(options) :]


def ancestors(target: str) -> list[str]:
    """Return a stage and those before it that it is made from, the first one first."""
    parents = {line.stage: line.words[0] for line in instructions() if line.name == "FROM"}
    chain = [target]
    while parents[chain[0]] in parents:
        chain.insert(0, parents[chain[0]])
    return chain


def environment(target: str) -> dict[str, str]:
    """Return the variables that the image of a target sets."""
    stages = ancestors(target)
    words = [word for line in instructions() if line.name == "ENV" and line.stage in stages for word in line.words]
    return dict(word.split("=", 1) for word in words)
