"""`make audit` says what pip-audit has found, and does not take silence of the service for good news."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "audit.py"
GOOD = {"name": "numpy", "version": "2.4.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0+cpu)"}
BAD = {
    "name": "pillow",
    "version": "11.0.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["11.0.1"], "aliases": ["CVE-2026-1"], "description": "long"}],
}


def audit(folder, printed, errors=""):
    """Run the script on what pip-audit prints; pip-audit itself is not installed beside the product."""
    (folder / "pip_audit.py").write_text(
        f"import sys\nassert '--disable-pip' in sys.argv\nsys.stdout.write({printed!r})\nsys.stderr.write({errors!r})\n"
    )
    metadata = folder / "pip_audit-2.10.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: pip-audit\nVersion: 2.10.1\n")
    return subprocess.run(
        [sys.executable, str(SCRIPT), "constraints.txt"],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        (
            [GOOD, SKIPPED],
            0,
            "audit: 0 known vulnerabilities in 1 packages of constraints.txt, by pip-audit 2.10.1; not looked up: torch",
        ),
        ([GOOD, BAD], 1, "pillow 11.0.0: PYSEC-2026-1 CVE-2026-1; fixed in 11.0.1"),
        (
            [SKIPPED],
            2,
            "audit: the service of vulnerabilities knows none of the 1 packages of constraints.txt: it cannot be reached",
        ),
    ],
)
def test_what_was_found_and_what_could_not_be_asked(tmp_path, packages, code, says):
    done = audit(tmp_path, json.dumps({"dependencies": packages, "fixes": []}))
    assert done.returncode == code
    assert (done.stdout + done.stderr).startswith(says)


def test_no_answer_is_one_line(tmp_path):
    done = audit(tmp_path, "", "Traceback\nConnectionError: no network")
    assert done.returncode == 2
    assert done.stderr == "audit: constraints.txt was not looked up: ConnectionError: no network\n"
