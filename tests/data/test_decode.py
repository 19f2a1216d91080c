"""From a file's bytes to pixels: every mode, orientation, crop, scale, and files that are no pictures."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from stylegan.data.decode import UnreadableImage, decode, encode, fit, measure, pyramid


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(data: bytes, channels: int = 3) -> list[int]:
    return np.asarray(decode(data, channels))[0, 0].tolist()


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("RGB", (10, 200, 30), "PNG", [10, 200, 30]),
        ("L", 77, "PNG", [77, 77, 77]),
        ("1", 1, "PNG", [255, 255, 255]),
        ("RGBA", (10, 200, 30, 255), "PNG", [10, 200, 30]),
        ("RGBA", (10, 200, 30, 0), "PNG", [255, 255, 255]),
        ("LA", (100, 0), "PNG", [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), "PNG", [204, 204, 204]),
        ("CMYK", (0, 255, 255, 0), "TIFF", [255, 0, 0]),
        ("I;16", 0xFFFF, "PNG", [255, 255, 255]),
        ("I;16", 257 * 100, "PNG", [100, 100, 100]),
        ("I", 257 * 9, "TIFF", [9, 9, 9]),
    ],
)
def test_modes(mode, colour, kind, expected):
    """Every mode becomes RGB with its colour kept; transparent parts show white; 16 bit are scaled, not cut."""
    assert pixel(saved(Image.new(mode, (4, 4), colour), kind)) == expected


def test_palettes():
    """A palette gives its colours, a transparent entry shows white, and grey is the grey of the colours."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert pixel(saved(image)) == [255, 0, 0]
    assert pixel(saved(image), 1) == 76
    assert pixel(saved(image, transparency=1)) == [255, 255, 255]


def test_grey_of_colour():
    """One channel holds the luma of ITU-R 601."""
    assert pixel(saved(Image.new("RGB", (4, 4), (0, 255, 0))), 1) == 150


def test_exif_orientation_is_applied():
    """A photo stored sideways is turned upright."""
    image = Image.new("RGB", (8, 4), "red")
    image.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    upright = decode(saved(image, exif=exif), 3)
    assert upright.size == (4, 8)
    assert upright.getpixel((2, 1)) == (0, 0, 255)
    assert upright.getpixel((2, 7)) == (255, 0, 0)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("I;16", 1), ("RGB", 3), ("P", 3), ("LA", 2), ("RGBA", 4)])
def test_measure_tells_what_is_stored(mode, channels):
    assert measure(saved(Image.new(mode, (5, 3)))) == (5, 3, channels)
    with pytest.raises(UnreadableImage, match="not an image in a known format"):
        measure(b"no image")


def test_fit_takes_the_central_square():
    """The sides of a wide picture are cut off, nothing is squeezed."""
    image = Image.new("RGB", (12, 4), "red")
    image.paste("blue", (4, 0, 8, 4))
    for resolution in (4, 16):
        assert np.asarray(fit(image, resolution, "lanczos")).reshape(-1, 3).tolist() == [[0, 0, 255]] * resolution**2


def test_filter_is_antialiased_and_configured():
    """A fine chessboard becomes even grey with the box filter; other filters give other pixels."""
    board = Image.fromarray((np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8))
    assert np.abs(np.asarray(fit(board, 8, "box")).astype(int) - 128).max() <= 1
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8))
    results = {name: np.asarray(fit(photo, 8, name)).tobytes() for name in ("box", "bicubic", "lanczos")}
    assert len(set(results.values())) == 3


def test_levels_are_means_of_the_final_image_rounded_once():
    """Each level is the box mean of the full resolution, not of the rounded level above it."""
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    levels = pyramid(Image.fromarray(image))
    assert list(levels) == [32, 16, 8, 4]
    assert (levels[32] == image).all()
    for resolution, level in levels.items():
        size = 32 // resolution
        means = image.reshape(resolution, size, resolution, size, 3).mean((1, 3), dtype=np.float64)
        assert (level == np.rint(means)).all()


def test_encode_is_lossless_and_repeatable():
    """The PNG holds exactly the pixels, and the same pixels give the same bytes."""
    for shape in ((8, 8), (8, 8, 3)):
        pixels = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
        assert (np.asarray(Image.open(BytesIO(encode(pixels)))) == pixels).all()
        assert encode(pixels) == encode(pixels.copy())


def bomb() -> bytes:
    """A PNG whose header promises 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


PICTURE = saved(Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image in a known format"),
        (PICTURE[: len(PICTURE) // 2], "truncated"),
        (PICTURE[:20], "(?i)truncated"),
        (bomb(), "decompression bomb"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        (saved(Image.new("F", (4, 4), 0.5), "TIFF"), "no agreed range"),
        (saved(Image.new("I", (4, 4), 70_000), "TIFF"), "no agreed range"),
    ],
    ids=["empty", "html", "half", "header", "bomb", "postscript", "float", "32 bit"],
)
def test_files_that_are_no_pictures(data, reason):
    """Each is refused with a reason, whatever the decoder raises."""
    with pytest.raises(UnreadableImage, match=reason):
        decode(data, 3)


def test_every_cut_of_a_file_is_refused():
    """Wherever a PNG or JPEG was cut off, it is refused and nothing else is raised."""
    for data in (PICTURE, saved(Image.open(BytesIO(PICTURE)), "JPEG")):
        for end in range(0, len(data) - 16, len(data) // 40):
            with pytest.raises(UnreadableImage):
                decode(data[:end], 3)
