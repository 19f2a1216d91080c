"""What the served model is, as the verb finds it."""

import pytest
import torch
from served_models import write_model

from stylegan.drawing.device import choose_device
from stylegan.errors import ConfigError
from stylegan.serving.models import load
from stylegan.verbs.serve import find, projection_means


def test_a_checkpoint_has_neither_version_nor_alias(tmp_path):
    folder = write_model(tmp_path / "model").checkpoint_uri
    found = find(None, folder)
    assert (found.name, found.version, found.alias, found.run_id, found.checkpoint_uri) == (
        folder,
        None,
        None,
        None,
        folder,
    )


def test_a_model_without_a_run_says_that_it_cannot_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find(None, write_model(tmp_path / "model").checkpoint_uri)
    model = load(found, "cpu", lambda found, generator: projection_means(None, "cpu", found, generator))
    assert model.means is None
    assert "LPIPS" in model.no_means
    assert model.version == model.digest[:12]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_draws():
    assert choose_device() == choose_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="--device cuda: torch finds no GPU here; leave it out or give cpu"):
        choose_device("cuda")
