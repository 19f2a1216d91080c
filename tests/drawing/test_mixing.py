"""Which layers are coarse, middle and fine, and what mixing does to an image."""

import re

import pytest
import torch

from stylegan.drawing.mixing import PARTS, describe, mix_layers, parse_layers, part_layers
from stylegan.errors import ConfigError


def test_the_parts_at_1024_are_those_of_the_paper():
    """StyleGAN, section 3.1: coarse is 4x4 and 8x8, middle 16x16 and 32x32, fine 64x64 to 1024x1024."""
    assert [part_layers(part, 18) for part in PARTS] == [range(4), range(4, 8), range(8, 18)]


@pytest.mark.parametrize("num_layers", range(2, 19, 2))
def test_every_layer_belongs_to_one_part(num_layers):
    layers = [layer for part in PARTS for layer in part_layers(part, num_layers)]
    assert layers == list(range(num_layers))
    assert all(part_layers(part, num_layers) for part in PARTS) or num_layers == 2


@pytest.mark.parametrize(
    ("text", "layers"),
    [("coarse", (0, 1)), ("fine", (4, 5)), ("0-3", (0, 1, 2, 3)), ("5, 0-1,1", (0, 1, 5)), ("4", (4,))],
)
def test_layers_are_read_from_text(text, layers):
    assert parse_layers(text, 6) == layers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "0-6",
            "this model has the layers 0 to 5; coarse is 0-1 (4x4 on), middle is 2-3 (8x8 on), fine is 4-5 (16x16 on)",
        ),
        ("3-1", "must be coarse, middle, fine, or layers such as 0-3 or 0,2,4-5"),
        ("", "must be coarse"),
        ("Coarse", "must be coarse"),
        ("1,,2", "must be coarse"),
        ("99999", "must be coarse"),
    ],
)
def test_layers_that_a_model_does_not_have_are_one_line(text, says):
    with pytest.raises(ConfigError, match=f"^--styles {re.escape(text)}: {re.escape(says)}"):
        parse_layers(text, 6)


def test_a_model_of_two_layers_has_no_middle():
    with pytest.raises(ConfigError, match="has none in the middle"):
        parse_layers("middle", 2)
    assert describe(2) == "coarse is 0 (4x4 on), fine is 1 (4x4 on)"


def test_mixing_takes_the_layers_that_it_is_told():
    a, b = torch.randn(3, 6, 4), torch.randn(1, 6, 4)
    mixed = mix_layers(a, b, (1, 5))
    assert torch.equal(mixed[:, [1, 5]], b[:, [1, 5]].expand(3, -1, -1))
    assert torch.equal(mixed[:, [0, 2, 3, 4]], a[:, [0, 2, 3, 4]])
