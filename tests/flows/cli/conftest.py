"""A config file for the command line, and labelled images."""

import pytest
import yaml
from command_line import TREE


@pytest.fixture
def write(tmp_path):
    """write(source, **sections): a config file on that source with its storage below tmp_path."""

    def make(source="digits", **sections):
        tree = TREE | {"storage": {"root": str(tmp_path / "root")}} | sections
        tree["data"] = TREE["data"] | {"source": str(source)} | sections.get("data", {})
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        return str(path)

    return make


@pytest.fixture
def labelled(draw_images, tmp_path):
    """A folder of the classes `a` (5 images, one of them twice) and `b [0]` (4, and a file that is cut)."""
    source = draw_images(tmp_path / "images", [f"a/{i}.png" for i in range(5)] + [f"b [0]/{i}.png" for i in range(4)])
    (source / "a" / "twin.png").write_bytes((source / "a" / "0.png").read_bytes())
    (source / "b [0]" / "cut.png").write_bytes((source / "a" / "1.png").read_bytes()[:70])
    return source
