"""SECURITY.md: what it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()


def test_its_links_lead_somewhere_and_it_names_nobody():
    targets = re.findall(r"\]\(([^)#]+)", TEXT)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
    assert not re.search(r"\w@\w|https?://", TEXT)
