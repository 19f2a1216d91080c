"""Tests of the conversions between networks and pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan.errors import DamagedError
from stylegan.images import grid, open_picture, picture_bytes, png_bytes, quantise, thumbnail, to_float, to_uint8

BYTES = torch.arange(256, dtype=torch.uint8)


def test_both_quantisations_give_back_every_byte() -> None:
    assert torch.equal(to_uint8(to_float(BYTES)), BYTES)
    assert torch.equal(quantise(to_float(BYTES)), BYTES)


def test_floats_span_minus_one_to_one() -> None:
    assert to_float(BYTES).aminmax() == (-1, 1)


def test_pictures_are_rounded_and_metrics_cut_off() -> None:
    """127.5 x + 127.5 is 0.4 and 0.6 here; 127.5 x + 128 is 0.9 and 1.1."""
    x = (torch.tensor([0.4, 0.6]) - 127.5) / 127.5
    assert to_uint8(x).tolist() == [0, 1]
    assert quantise(x).tolist() == [0, 1]
    half_even = torch.tensor([0.5, 1.5]) / 127.5 - 1
    assert to_uint8(half_even).tolist() == [0, 2]
    assert quantise(half_even).tolist() == [1, 2]


def test_values_outside_are_saturated() -> None:
    x = torch.tensor([-3.0, 3.0])
    assert to_uint8(x).tolist() == quantise(x).tolist() == [0, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grid_places_images_row_by_row(channels: int, mode: str) -> None:
    images = torch.stack([torch.full((channels, 2, 3), 10 * (i + 1), dtype=torch.uint8) for i in range(5)])
    sheet = grid(images, columns=3)
    assert (sheet.mode, sheet.size) == (mode, (9, 4))
    cells = np.asarray(sheet.convert("L"))[::2, ::3]
    assert cells.tolist() == [[10, 20, 30], [40, 50, 0]]


def test_grid_keeps_the_orientation_and_the_colours_of_an_image() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)
    assert np.array_equal(np.asarray(grid(image, columns=1)), image[0].permute(1, 2, 0).numpy())


def test_grid_takes_floats_and_arrays() -> None:
    floats = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    assert np.asarray(grid(floats, columns=2)).tolist() == [[0, 255]]
    assert np.asarray(grid(to_uint8(floats).numpy(), columns=1)).tolist() == [[0], [255]]


def test_grid_refuses_what_is_no_batch_of_images() -> None:
    for shape in ((0, 3, 4, 4), (2, 2, 4, 4), (3, 4, 4)):
        with pytest.raises(ValueError, match="grid needs images"):
            grid(torch.zeros(shape), columns=1)


def test_png_holds_the_same_pixels() -> None:
    picture = grid(torch.rand(4, 3, 8, 8) * 2 - 1, columns=2)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(picture)))), np.asarray(picture))


def test_a_picture_larger_than_its_format_allows():
    """WebP ends at 16,383 pixels, JPEG at 65,500."""
    for ending, width in ((".webp", 16_384), (".jpg", 65_501)):
        with pytest.raises(ValueError, match=f"{width}x1 pixels do not fit into a {ending} file; use .png"):
            picture_bytes(Image.new("L", (width, 1)), ending)
    assert picture_bytes(Image.new("L", (65_501, 1)), ".png").startswith(b"\x89PNG")


def test_our_own_pictures_may_be_larger_than_a_stranger_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses to open twice its limit, by default 179 million pixels: a grid of 14 x 14 images of 1024x1024."""
    large = png_bytes(Image.new("L", (300, 200), 7))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(large))
    picture = open_picture(large, "x.png", cure="draw it again")
    assert picture.size == (300, 200)
    assert Image.open(io.BytesIO(thumbnail(picture, side=30))).size == (30, 20)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_picture_is_one_line(damage: str) -> None:
    png = bytearray(png_bytes(Image.effect_noise((64, 64), 90)))
    if damage == "flipped":
        png[200] ^= 1
    content = {"cut": png[:300], "empty": b"", "text": b"no picture", "flipped": png}[damage]
    with pytest.raises(DamagedError, match=r"x\.png: is not a picture .*; draw it again"):
        open_picture(bytes(content), "x.png", cure="draw it again")
