"""The places of a stack: a config that names none takes them from the environment, one that does keeps its own."""

import pytest

from stylegan.config.file import build, dump, read
from stylegan.errors import ConfigError

FACES = {"name": "faces", "data": {"source": "digits", "resolution": 8}}
PLACES = {
    "STYLEGAN_STORAGE": "s3://stylegan/",
    "STYLEGAN_TRACKING_URI": "http://127.0.0.1:5000",
    "STYLEGAN_RAY_ADDRESS": "127.0.0.1:6379",
}


@pytest.fixture
def _stack(monkeypatch):
    for name, value in PLACES.items():
        monkeypatch.setenv(name, value)


def places(tree):
    config = build(FACES | tree)
    return config.storage.root, config.tracking.uri, config.ray.address


@pytest.mark.usefixtures("_stack")
def test_a_config_without_places_takes_those_of_the_stack():
    found = "s3://stylegan/stylegan-data", "http://127.0.0.1:5000", "127.0.0.1:6379"
    assert places({}) == found
    assert places({"storage": {}, "tracking": {"uri": None}, "ray": {"address": None}}) == found


@pytest.mark.usefixtures("_stack")
@pytest.mark.parametrize("root", ["faces-data", "./faces-data", "x/../faces-data"])
def test_a_relative_root_begins_at_the_storage_of_the_stack(root):
    assert places({"storage": {"root": root}})[0] == "s3://stylegan/faces-data"


@pytest.mark.usefixtures("_stack")
@pytest.mark.parametrize("root", ["s3://mine/faces", "/data/faces", "~/faces", "file:///data/faces", "memory://faces"])
def test_a_config_with_places_keeps_them(root):
    tree = {"storage": {"root": root}, "tracking": {"uri": "sqlite:///x.db"}, "ray": {"address": "gpu0:6379"}}
    assert places(tree) == (root, "sqlite:///x.db", "gpu0:6379")


@pytest.mark.usefixtures("_stack")
def test_local_is_a_ray_of_its_own():
    assert places({"ray": {"address": "local"}})[2] is None


@pytest.mark.usefixtures("_stack")
def test_what_was_read_in_a_stack_means_the_same_outside(monkeypatch):
    text = dump(build(FACES))
    for name in PLACES:
        monkeypatch.delenv(name)
    config = read(text, "config.yaml")
    assert (config.storage.root, config.tracking.uri) == ("s3://stylegan/stylegan-data", "http://127.0.0.1:5000")


def test_without_a_stack_nothing_changes():
    assert places({"storage": {"root": "data"}}) == ("data", None, None)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "STYLEGAN_STORAGE",
            "data",
            r"\$STYLEGAN_STORAGE=data: must be a URL such as s3://bucket, or an absolute path",
        ),
        ("STYLEGAN_RAY_ADDRESS", "gpu 0", "ray.address"),
        ("STYLEGAN_TRACKING_URI", "http:/x", "tracking.uri"),
    ],
)
def test_a_wrong_place_is_one_line(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says):
        build(FACES)
