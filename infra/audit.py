"""Look up known vulnerabilities of the pinned packages, for `make audit`: `python infra/audit.py constraints.txt`.

It needs pip-audit on the path of Python. Exit codes: 0 none is known, 1 some are, 2 the packages could not be looked up, of
which pip-audit itself would say that none is known.
"""

import importlib.metadata
import json
import subprocess
import sys


def main() -> int:
    """Print a line for each vulnerability, and one at the end."""
    pins = sys.argv[1]
    command = [sys.executable, "-m", "pip_audit", "--requirement", pins, "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"audit: {pins} was not looked up: {reason[:300]}", file=sys.stderr)
        return 2
    asked = [package for package in packages if "skip_reason" not in package]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if not asked:
        print(
            f"audit: the service of vulnerabilities knows none of the {len(packages)} packages of {pins}: it cannot be reached "
            "from here (a mirror may stand in its place); run this where the internet is",
            file=sys.stderr,
        )
        return 2
    found = [(package, one) for package in asked for one in package["vulns"]]
    for package, one in found:
        fixed = ", ".join(one["fix_versions"]) or "no version yet"
        names = " ".join([one["id"], *one.get("aliases", [])])
        print(f"{package['name']} {package['version']}: {names}; fixed in {fixed}")
    tool = f"pip-audit {importlib.metadata.version('pip-audit')}"
    left = f"; not looked up: {', '.join(skipped)}" if skipped else ""
    print(f"audit: {len(found)} known vulnerabilities in {len(asked)} packages of {pins}, by {tool}{left}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
