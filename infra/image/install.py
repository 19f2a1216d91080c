"""Install what an image holds, in three steps: `python3 -m infra.image.install STEP ...`, in the project's root.

    build TOOLS PREFIX              tools, and an empty environment for the image
    dependencies TARGET TOOLS PREFIX   all that the project needs, for the target `cpu` or `cuda`
    project TOOLS PREFIX FOLDER     the project itself, into a folder that is laid over PREFIX

Everything from an index is checked by the hashes of the locks beside this file. Packages come from where pip's configuration
says, and in ready-built wheels only: no step needs a compiler.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from infra.install import pip_settings, stop, uv_options, without_logins

LOCKS = Path(__file__).parent
CURES = {
    "cpu": "torch's builds for CPUs are in no usual index; name a place that has them in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
}
HASHED = ("--require-hashes", "--only-binary", ":all:")


def main(step: str = "", *arguments: str) -> None:
    """Do a step, or end with one line that says why not."""
    steps: dict[str, Callable[..., None]] = {"build": build, "dependencies": dependencies, "project": project}
    if step not in steps:
        stop(f"{step or 'no step'}: must be one of {', '.join(steps)}")
    steps[step](*arguments)


def build(tools: str, prefix: str) -> None:
    """Make an environment with uv and what builds the project, and an empty one for the image."""
    for folder in (tools, prefix):
        run(sys.executable, "-m", "venv", folder)
    run(f"{tools}/bin/python", "-m", "pip", "install", *HASHED, "--requirement", str(LOCKS / "requirements-build.txt"))


def dependencies(target: str, tools: str, prefix: str) -> None:
    """Install what a target needs into the image's environment."""
    locks = [LOCKS / "requirements.txt", LOCKS / f"requirements-{target}.txt"]
    if not locks[1].exists():
        stop(f"{target}: must be a target, cpu or cuda")
    given = pip_settings(f"{tools}/bin/python")
    given.pop("constraint", None)  # the locks leave nothing open, and uv takes only hashes beside hashes
    options = uv_options(given)
    if options is None:
        stop(f"pip's configuration has settings that uv does not know: {sorted(given)}")
    read = [word for lock in locks for word in ("--requirement", str(lock))]
    run(
        f"{tools}/bin/uv",
        "pip",
        "install",
        *options,
        "--python",
        f"{prefix}/bin/python",
        *HASHED,
        *read,
        cure=CURES.get(target),
    )


def project(tools: str, prefix: str, folder: str) -> None:
    """Install the project, without what it needs, into a folder; its command begins with PREFIX's Python."""
    with tempfile.TemporaryDirectory() as wheels:
        python = f"{tools}/bin/python"
        run(python, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", wheels, ".")
        wheel = next(str(path) for path in Path(wheels).iterdir())
        uv = [f"{tools}/bin/uv", "pip", "install", "--offline", "--no-deps", "--compile-bytecode"]
        run(*uv, "--python", f"{prefix}/bin/python", "--prefix", folder, wheel)
    run("chmod", "-R", "a+rX", folder)  # a clone may be its owner's alone, the image is not


def run(*command: str, cure: str | None = None) -> None:
    """Run a command whose messages are shown; end if it fails, with its code or with a line that may help."""
    print(without_logins("$ " + " ".join(command)), flush=True)
    if code := subprocess.call(command):
        stop(cure) if cure else sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
