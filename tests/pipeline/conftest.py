"""A root with two runs for tests of the clean-up. It is made once and copied, because making one takes seconds."""

import shutil

import pytest
from cleaning import copy_world, make_world


@pytest.fixture(scope="session")
def _first_world(tmp_path_factory, tiny_config, draw_images, empty_database):
    folder = tmp_path_factory.mktemp("world")
    (folder / "root").mkdir()
    shutil.copy(empty_database, folder / "root" / "mlflow.db")
    return make_world(tiny_config, draw_images, folder, root=str(folder / "root"))


@pytest.fixture
def world(_first_world, tmp_path):
    """A `World`: two runs on two sets, of which nothing needs the first one but the alias `previous`."""
    return copy_world(_first_world, tmp_path / "root")
