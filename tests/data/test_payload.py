"""Payloads: decoding reverses encoding, other programs can read them, and damage raises an error."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from stylegan.data import payload


def draw(resolution: int, channels: int, kind: str) -> np.ndarray:
    shape = (resolution, resolution) if channels == 1 else (resolution, resolution, 3)
    if kind == "flat":
        return np.full(shape, 255, np.uint8)
    noise = np.random.default_rng(resolution).integers(0, 256, shape).astype(np.uint8)
    if kind == "noise":
        return noise
    ramp = np.add.outer(np.arange(resolution), np.arange(resolution)) % 256
    return (ramp.reshape(resolution, resolution, *(1,) * (noise.ndim - 2)) + noise // 16).astype(np.uint8)


def test_raw_up_to_256_png_above():
    assert [payload.suffix(resolution) for resolution in (4, 256, 512, 1024)] == ["npy", "npy", "png", "png"]


@pytest.mark.parametrize("kind", ["flat", "noise", "ramp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [4, 64, 512])
def test_round_trip(resolution, channels, kind):
    """The pixels come back as [C, r, r]; numpy and Pillow read the same."""
    pixels = draw(resolution, channels, kind)
    data = payload.encode(pixels, resolution)
    expected = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    for form in (data, memoryview(data)):
        found = payload.decode(form, payload.suffix(resolution))
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)
    other = np.load(BytesIO(data)) if resolution <= 256 else np.asarray(Image.open(BytesIO(data)))
    assert np.array_equal(other, pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_several_raw_images_at_once(channels):
    """They have the same bytes as one by one."""
    pixels = np.stack([draw(8, channels, kind) for kind in ("flat", "noise", "ramp")])
    assert [row.tobytes() for row in payload.encode_raw(pixels)] == [payload.encode(image, 8) for image in pixels]


def test_png_is_no_larger_than_pillows_fastest():
    pixels = draw(512, 3, "ramp")
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    assert len(payload.encode(pixels, 512)) < 1.1 * len(file.getvalue())


@pytest.mark.parametrize("resolution", [16, 512])
def test_damage_is_a_value_error(resolution):
    """Payloads that are cut short, too long, or of another shape, type or content are refused."""
    data, suffix = payload.encode(draw(resolution, 3, "ramp"), resolution), payload.suffix(resolution)
    oblong, deep = BytesIO(), BytesIO()
    if suffix == "npy":
        np.save(oblong, np.zeros((16, 8, 3), np.uint8))
        np.save(deep, np.zeros((16, 16, 3), np.uint16))
    else:
        Image.new("RGB", (512, 64)).save(oblong, "PNG")
        Image.new("I;16", (512, 512)).save(deep, "PNG")
    other = BytesIO()
    np.save(other, np.asfortranarray(np.zeros((16, 16, 3), np.uint8)))
    wrong = [b"", data[:9], data[: len(data) // 2], b"x" + data[1:], oblong.getvalue(), deep.getvalue()]
    wrong += [other.getvalue()] * (suffix == "npy")
    for content in wrong + [data + b"\0"] * (suffix == "npy"):
        with pytest.raises(ValueError, match=r"."):
            payload.decode(content, suffix)
