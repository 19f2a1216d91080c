"""What a file says and Pillow drops: every kind of PNG, TIFF, TGA and BMP against values that the test itself packs."""

import itertools
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from stylegan.data.decode import UnreadableImage, decode, read_shape

SIDE = 9  # no multiple of 8, so that rows end within a byte
RNG = np.random.default_rng(11)


def shown(content: bytes) -> np.ndarray:
    """Return the pixels that the network would see, int64 [H, W, 3]."""
    return np.asarray(decode(content, 3)).astype(int)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay colours [H, W, 3] from 0 to 255 on white by an alpha [H, W] from 0 to 1."""
    return np.rint(colours * alpha[..., None] + 255 * (1 - alpha[..., None]))


def as_rgb(values: np.ndarray, highest: int) -> np.ndarray:
    """Return values from 0 to `highest`, [H, W] or [H, W, 3], as colours from 0 to 255."""
    colours = values / highest * 255
    return np.repeat(colours[..., None], 3, axis=2) if colours.ndim == 2 else colours


def packed_rows(rows: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Return each row of values as bytes: 16 and 32 bit in byte order, fewer bits from the high end of each byte."""
    if bits >= 8:
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    places = np.arange(bits)[::-1]
    return [np.packbits((row[:, None] >> places & 1).astype(np.uint8).ravel()).tobytes() for row in rows]


# --- PNG --------------------------------------------------------------------------------------------------------------

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)  # y, x, steps


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, depth: int, kind: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """Return a PNG of values [H, W, C] with further chunks before the pixels."""
    height, width = values.shape[:2]
    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    lines = [b"\0" + line for part in passes if part.size for line in packed_rows(part.reshape(len(part), -1), depth)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [head, *chunks, chunk(b"IDAT", zlib.compress(b"".join(lines))), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(("kind", "depth"), [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths])
def test_every_png(kind, depth, declared, interlaced):
    """Every colour type and depth, interlaced or not, shows its colours; declared transparency shows white."""
    highest = 2**depth - 1
    values = RNG.integers(
        0, highest + 1, (SIDE, SIDE, {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}[kind])
    )
    # Of two colours that differ in the last bit only one is transparent; their high bytes are equal.
    values[0, 0], values[0, 1] = 0, 0
    values[0, 1, 0] = 1
    chunks = [chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"sRGB", b"\0"), chunk(b"tEXt", b"Title\0x")]
    alpha = np.ones((SIDE, SIDE))
    if kind == PALETTE:
        table = RNG.integers(0, 256, (2**depth, 4))
        chunks.append(chunk(b"PLTE", table[:, :3].astype(np.uint8).tobytes()))
        colours = table[values[..., 0], :3].astype(float)
        if declared:
            chunks.append(chunk(b"tRNS", table[:, 3].astype(np.uint8).tobytes()))
            alpha = table[values[..., 0], 3] / 255
    elif kind in (GREY, RGB):
        colours = as_rgb(values[..., 0] if kind == GREY else values, highest)
        if declared:
            clear = values[3, 5]
            values[4, 4] = clear
            colours = as_rgb(values[..., 0] if kind == GREY else values, highest)
            chunks.append(chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
            alpha = (values != clear).any(axis=2).astype(float)
    else:
        colours = as_rgb(values[..., 0] if kind == GREY_ALPHA else values[..., :3], highest)
        alpha = values[..., -1] / highest
    found = shown(png(values, depth, kind, *chunks, interlaced=interlaced))
    exact = kind not in (GREY_ALPHA, RGB_ALPHA) and not (kind == PALETTE and declared)
    assert np.abs(found - on_white(colours, alpha)).max() <= (0 if exact else 2)


def swapped_profile() -> bytes:
    """Return sRGB with red for green and green for red."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_transparent_colours_differ_in_the_last_bit(depth):
    """Only exactly the transparent colour shows white."""
    for kind, num in ((GREY, 1), (RGB, 3)):
        if depth in DEPTHS[kind]:
            values = np.zeros((SIDE, SIDE, num), int)
            values[:, 1:, -1] = 1
            clear = chunk(b"tRNS", struct.pack(f">{num}H", *[0] * (num - 1), 1))
            found = shown(png(values, depth, kind, clear))
            assert (found[:, 1:] == 255).all()
            assert (found[:, 0] == 0).all()
            assert read_shape(png(values, depth, kind, clear))[2] == num + 1


def test_a_transparent_colour_keeps_its_profile():
    """The colours beside the transparent one still go through the ICC profile."""
    profile = swapped_profile()
    values = RNG.integers(0, 65536, (SIDE, SIDE, 3))
    values[2, 2] = 7
    chunks = [chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)), chunk(b"tRNS", struct.pack(">3H", 7, 7, 7))]
    found, plain = shown(png(values, 16, RGB, *chunks)), shown(png(values, 16, RGB, chunks[1]))
    assert found[2, 2].tolist() == plain[2, 2].tolist() == [255] * 3
    assert np.abs(found - plain).max() > 20


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("size", [2**10, 2**21, 2**27])
def test_texts_of_any_length(size, depth):
    """A long comment, packed or not, does not refuse a picture, nor take the memory that it unpacks to."""
    values = RNG.integers(0, 2**depth, (SIDE, SIDE, 3))
    wanted = shown(png(values, depth, RGB))
    text = b"x" * size
    texts = [
        chunk(b"tEXt", b"Comment\0" + text[: 2**24]),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text)),
        chunk(b"iTXt", b"Comment\0\1\0en\0C\0" + zlib.compress(text)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
    ]
    for one in (*texts, b"".join(texts * 8 if size < 2**27 else texts)):
        assert (shown(png(values, depth, RGB, one)) == wanted).all()


@pytest.mark.parametrize("packed", [b"\0", b"\1"])
def test_a_long_text_still_turns_the_picture(packed):
    """The orientation is read from XMP data of any length."""
    values = np.zeros((SIDE, SIDE, 3), int)
    values[0] = 200  # the top row; a quarter turn moves it to the right side
    xmp = b'<x tiff:Orientation="6"/>' + b" " * 2**22
    body = b"XML:com.adobe.xmp\0" + packed + b"\0\0\0" + (zlib.compress(xmp) if packed == b"\1" else xmp)
    assert (shown(png(values, 8, RGB, chunk(b"iTXt", body)))[:, -1] == 200).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_profiles_of_any_length(depth):
    """A profile beyond Pillow's limit is applied; one that is no profile changes nothing, however long it is."""
    values = RNG.integers(0, 2**depth, (SIDE, SIDE, 3))
    profile, plain = swapped_profile(), shown(png(values, depth, RGB))
    wanted = shown(png(values, depth, RGB, chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))))
    assert np.abs(wanted - plain).max() > 20
    long = struct.pack(">I", len(profile) + 2**21) + profile[4:] + bytes(2**21)
    assert (shown(png(values, depth, RGB, chunk(b"iCCP", b"p\0\0" + zlib.compress(long)))) == wanted).all()
    for junk in (bytes(2**21), bytes(2**26)):
        assert (shown(png(values, depth, RGB, chunk(b"iCCP", b"p\0\0" + zlib.compress(junk)))) == plain).all()


# --- TIFF -------------------------------------------------------------------------------------------------------------


def tiff(
    values: np.ndarray, bits: int, photometric: int, *, order: str = "<", planes: bool = False, **tags: list
) -> bytes:
    """Return a TIFF of values [H, W, C]. `packed` compresses it; other names are those of tags in TAGS."""
    height, width, num = values.shape
    packed = tags.pop("packed", False)
    parts = [values[..., number] for number in range(num)] if planes else [values.reshape(height, -1)]
    strips = [b"".join(packed_rows(part, bits, order)) for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    entries = {256: [width], 257: [height], 258: [bits] * num, 259: [8 if packed else 1], 262: [photometric]}
    entries |= {277: [num], 278: [height], 279: [len(strip) for strip in strips], 284: [2 if planes else 1]}
    entries |= {TAGS[name]: numbers for name, numbers in tags.items()}
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    long = sum(2 * len(numbers) for numbers in entries.values() if len(numbers) > 2)
    if len(strips) > 2:
        long += 2 * len(strips)
    ends = list(itertools.accumulate((len(strip) for strip in strips), initial=start + long))
    entries[273] = ends[:-1]
    table, further = b"", b""
    for tag in sorted(entries):
        numbers = struct.pack(f"{order}{len(entries[tag])}H", *entries[tag])
        if len(numbers) > 4:
            place, further = struct.pack(f"{order}I", start + len(further)), further + numbers
        else:
            place = numbers.ljust(4, b"\0")
        table += struct.pack(f"{order}HHI", tag, 3, len(entries[tag])) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + table + bytes(4) + further + b"".join(strips)


TAGS = {"colours": 320, "extra": 338, "sample_format": 339, "subsampling": 530}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_tiffs(bits, order, packed):
    """Grey of every depth, with black or white at zero, in both byte orders, compressed or not."""
    values = RNG.integers(0, 2**bits, (SIDE, SIDE, 1))
    grey = np.rint(as_rgb(values[..., 0], 2**bits - 1))
    for white_is_zero, wanted in ((False, grey), (True, 255 - grey)):
        assert (shown(tiff(values, bits, 0 if white_is_zero else 1, order=order, packed=packed)) == wanted).all()


def test_grey_of_12_bit():
    """The values from 0 to 4095 are spread over 0 to 255."""
    values = RNG.integers(0, 4096, (8, 8, 1))
    pairs = values.reshape(8, 4, 2)
    packed = np.stack(
        [pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], axis=-1
    )
    content = tiff(packed.reshape(8, 12, 1), 8, 1)
    for tag, old, new in ((256, 12, 8), (258, 8, 12)):
        content = content.replace(struct.pack("<HHIH", tag, 3, 1, old), struct.pack("<HHIH", tag, 3, 1, new))
    assert (shown(content) == np.rint(as_rgb(values[..., 0], 4095))).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_tiffs(bits, order, planes, packed):
    """Colour, with and without alpha, with interleaved channels or in planes. Of 16 bits the high byte is used."""
    highest = 2**bits - 1
    values = RNG.integers(0, highest + 1, (SIDE, SIDE, 4))
    how = {"order": order, "planes": planes, "packed": packed}
    colours, alpha = as_rgb(values[..., :3], highest), values[..., 3] / highest
    near = 0 if bits == 8 else 2
    assert np.abs(shown(tiff(values[..., :3], bits, 2, **how)) - np.rint(colours)).max() <= near
    assert np.abs(shown(tiff(values, bits, 2, extra=[2], **how)) - on_white(colours, alpha)).max() <= near + 1
    if not planes:
        assert np.abs(shown(tiff(values, bits, 2, extra=[0], **how)) - np.rint(colours)).max() <= near
        multiplied = np.concatenate([np.rint(values[..., :3] * alpha[..., None]).astype(int), values[..., 3:]], axis=2)
        assert np.abs(shown(tiff(multiplied, bits, 2, extra=[1], **how)) - on_white(colours, alpha)).max() <= near + 2

    # A fourth channel that nothing calls alpha hides no picture.
    values[..., 3] = 0
    if not (planes and packed):
        assert np.abs(shown(tiff(values, bits, 2, **how)) - np.rint(colours)).max() <= near
    assert (shown(tiff(values, bits, 2, extra=[2], **how)) == 255).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_and_palettes_of_tiff(bits):
    """CMYK of 8 and 16 bit, and palettes with and without alpha."""
    values = RNG.integers(0, 2**bits, (SIDE, SIDE, 4))
    inks = values / (2**bits - 1)
    assert np.abs(shown(tiff(values, bits, 5)) - (1 - inks[..., :3]) * (1 - inks[..., 3:]) * 255).max() <= 2
    table, indices = RNG.integers(0, 256, (3, 256)), values[..., :2] % 256
    colours = table.T[indices[..., 0]]
    assert (shown(tiff(indices[..., :1], 8, 3, colours=(table * 257).ravel().tolist())) == colours).all()
    content = tiff(indices, 8, 3, colours=(table * 257).ravel().tolist(), extra=[2])
    assert np.abs(shown(content) - on_white(colours, indices[..., 1] / 255)).max() <= 1


def cut_ycbcr() -> bytes:
    """Return a TIFF whose strip has half the bytes of full YCbCr, and more bytes behind it."""
    whole = tiff(np.full((4, 4, 3), 200), 8, 6, subsampling=[2, 2])
    return whole.replace(struct.pack("<HHIH", 279, 3, 1, 48), struct.pack("<HHIH", 279, 3, 1, 24))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(np.full((4, 4, 1), 200), 8, 1, sample_format=[2]), "signed bytes have no agreed range"),
        (tiff(np.full((4, 4, 4), 200), 16, 5, planes=True), "16-bit planes of mode CMYK cannot be read"),
        (tiff(np.full((4, 4, 4), 200), 8, 2, planes=True, packed=True), "fourth plane that the file does not name"),
        (tiff(np.full((4, 4, 2), 200), 8, 1, planes=True, packed=True, extra=[2]), "planes of mode LA cannot be read"),
        (tiff(np.full((4, 4, 2), 200), 8, 1, planes=True, packed=True, extra=[1]), "planes of mode La cannot be read"),
        (tiff(np.full((4, 4, 3), 200), 8, 8, planes=True), "planes of mode LAB cannot be read"),
        (tiff(np.full((4, 4, 3), 200), 8, 8, planes=True, packed=True), "planes of mode LAB cannot be read"),
        (cut_ycbcr(), "subsampled YCbCr without compression"),
    ],
)
def test_values_that_pillow_would_misread(content, reason):
    """They are refused with the reason, not read as something else."""
    with pytest.raises(UnreadableImage, match=reason):
        decode(content, 3)


# --- TGA, BMP, JPEG 2000 ----------------------------------------------------------------------------------------------


def tga(values: np.ndarray, bits: int, attributes: int, meaning: int | None = None) -> bytes:
    """Return a TGA of values [H, W, C] in the order B, G, R, A; `meaning` is that of alpha in an extension area."""
    head = struct.pack(
        "<BBB5xHHHHBB", 0, 0, 3 if bits == 16 else 2, 0, 0, *values.shape[1::-1], bits, 0x20 | attributes
    )
    content = head + values.astype(np.uint8).tobytes()
    if meaning is not None:
        place = len(content)
        content += struct.pack("<H492xB", 495, meaning) + struct.pack("<II", place, 0) + b"TRUEVISION-XFILE.\0"
    return content


@pytest.mark.parametrize(
    ("attributes", "meaning", "has_alpha"),
    [(8, None, True), (0, None, False), (8, 3, True), (0, 3, True), (8, 0, False), (8, 1, False), (8, 2, False)],
)
def test_alpha_of_tga(attributes, meaning, has_alpha):
    """The header says whether the fourth channel is alpha; one that is zero everywhere is none."""
    values = RNG.integers(0, 256, (SIDE, SIDE, 4))
    colours, alpha = values[..., 2::-1], values[..., 3] / 255
    wanted = on_white(colours, alpha) if has_alpha else colours
    assert np.abs(shown(tga(values, 32, attributes, meaning)) - wanted).max() <= 1
    values[..., 3] = 0
    assert (shown(tga(values, 32, attributes, meaning)) == colours).all()
    grey = values[..., [0, 3]]
    assert (shown(tga(grey, 16, attributes, meaning)) == grey[..., :1]).all()


def test_colours_of_tga_that_are_multiplied_by_alpha():
    """They are divided again before the picture is laid on white."""
    values = RNG.integers(0, 256, (SIDE, SIDE, 4))
    colours, alpha = values[..., 2::-1].copy(), values[..., 3] / 255
    values[..., :3] = np.rint(values[..., :3] * alpha[..., None])
    assert np.abs(shown(tga(values, 32, 8, 4)) - on_white(colours, alpha)).max() <= 2


def bmp(rows: bytes, bits: int, masks: tuple[int, ...]) -> bytes:
    """Return a BMP of 4x4 pixels, stored from the top, with a header of version 4 that has these masks."""
    info = struct.pack("<IiiHHIIiiII", 108, 4, -4, 1, bits, 3 if masks else 0, len(rows), 0, 0, 0, 0)
    info = (info + struct.pack(f"<{len(masks)}I", *masks)).ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(rows), 0, 0, 14 + len(info)) + info + rows


def test_alpha_of_bmp():
    """An alpha mask makes alpha, of 16 and of 32 bits, unless it is zero everywhere; without a mask there is none."""
    values = RNG.integers(0, 256, (4, 4, 4))
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    colours = values[..., 2::-1]
    content = values.astype(np.uint8).tobytes()
    assert np.abs(shown(bmp(content, 32, masks)) - on_white(colours, values[..., 3] / 255)).max() <= 1
    assert (shown(bmp(content, 32, (*masks[:3], 0))) == colours).all()
    assert (shown(bmp(content, 32, ())) == colours).all()
    values[..., 3] = 0
    assert (shown(bmp(values.astype(np.uint8).tobytes(), 32, masks)) == colours).all()

    five = RNG.integers(0, 32, (4, 4, 3))
    bit = RNG.integers(0, 2, (4, 4))
    words = five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]
    masks, colours = (0x7C00, 0x3E0, 0x1F, 0x8000), five * 255 / 31
    found = shown(bmp((words | bit << 15).astype("<u2").tobytes(), 16, masks))
    assert np.abs(found - on_white(colours, bit)).max() <= 1
    assert np.abs(shown(bmp(words.astype("<u2").tobytes(), 16, masks)) - colours).max() <= 1


def test_pgm_and_ppm_of_any_maximum():
    """The values from 0 to the maximum in the header are spread over 0 to 255."""
    for highest in (1, 3, 100, 255, 1000, 65535):
        values = RNG.integers(0, highest + 1, (SIDE, SIDE, 3))
        kind = "u1" if highest < 256 else ">u2"
        for magic, pixels in ((b"P5", values[..., 0]), (b"P6", values)):
            binary = b"%b %d %d %d\n" % (magic, SIDE, SIDE, highest) + pixels.astype(kind).tobytes()
            plain = b"P%d %d %d %d\n" % (int(magic[1:]) - 3, SIDE, SIDE, highest)
            plain += b" ".join(b"%d" % value for value in pixels.ravel())
            for content in (binary, plain):
                assert np.abs(shown(content) - as_rgb(pixels, highest)).max() <= 0.51


def test_jpeg_2000_of_16_bit_and_without_a_word_about_alpha():
    """Deep grey is rounded; a fourth channel is alpha if the file says so, or if it is not zero everywhere."""
    deep = RNG.integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
    file = BytesIO()
    Image.fromarray(deep).save(file, "JPEG2000", irreversible=False)
    assert (shown(file.getvalue()) == np.rint(as_rgb(deep, 65535))).all()
    pixels = RNG.integers(0, 256, (SIDE, SIDE, 4)).astype(np.uint8)
    pixels[..., 3] = 0
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG2000", irreversible=False)
    assert (shown(file.getvalue()) == 255).all()
    assert (shown(file.getvalue().replace(b"cdef", b"free")) == pixels[..., :3]).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_transparency_of_palettes_and_of_lossless_files(kind):
    """A transparent entry of a palette shows white, also around a first picture that is smaller than its canvas."""
    indices = RNG.integers(0, 4, (SIDE, SIDE)).astype(np.uint8)
    table = RNG.integers(0, 255, (4, 3)).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(table.tobytes())
    file = BytesIO()
    if kind == "WEBP":
        image.info["transparency"] = 2
        image.convert("RGBA").save(file, kind, lossless=True)
    else:
        image.save(file, kind, transparency=2)
    wanted = np.where((indices == 2)[..., None], 255, table[indices])
    assert (shown(file.getvalue()) == wanted).all()
    if kind == "GIF":
        content = bytearray(file.getvalue())
        start = content.index(b"\0\0\0\0" + struct.pack("<HH", SIDE, SIDE))
        content[6:10], content[start : start + 4] = struct.pack("<HH", SIDE + 2, SIDE + 2), struct.pack("<HH", 1, 1)
        assert (shown(bytes(content))[[0, -1]] == 255).all()
