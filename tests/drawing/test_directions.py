"""Edits along directions: what moves, by how much, and what there is to say about names."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stylegan.config.sections import ModelConfig
from stylegan.drawing.directions import apply, directions_of, find_direction
from stylegan.errors import ConfigError
from stylegan.evaluation.directions import Direction, write_directions
from stylegan.networks.generator import Generator

SMILE = Direction("Smiling", np.array([0.6, 0, -0.8, 0], np.float32), 2.5, 0.1)
HAIR = Direction("Black_Hair", np.array([0, 1, 0, 0], np.float32), 1.0, 0.2)


def test_a_strength_is_in_deviations_along_the_direction() -> None:
    ws = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    moved = apply(ws, SMILE, -2)
    torch.testing.assert_close((moved - ws) @ torch.from_numpy(SMILE.normal), torch.full((2, 3), -5.0))
    torch.testing.assert_close(apply(moved, SMILE, 2), ws)
    assert apply(ws, SMILE, 0) is ws


@pytest.mark.parametrize(
    ("name", "meant"), [("smiling", "Smiling"), ("smile", "Smiling"), ("black hair", "Black_Hair")]
)
def test_an_unknown_attribute_gets_the_nearest_name(name: str, meant: str) -> None:
    assert find_direction([SMILE, HAIR], meant).name == meant
    with pytest.raises(ConfigError, match=f"--attribute {name}: no such attribute; did you mean {meant}?") as caught:
        find_direction([SMILE, HAIR], name)
    assert str(caught.value).endswith("This model's attributes are Smiling, Black_Hair")
    with pytest.raises(ConfigError, match=r"no such attribute\. This model's"):
        find_direction([SMILE, HAIR], "zzz")


def test_directions_of_another_model_are_refused(tmp_path: Path) -> None:
    model = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)
    generator = Generator(model, resolution=8, channels=1)
    assert directions_of(str(tmp_path), generator) == ()
    write_directions(str(tmp_path), [SMILE])
    with pytest.raises(ConfigError, match="have length 4, w of this model has 8"):
        directions_of(str(tmp_path), generator)
