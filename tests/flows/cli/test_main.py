"""The command as a whole: exit codes, one line for every mistake, clean standard output."""

import json
import os
import subprocess
import sys

import pytest
from command_line import fail


@pytest.mark.parametrize("verb", ["plan", "run", "shard", "train", "evaluate", "register"])
def test_missing_config_is_bad_usage_for_every_verb(capsys, verb):
    assert "nowhere.yaml: no such config file" in fail(capsys, 2, verb, "nowhere.yaml")


def test_usage_mistakes(capsys, write):
    assert "dance" in fail(capsys, 2, "dance")
    assert "CONFIG" in fail(capsys, 2, "plan")
    assert "--until 9: no such stage; the stages are 8" in fail(capsys, 2, "train", write(), "--until", "9")
    assert "must be key.path=value" in fail(capsys, 2, "plan", write(), "--set", "seed")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.btach=4", "unknown key training.btach; did you mean training.batch?"),
        ("data.resolution=24", "data.resolution=24: must be a power of two from 4 to 1024; the nearest is 16"),
        ("ray.workers=3", "not divisible by its 3 workers; use a multiple of 3"),
        ("model.conditional=true", "model.conditional=true needs labels"),
        ("evaluation.features=classifier", "needs class labels"),
    ],
)
def test_config_mistakes_name_key_value_and_cure(capsys, write, draw_images, tmp_path, override, says):
    source = draw_images(tmp_path / "flat", [f"{i}.png" for i in range(8)])
    config = write(source, evaluation={"metrics": ["fid"], "features": "rotation"})
    assert says in fail(capsys, 2, "shard", config, "--set", override)


def test_server_addresses_where_nobody_is(capsys, write):
    assert "tracking.uri=http://127.0.0.1:9" in fail(capsys, 1, "train", write(tracking={"uri": "http://127.0.0.1:9"}))
    assert "sqlite:///" in fail(capsys, 2, "train", write(tracking={"uri": "/some/folder"}))


def test_json_on_a_terminal_still_goes_to_standard_output(tmp_path, write, draw_images):
    """Progress bars on standard error must not swallow what a shell redirects to a file."""
    source = draw_images(tmp_path / "images", [f"{i}.png" for i in range(8)])
    master, terminal = os.openpty()
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", "shard", write(source), "--json"], stdout=out, stderr=terminal
        )
        assert process.wait(60) == 0
    os.close(terminal)
    assert "shard" in os.read(master, 65536).decode()
    os.close(master)
    assert json.loads((tmp_path / "out").read_text())["num_images"] == 8
