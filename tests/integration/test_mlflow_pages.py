"""MLflow's pages as a person opens them, in a browser: the prepared view, a run, its data set, a model and a version."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.stack, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_config):
    """A server of MLflow with two finished runs, whose versions a gate has judged."""
    folder = tmp_path_factory.mktemp("mlflow")
    config = tiny_config(folder)
    runs = [_log(config, folder, number) for number in (0, 1)]
    return runs
