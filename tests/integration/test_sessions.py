"""The command and clusters: whatever the environment says of another one, with tokens, and with addresses that are dead."""

import os
import stat
import time
from pathlib import Path

import pytest
from clusters import Machines, free_port

TOKEN, WRONG = "1" * 32 + "right", "2" * 32 + "wrong"


def line(place):
    """Return the one line of a command that failed."""
    (found,) = [one for one in place.errors().splitlines() if one.startswith("stylegan: ")]
    return found


@pytest.mark.long
def test_a_dead_ray_address_is_not_looked_at_without_ray_address_in_the_config(make_place):
    """`doctor` and `train` start a Ray of their own, also with a home that cannot be written."""
    place = make_place()
    home = place.folder / "home"
    home.mkdir()
    place.env |= {"RAY_ADDRESS": f"127.0.0.1:{free_port()}", "HOME": str(home)}
    place.run("train", str(place.config), "--until", "4")
    assert not (home / ".ray").exists()
    place.env |= {"HOME": "/dev/null"}
    out = place.run("doctor", str(place.config))
    assert "ok    ray      a Ray of its own on this machine, 1 node(s): " in out
    place.wait_until_empty()


@pytest.mark.long
def test_a_cluster_with_tokens(make_place):
    """With its token a run trains there, also from a file and without RAY_AUTH_MODE. Others are refused, and never shown."""
    place = make_place()
    home = place.folder / "home"
    home.mkdir()
    file = place.folder / "token"
    file.write_text(TOKEN)
    file.chmod(stat.S_IRUSR)
    place.env |= {"HOME": str(home)}
    for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
        place.env[name] = ""
    with Machines(env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}, head_cpus=2) as machines:
        there = ("train", str(place.config), "--until", "4", "--set", f"ray.address={machines.address}")
        refused = [
            {},
            {"RAY_AUTH_MODE": "token"},
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG},
            {"RAY_AUTH_TOKEN_PATH": str(place.folder / "gone")},
        ]
        clean = dict(place.env)
        for settings in refused:
            place.env = clean | settings
            begun = time.monotonic()
            place.run(*there, code=1, seconds=120)
            print(settings, time.monotonic() - begun)
            for name in ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN "):
                assert name in line(place), line(place)
            assert WRONG not in place.errors()
        place.env = clean | {"RAY_AUTH_TOKEN_PATH": str(file)}
        assert place.json(*there)["nimg"] == 1000
        assert TOKEN not in place.errors()
        place.env = clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        out = place.run("doctor", str(place.config), "--address", machines.address)
        assert "ok    nodes    1, all with the versions and the code of this process" in out
        assert TOKEN not in out + place.errors()
    assert not (home / ".ray").exists()
    assert all(TOKEN not in path.read_text(errors="replace") for path in Path(place.root).rglob("*.json"))
    place.wait_until_empty()
