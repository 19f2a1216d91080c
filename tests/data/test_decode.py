"""From the bytes of a file to pixels: every mode, orientation, crop and scale, and files that are no pictures."""

import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from stylegan.config.sections import DataConfig
from stylegan.data.decode import UnreadableImage, decode, fit, prepare, pyramid, read_shape


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
    """Every mode becomes RGB with its colour; transparent parts show white; 16-bit values are scaled, not cut."""
    assert pixel(saved(Image.new(mode, (4, 4), colour), kind)) == expected


def test_palettes():
    """A palette gives its colours, a transparent entry shows white, and grey is the luma of the colours."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert pixel(saved(image)) == [255, 0, 0]
    assert pixel(saved(image), 1) == 76
    assert pixel(saved(image, transparency=1)) == [255, 255, 255]


def test_grey_of_colour():
    """One channel contains the luma of ITU-R 601."""
    assert pixel(saved(Image.new("RGB", (4, 4), (0, 255, 0))), 1) == 150


def test_exif_orientation_is_applied():
    """A photograph that is stored sideways is turned upright."""
    image = Image.new("RGB", (8, 4), "red")
    image.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    upright = decode(saved(image, exif=exif), 3)
    assert upright.size == (4, 8)
    assert upright.getpixel((2, 1)) == (0, 0, 255)
    assert upright.getpixel((2, 7)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("I;16", 1), ("RGB", 3), ("P", 3), ("LA", 2), ("RGBA", 4)]
)
def test_read_shape_gives_the_stored_one(mode, channels):
    assert read_shape(saved(Image.new(mode, (5, 3)))) == (5, 3, channels)
    with pytest.raises(UnreadableImage, match="not an image in a known format"):
        read_shape(b"no image")


def test_fit_takes_the_central_square():
    """The sides of a wide picture are cut off; nothing is squeezed."""
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


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """Return a PNG of 82 bytes whose header promises `width` x `height` pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


PICTURE = saved(Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image in a known format"),
        (PICTURE[: len(PICTURE) // 2], "truncated"),
        (PICTURE[:20], "(?i)truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        (saved(Image.new("F", (4, 4), 0.5), "TIFF"), "no agreed range"),
        (saved(Image.new("I", (4, 4), 70_000), "TIFF"), "no agreed range"),
    ],
    ids=["empty", "html", "half", "header", "postscript", "float", "32 bit"],
)
def test_files_that_are_no_pictures(data, reason):
    """Each is refused with a reason, whatever the decoder raises."""
    with pytest.raises(UnreadableImage, match=reason):
        decode(data, 3)


def test_every_cut_of_a_file_is_refused():
    """A PNG or JPEG that is cut off anywhere is refused, and nothing else is raised."""
    for data in (PICTURE, saved(Image.open(BytesIO(PICTURE)), "JPEG")):
        for end in range(0, len(data) - 16, len(data) // 40):
            with pytest.raises(UnreadableImage):
                decode(data[:end], 3)


NOISE = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def settings(**changes: object) -> DataConfig:
    return DataConfig(**{"source": "x", "resolution": 16} | changes)


def refusal(content: bytes | np.ndarray, **changes: object) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        prepare(content, settings(**changes))
    return caught.value


def prepared(image: Image.Image | bytes | np.ndarray, **changes: object) -> np.ndarray:
    """Return the pixels of the final resolution as signed numbers."""
    content = saved(image) if isinstance(image, Image.Image) else image
    data = settings(**changes)
    return prepare(content, data).levels[data.resolution].astype(int)


def test_prepare_gives_every_level_and_the_original_size():
    """There are levels from the resolution down to 4, for files and arrays, in grey and in colour."""
    found = prepare(saved(Image.fromarray(NOISE[:, :40])), settings())
    assert (found.width, found.height) == (40, 64)
    assert {resolution: level.shape for resolution, level in found.levels.items()} == {
        16: (16, 16, 3),
        8: (8, 8, 3),
        4: (4, 4, 3),
    }
    grey = prepare(saved(Image.fromarray(NOISE)), settings(channels=1)).levels
    assert {level.dtype.name for level in grey.values()} == {"uint8"}
    assert grey[4].shape == (4, 4)


def test_pixels_skip_decoding():
    """An array gives the same pixels as its PNG; channels are converted; other arrays are refused."""
    for pixels in (NOISE, NOISE[..., 0], NOISE[:16, :16]):
        for channels in (1, 3):
            from_file = prepared(saved(Image.fromarray(pixels)), channels=channels)
            assert (prepared(pixels, channels=channels) == from_file).all()
    assert refusal(NOISE.astype(np.float32)).kind == "unreadable"
    assert "[64, 64, 2]" in str(refusal(NOISE[..., :2].copy()))
    assert refusal(NOISE[:0]).kind == "too small"


def test_the_source_of_pixels_is_not_written_to():
    """A source may return views of one array for all its images."""
    pixels = NOISE[:16, :16].copy()
    pixels.flags.writeable = False
    assert (prepared(pixels) == pixels).all()


def test_icc_profile_is_converted(wide_gamut):
    """A green of a wide gamut becomes a purer one in sRGB; alpha and grey keep working; a broken or unfitting profile
    changes nothing.
    """
    green = Image.new("RGB", (16, 16), (60, 200, 60))
    plain, wide = prepared(saved(green))[0, 0], prepared(saved(green, icc_profile=wide_gamut))[0, 0]
    assert plain.tolist() == [60, 200, 60]
    assert wide[0] < 40  # the same green with less red and blue in it
    assert wide[2] < 45
    clear = Image.new("RGBA", (16, 16), (60, 200, 60, 255))
    assert prepared(saved(clear, icc_profile=wide_gamut))[0, 0].tolist() == wide.tolist()
    assert prepared(saved(Image.new("L", (16, 16), 77), icc_profile=wide_gamut))[0, 0].tolist() == [77] * 3
    for broken in (b"not a profile", wide_gamut[:200]):
        assert prepared(saved(green, icc_profile=broken))[0, 0].tolist() == [60, 200, 60]


def test_profile_of_srgb_changes_nothing():
    """Most files carry such a profile. Their pixels stay exactly as they are; a palette with a profile works as well."""
    colours = np.array(list(product(range(0, 256, 17), repeat=3)), np.uint8).reshape(64, 64, 3)  # 4,096 colours
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), nearly_srgb()):
        assert (prepared(saved(Image.fromarray(colours), icc_profile=profile), resolution=64) == colours).all()
    palette = Image.fromarray(NOISE[:16, :16]).quantize(8)
    assert (prepared(saved(palette, icc_profile=nearly_srgb())) == np.asarray(palette.convert("RGB"))).all()


def test_profile_of_a_palette_and_of_many_threads(wide_gamut):
    """The colours of a palette are converted like those of RGB; threads share the transform."""
    green = Image.new("RGB", (16, 16), (60, 200, 60))
    wanted = prepared(saved(green, icc_profile=wide_gamut))
    assert (prepared(saved(green.quantize(4), icc_profile=wide_gamut)) == wanted).all()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(prepared, [saved(green, icc_profile=wide_gamut)] * 64))
    assert all((result == wanted).all() for result in results)


def make_profile(curve: bytes, primaries: list[tuple[float, float, float]]) -> bytes:
    """Return an RGB profile of a matrix and a curve, as a camera writes it."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(map(number, values))

    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"made\0" + bytes(78) + bytes(1),
        b"cprt": b"text" + bytes(4) + b"none\0" + bytes(3),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        **{name: xyz(*primary) for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += (
        struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + number(0.9642) + number(1.0) + number(0.8249)
    )
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


@pytest.fixture(scope="module")
def wide_gamut() -> bytes:
    """Adobe RGB: gamma 2.2 and a green outside of sRGB."""
    gamma = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    return make_profile(gamma, [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)])


def nearly_srgb() -> bytes:
    """Return sRGB with its curve as a table of 1,024 entries, as most programs write it: a few colours move by one
    unit.
    """
    x = np.linspace(0, 1, 1024)
    values = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    curve = b"curv" + bytes(4) + struct.pack(">I", 1024) + np.rint(values * 65535).astype(">u2").tobytes()
    return make_profile(curve, [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)])


def test_lab_and_ycbcr():
    """Colours of other spaces keep their appearance."""
    lab = Image.new("LAB", (16, 16), (123, 69 + 128, 52 + 128))
    assert np.abs(prepared(saved(lab, "TIFF"))[0, 0] - [220, 30, 30]).max() <= 4
    jpeg = prepared(saved(Image.new("RGB", (16, 16), (200, 30, 30)), "JPEG", quality=95))[0, 0]
    assert np.abs(jpeg - [200, 30, 30]).max() <= 3
    cmyk = prepared(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))[0, 0]
    assert np.abs(cmyk - [255, 0, 0]).max() <= 6


def deep_png(values: np.ndarray, kind: int) -> bytes:
    """Return a 16-bit PNG, which Pillow cannot write. Its rows alternate between the filters None and Sub."""
    height, width = values.shape[:2]
    lines = values.astype(">u2").reshape(height, -1).view(np.uint8).reshape(height, -1)
    reach = lines.shape[1] // width  # bytes of a pixel: what Sub subtracts
    raw = b""
    for number, line in enumerate(lines):
        less = np.concatenate([np.zeros(reach, np.uint8), line[:-reach]])
        raw += b"\1" + (line - less).tobytes() if number % 2 else b"\0" + line.tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_sixteen_bits_are_rounded():
    """Each value v of a grey, RGB or RGBA PNG becomes round(v / 257), which differs from its high byte."""
    values = np.random.default_rng(5).integers(0, 65536, (16, 16, 4))
    wanted = np.rint(values / 257).astype(int)
    assert (wanted != values // 256).any()
    assert (prepared(deep_png(values[..., 0], 0), channels=1) == wanted[..., 0]).all()
    assert (prepared(deep_png(values[..., :3], 2)) == wanted[..., :3]).all()
    solid = values.copy()
    solid[..., 3] = 65535
    assert (prepared(deep_png(solid, 6)) == wanted[..., :3]).all()
    solid[..., 3] = 0
    assert (prepared(deep_png(solid, 6)) == 255).all()
    assert (
        np.abs(
            prepared(deep_png(np.dstack([values[..., 0], solid[..., 3] + 65535]), 4), channels=1) - wanted[..., 0]
        ).max()
        <= 1
    )


def test_transparent_colour_shows_white():
    """A colour that a PNG declares transparent shows white, in grey and in RGB."""
    image = Image.fromarray(NOISE[:16, :16])
    colour = tuple(NOISE[3, 5].tolist())
    shown = prepared(saved(image, transparency=colour))
    assert shown[3, 5].tolist() == [255] * 3
    assert (shown[0, 0] == NOISE[0, 0]).all()
    grey = Image.new("L", (16, 16), 9)
    assert (prepared(saved(grey, transparency=9), channels=1) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_first_frame_of_an_animation(kind):
    """Of several pictures in one file, the first is used."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    first, second = Image.new("RGB", (16, 16), (250, 10, 10)), Image.new("RGB", (16, 16), (10, 10, 250))
    found = prepared(saved(first, kind, save_all=True, append_images=[second]))
    assert np.abs(found - [250, 10, 10]).max() <= 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_in_every_format(kind):
    """A quarter turn is applied, and the reported size is the upright one."""
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = prepare(saved(image, kind, exif=exif), settings(resolution=16))
    assert (found.width, found.height) == (16, 32)
    top, bottom = found.levels[4][0, 0], found.levels[4][3, 0]
    assert top[2] > 200 > top[0]
    assert bottom[0] > 200 > bottom[2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_passed_over():
    """Broken EXIF data do not make a picture unreadable."""
    for damage in (b"MM\0*\xff\xff\xff\xff", b"no such header"):
        for kind in ("JPEG", "PNG", "WEBP"):
            assert prepared(saved(Image.fromarray(NOISE), kind, exif=b"Exif\0\0" + damage)).shape == (16, 16, 3)


def test_max_pixels_is_read_from_the_header():
    """A decompression bomb is refused before it is decoded, without a warning and without Pillow's own limit. A higher
    limit accepts it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert refusal(bomb()).kind == "too large"
        assert "30000x30000 are more pixels than data.max_pixels=89478485" in str(refusal(bomb()))
        assert refusal(bomb(60_000, 60_000), max_pixels=10**9).kind == "too large"
        assert refusal(bomb(10_000, 10_000), max_pixels=10**9).kind != "too large"  # beyond where Pillow warns
        assert refusal(bomb(20_000, 20_000), max_pixels=10**9).kind != "too large"  # beyond where Pillow fails
        assert refusal(saved(Image.fromarray(NOISE)), max_pixels=64 * 64 - 1).kind == "too large"
        assert refusal(NOISE, max_pixels=64 * 64 - 1).kind == "too large"
        assert prepared(NOISE, max_pixels=64 * 64).shape == (16, 16, 3)


def test_a_picture_above_pillows_limit_is_cropped(monkeypatch):
    """Only the limit of the config decides, also where a part is cut out."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepared(saved(Image.fromarray(NOISE[:40]))).shape == (16, 16, 3)


def test_a_frame_larger_than_its_canvas_is_too_large():
    """A GIF of 1x1 whose first picture is 60,000 x 60,000."""
    gif = bytearray(saved(Image.new("P", (1, 1)), "GIF"))
    start = gif.index(b",", 13)
    gif[start + 5 : start + 9] = struct.pack("<HH", 60_000, 60_000)
    assert refusal(bytes(gif)).kind == "too large"


def test_min_size():
    """The shorter side counts, for files and arrays."""
    for content in (NOISE[:20], saved(Image.fromarray(NOISE[:20]))):
        assert prepared(content, min_size=20).shape == (16, 16, 3)
        error = refusal(content, min_size=21)
        assert (error.kind, str(error)) == ("too small", "64x20 has a shorter side than data.min_size=21")


def formats() -> list[str]:
    return [
        "PNG",
        "JPEG",
        "GIF",
        "WEBP",
        "BMP",
        "TIFF",
        "PPM",
        "JPEG2000",
        *(["AVIF"] if features.check("avif") else []),
    ]


@pytest.mark.parametrize("kind", formats())
def test_truncated_files_are_told_from_others(kind):
    """A file that is cut anywhere after its first bytes is `truncated`."""
    data = saved(Image.fromarray(NOISE), kind)
    assert prepared(data).shape == (16, 16, 3)
    kinds = [refusal(data[: len(data) * part // 10]).kind for part in range(1, 9)]
    assert set(kinds) == {"truncated"}, kinds


def test_damage_is_not_taken_for_a_cut():
    """A whole file with a wrong byte, or of another kind, is `unreadable`; an empty one is `truncated`."""
    damaged = bytearray(PICTURE)
    damaged[len(damaged) // 2] ^= 0xFF
    assert refusal(bytes(damaged)).kind == "unreadable"
    assert refusal(b"<html>not found</html>").kind == "unreadable"
    assert refusal(b"").kind == "truncated"


def test_refusals_cross_processes():
    """Kind and reason survive pickling."""
    error = pickle.loads(pickle.dumps(UnreadableImage("why", "too small")))
    assert (error.kind, str(error)) == ("too small", "why")


def test_wide_letterboxes_the_central_part():
    """The central 4:3 part is laid on black, as the official tool makes LSUN cars, at any resolution."""
    image = Image.new("RGB", (64, 100), (200, 0, 0))
    image.paste((0, 0, 200), (0, 26, 64, 74))  # the central 64x48
    pixels = prepared(image, crop="wide", resolution=64)
    assert (pixels[:8] == 0).all()
    assert (pixels[56:] == 0).all()
    assert (pixels[8:56] == [0, 0, 200]).all()
    wide = Image.new("RGB", (120, 48), (200, 0, 0))
    wide.paste((0, 0, 200), (28, 0, 92, 48))
    assert (prepared(wide, crop="wide", resolution=64)[8:56] == [0, 0, 200]).all()
    assert (prepared(wide, crop="wide", resolution=16, channels=1)[2:14] > 0).all()


@pytest.mark.parametrize("size", [(63, 100), (200, 47), (64, 40)])
def test_wide_never_enlarges(size):
    """A picture is too small if it is narrower than R, or if its part would have to be enlarged."""
    assert refusal(saved(Image.new("RGB", size)), crop="wide", resolution=64).kind == "too small"


def test_wide_takes_what_just_fits():
    """A picture that needs no resize keeps its pixels."""
    pixels = np.random.default_rng(6).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert (prepared(pixels, crop="wide", resolution=64)[8:56] == pixels).all()
    assert prepared(pixels[:3, :4], crop="wide", resolution=4).shape == (4, 4, 3)


def test_celeba_is_the_published_crop():
    """128x128 around (89, 121) of the aligned images, resized to another R if necessary; other sizes are refused."""
    pixels = np.random.default_rng(7).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    assert (prepared(pixels, crop="celeba", resolution=128) == pixels[121 - 64 : 121 + 64, 89 - 64 : 89 + 64]).all()
    half = prepared(pixels, crop="celeba", resolution=64, resize_filter="box")
    face = pixels[57:185, 25:153].reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(half - face).max() <= 1
    error = refusal(np.zeros((200, 200, 3), np.uint8), crop="celeba")
    assert "200x200, but data.crop=celeba takes the aligned images of 178x218 only" in str(error)


def test_jpeg_is_decoded_in_full():
    """There is no draft mode: a large JPEG gives the same as its decoded pixels."""
    data = saved(Image.fromarray(np.kron(NOISE, np.ones((8, 8, 1), np.uint8))), "JPEG", quality=90)
    assert (prepared(data) == prepared(np.asarray(Image.open(BytesIO(data))))).all()
