"""Tests of the conversions between networks and pictures."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from stylegan.errors import DamagedError
from stylegan.images import (
    animation_bytes,
    as_gif,
    captioned,
    class_heads,
    cut,
    grid,
    last_frame,
    open_picture,
    picture_bytes,
    png_bytes,
    quantise,
    thumbnail,
    to_float,
    to_uint8,
)

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


def cells(sheet: Image.Image, columns: int, *, cell: int = 64, top: int = 3, left: int = 3) -> list[np.ndarray]:
    """Return the pixels of the cells of a sheet, row by row."""
    gap = cell * 3 // 64
    corners = [
        (x, y)
        for y in range(top, sheet.height - cell, cell + gap)
        for x in [left + column * (cell + gap) for column in range(columns)]
    ]
    return [np.asarray(sheet.crop((x, y, x + cell, y + cell))) for x, y in corners]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grid_places_enlarged_images_row_by_row_with_gutters(channels: int, mode: str) -> None:
    """Cells without an image look like the gutters."""
    images = torch.arange(5 * channels * 16, dtype=torch.uint8).reshape(5, channels, 4, 4)
    sheet = grid(images, columns=3)
    assert (sheet.mode, sheet.size) == (mode, (3 + 3 * 67, 3 + 2 * 67))
    drawn = cells(sheet, 3)
    for image, pixels in zip(images, drawn[:5], strict=True):
        large = image.repeat_interleave(16, 1).repeat_interleave(16, 2).permute(1, 2, 0).squeeze(2).numpy()
        assert np.array_equal(pixels, large)
    paper = np.unique(np.asarray(sheet)[:3])
    assert len(paper) == 1
    assert (drawn[5] == paper).all()
    assert (np.asarray(sheet)[:, [0, 1, 2, 67, 68, 69]] == paper).all()


def test_grid_leaves_cells_empty_where_it_is_told_to() -> None:
    image = torch.zeros(1, 64, 64, dtype=torch.uint8)
    assert [pixels.max() for pixels in cells(grid([None, image, image, None], 2), 2)] == [230, 0, 0, 230]


def test_images_of_all_sizes_are_at_the_same_places_of_a_grid() -> None:
    """So that one sees them grow; where images are larger than a cell, everything is larger by the same factor."""
    drawn = [
        grid(torch.zeros(4, 1, side, side), 2, cell=128, heads=["a", "b"], sides=["1"]) for side in (4, 64, 128, 256)
    ]
    assert drawn[0].size == drawn[1].size == drawn[2].size
    assert np.array_equal(np.asarray(drawn[0]), np.asarray(drawn[2]))
    assert np.allclose(np.array(drawn[3].size) / drawn[0].size, 2, atol=0.01)


def test_heads_and_sides_are_beside_their_columns_and_rows() -> None:
    images = torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    sheet = np.asarray(grid(images, 2, heads=["", "x" * 50], sides=["", "seed 17"])).astype(int)
    height, width = sheet.shape
    top, left = height - 2 * 67, width - 2 * 67
    dark = sheet < 150
    dark[top:, left:] = False
    assert not dark[:top, : left + 67].any()
    assert dark[:top, left + 67 :].any()
    assert not dark[:top, -3:].any()  # cut off where its column ends
    assert not dark[: top + 67, :left].any()
    assert dark[top + 67 :, :left].any()


@pytest.mark.parametrize(("side", "cell"), [(4, 64), (16, 64), (64, 64), (96, 64), (8, 256)])
@pytest.mark.parametrize("heads", [(), ("a", "b", "c")])
def test_an_image_is_cut_out_of_a_grid_as_it_was(side: int, cell: int, heads: tuple[str, ...]) -> None:
    images = torch.randint(0, 256, (6, 3, side, side), dtype=torch.uint8)
    sheet = grid(images, 3, cell=cell, heads=heads)
    for number in range(6):
        found = np.asarray(cut(sheet, number, columns=3, rows=2, side=side, cell=cell))
        assert (found == images[number].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("wrong", [{"columns": 2}, {"rows": 1}, {"rows": 3}, {"side": 48}, {"cell": 128}])
def test_a_sheet_that_was_drawn_in_another_way_is_not_cut(wrong: dict[str, int]) -> None:
    sheet = grid(torch.zeros(6, 1, 16, 16, dtype=torch.uint8), 3, heads="abc")
    with pytest.raises(ValueError, match="is no grid of"):
        cut(sheet, 0, **{"columns": 3, "rows": 2, "side": 16, "cell": 64} | wrong)


def test_class_names_are_drawn_as_far_as_the_font_has_their_letters() -> None:
    names = ["cat", "caf\u00e9", "\u9e7f", "a\nb"]
    assert class_heads(names, [3, 1, 2, 0]) == ["a\\nb", "cafe", "class 2", "cat"]


def test_grid_takes_floats_and_arrays() -> None:
    floats = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    for images in (floats, to_uint8(floats).numpy()):
        assert [pixels.max() for pixels in cells(grid(images, columns=2), 2)] == [0, 255]


def test_grid_refuses_what_is_no_batch_of_images() -> None:
    for images in (torch.zeros(0, 3, 4, 4), torch.zeros(2, 2, 4, 4), torch.zeros(3, 4, 4), [None]):
        with pytest.raises(ValueError, match="grid needs images"):
            grid(images, columns=1)


def test_png_holds_the_same_pixels() -> None:
    sheet = grid(torch.rand(4, 3, 8, 8) * 2 - 1, columns=2)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(sheet)))), np.asarray(sheet))


def test_an_animation_rests_at_its_last_frame_and_repeats() -> None:
    frames = [captioned(Image.new("L", (300, 40), shade), f"{shade}") for shade in (0, 100, 200)]
    animation = animation_bytes(frames)
    assert animation == animation_bytes(frames)
    for data, kind in ((animation, "WEBP"), (as_gif(animation), "GIF")):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.n_frames, image.size, image.info["loop"]) == (kind, 3, (300, 64), 0)
            shades, durations = [], []
            for frame in ImageSequence.Iterator(image):
                frame.load()
                durations.append(frame.info["duration"])
                shades.append(frame.convert("L").getpixel((5, 5)))
        assert durations == [200, 200, 2500]
        assert np.abs(np.array(shades) - [0, 100, 200]).max() <= 2
    assert abs(last_frame(animation).convert("L").getpixel((5, 5)) - 200) <= 2
    assert last_frame(animation_bytes(frames[:1])).size == (300, 64)


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
