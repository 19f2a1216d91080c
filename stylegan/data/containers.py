"""Keep what a picture file says and Pillow does not pass on.

- PNG: the transparent colour of grey below 8 bit, and of 16 bit; the low bytes of 16-bit colour; text and ICC profiles
  of any length.
- TIFF: 16-bit grey whose zero is white; 12-bit grey; 16-bit colour in planes. What Pillow would read as other values than
  the file has is refused: signed bytes, planes of grey with alpha, of LAB and of 16-bit CMYK, subsampled
  YCbCr without compression.
- A fourth channel that is no alpha is left out: that of a TGA by its header, and one that is zero everywhere in a BMP, a
  TGA, or a TIFF or JPEG 2000 that does not say what the channel is.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin
from PIL.ExifTags import Base as Tag

from stylegan.data.colour import from_16_bit

# Names of the texts that may say how a picture is turned.
ORIENTED_BY = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
_LONGEST_TEXT = 2**20  # bytes; Pillow refuses a picture with a longer one
_LONGEST_PROFILE = 2**24  # bytes of an unpacked ICC profile; a longer one is no profile
_PNG, _TGA_END = b"\x89PNG\r\n\x1a\n", b"TRUEVISION-XFILE.\0"

# The byte order of 16-bit grey with white at zero for which Pillow has no entry.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


# --- before Pillow opens a file ---------------------------------------------------------------------------------------


def shortened(content: bytes) -> tuple[bytes, bytes | None]:
    """Return a file without the parts for whose length Pillow would refuse it, and the ICC profile if it is one of them.

    These are texts and profiles of a PNG. A text that may say how the picture is turned keeps its beginning, others are
    left out. Any other file is returned as it is.
    """
    if not content.startswith(_PNG):
        return content, None
    kept: list[bytes | memoryview] = []
    profile, done, position, view = None, 0, len(_PNG), memoryview(content)
    while position + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + size
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") and end <= len(content):
            data, chunk = content[position + 8 : end - 4], content[position:end]
            found = _long_profile(data) if kind == b"iCCP" else None
            short = b"" if found else chunk if kind == b"iCCP" else _short_text(kind, data, chunk)
            profile = found or profile
            kept += [view[done:position], short]
            done = end
        position = end
    return (b"".join([*kept, view[done:]]) if kept else content), profile


def _short_text(kind: bytes, data: bytes, chunk: bytes) -> bytes:
    """Return the chunk of a text, its beginning as another chunk if it is long, or nothing if it is of no use."""
    name, _, rest = data.partition(b"\0")
    if name.decode("latin-1") not in ORIENTED_BY:
        return b""
    head, packed = b"", kind == b"zTXt"
    if kind == b"iTXt":
        # Two flags, the language, the name in that language, the text.
        parts = rest[2:].split(b"\0", 2)
        packed, rest, head = rest[:1] == b"\1", parts[-1], b"\0\0\0\0"
    elif packed:
        rest = rest[1:]
    text = _unpacked(rest, _LONGEST_TEXT + 1) if packed else rest
    if len(text) <= _LONGEST_TEXT:
        return chunk
    kind = b"iTXt" if head else b"tEXt"
    body = name + b"\0" + head + text[:_LONGEST_TEXT]
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _long_profile(data: bytes) -> bytes | None:
    """Return the ICC profile in a chunk if it is so long that Pillow would refuse the picture; empty if it is no profile."""
    profile = _unpacked(data.partition(b"\0")[2][1:], _LONGEST_PROFILE + 1)
    return profile if len(profile) > _LONGEST_TEXT else None


def _unpacked(packed: bytes, most: int) -> bytes:
    """Return the first `most` bytes of packed data; nothing if they are damaged."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""


# --- before Pillow decodes --------------------------------------------------------------------------------------------


def check_layout(image: ImageFile.ImageFile, content: bytes) -> None:
    """Set how Pillow decodes an open picture where it would decode other values than the file has.

    Raises:
        ValueError: Pillow cannot decode these values.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image)
    elif image.format == "BMP" and _has_alpha_bit(image, content):
        image._mode = "RGBA"
        image.tile = [tile._replace(args=("BGRA;15", *_args(tile)[1:])) for tile in image.tile]


def _has_alpha_bit(image: ImageFile.ImageFile, content: bytes) -> bool:
    """Return whether a BMP of 16 bits a pixel has 5 bits for each colour and one for alpha."""
    header, bits, masks = struct.unpack_from("<I", content, 14)[0], content[28:30], content[54:70]
    return header >= 56 and bits == b"\x10\0" and masks == struct.pack("<4I", 0x7C00, 0x3E0, 0x1F, 0x8000)


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Do the work of `check_layout` for a TIFF."""
    tags = image.tag_v2
    bits, signed = tags.get(Tag.BitsPerSample, (1,)), 2 in tags.get(Tag.SampleFormat, (1,))
    if signed and max(bits) <= 8:
        raise ValueError("signed bytes have no agreed range; use 8 or 16 bit without a sign")

    # Pillow mixes up planes of other modes. A plane without a name that is compressed it takes for an alpha by which the
    # others are multiplied, and of one in tiles it takes a wrong width.
    planes = tags.get(Tag.PlanarConfiguration) == 2 and len(bits) > 1
    is_raw = bool(image.tile) and image.tile[0].codec_name == "raw"
    if planes and image.mode not in ("L", "RGB", "RGBA", "CMYK"):
        raise ValueError(f"planes of mode {image.mode} cannot be read; save it with interleaved channels")
    if planes and image.mode == "RGBA" and not tags.get(Tag.ExtraSamples) and (not is_raw or Tag.TileWidth in tags):
        raise ValueError("a fourth plane that the file does not name cannot be read; save it as RGB")

    # Without compression Pillow reads bytes where the file says 16 bit, and full YCbCr where the file has less.
    if is_raw:
        width, height = image._tile_size
        if tags.get(Tag.PhotometricInterpretation) == 6 and _num_bytes(tags) < width * height * len(bits):
            raise ValueError("subsampled YCbCr without compression cannot be read; save it as RGB")
        if max(bits) == 16 and planes:
            if image.mode not in ("RGB", "RGBA"):
                raise ValueError(
                    f"16-bit planes of mode {image.mode} cannot be read; save it with interleaved channels"
                )
            order = "L" if tags.prefix == b"II" else "B"
            image.tile = [tile._replace(args=(f"{_args(tile)[0]};16{order}", *_args(tile)[1:])) for tile in image.tile]


def _args(tile: Any) -> tuple[Any, ...]:
    """Return the arguments of the decoder of a tile; the first one is Pillow's name of the layout of its bytes."""
    return tuple(tile.args)


def _num_bytes(tags: TiffImagePlugin.ImageFileDirectory_v2) -> int:
    """Return the bytes of all strips or tiles of a TIFF."""
    counts = tags.get(Tag.StripByteCounts, tags.get(Tag.TileByteCounts, ()))
    return sum(counts) if isinstance(counts, tuple) else int(counts)


# --- after Pillow has decoded -----------------------------------------------------------------------------------------


def completed(image: Image.Image, content: bytes) -> Image.Image:
    """Return a decoded picture with the facts of its file that Pillow leaves out."""
    info = dict(image.info)
    if image.format == "PNG":
        made = _completed_png(image, content, info)
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        made = _completed_tiff(image)
    elif image.format == "TGA":
        made = _completed_tga(image, content)
    else:
        made = image
    if made.has_transparency_data and not _says_alpha(image, content) and _is_clear(made):
        made = _without_alpha(made)
    made.info = info
    return made


def _completed_png(image: Image.Image, content: bytes, info: dict[Any, Any]) -> Image.Image:
    """Round 16-bit colour to 8 bit, and make the transparent colour fit the values of the picture.

    Pillow keeps only the high bytes of colour, and the transparent colour as the file has it.
    """
    depth, kind = content[24], content[25]
    if kind not in (0, 2, 6) or ("transparency" not in info and kind == 0):
        return image
    clear = info.get("transparency")
    if depth < 16:
        if clear is not None and depth > 1:  # Pillow spreads the values of 2 and 4 bit over 0 to 255
            highest = 2**depth - 1
            fitting = [(value & highest) * (255 // highest) for value in np.atleast_1d(clear).tolist()]
            info["transparency"] = fitting[0] if kind == 0 else tuple(fitting)
            image.info = info
        return image

    # Read the low bytes, and compare the whole values with the transparent colour.
    values = np.asarray(image).astype(np.uint32)
    if kind != 0:
        low = PngImagePlugin.PngImageFile(BytesIO(shortened(content)[0]))
        low.tile = [tile._replace(args=f"{image.mode};16L") for tile in low.tile]
        low.load()
        values = values * 256 + np.asarray(low)
    pixels = from_16_bit(values)
    if clear is not None:
        del info["transparency"]
        others = (values.reshape(*values.shape[:2], -1) != np.atleast_1d(clear)).any(axis=2)
        pixels = np.dstack([pixels, np.where(others, 255, 0).astype(np.uint8)])
    return Image.fromarray(pixels)


def _completed_tiff(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    """Turn 16-bit grey whose zero is white around, and spread 12-bit grey over 16 bit."""
    if not image.mode.startswith("I;16"):
        return image
    values, inverted = np.asarray(image).astype(np.uint16), image.tag_v2.get(Tag.PhotometricInterpretation, 0) == 0
    if max(image.tag_v2.get(Tag.BitsPerSample, (1,))) == 12:
        values = values * 16 + values // 256
    return Image.fromarray(65535 - values if inverted else values)


def _completed_tga(image: Image.Image, content: bytes) -> Image.Image:
    """Leave out the alpha of a TGA if its header says that there is none, or that it means nothing."""
    meaning = 3 if content[17] & 15 else 0
    if content.endswith(_TGA_END):
        place = int.from_bytes(content[-26:-22], "little") + 494
        if 494 < place < len(content):
            meaning = content[place]  # 0, 1, 2: no alpha, or values that nobody made; 3: alpha
    if not image.has_transparency_data:
        return image
    if image.mode == "P":
        image = image.convert("RGBA")
    if meaning == 4:  # the colours are multiplied by it
        return Image.frombytes("RGBa", image.size, image.convert("RGBA").tobytes()).convert("RGBA")
    return image if meaning == 3 else _without_alpha(image)


def _says_alpha(image: Image.Image, content: bytes) -> bool:
    """Return whether a file says that its fourth channel is alpha, or its format knows no other use of it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return bool({1, 2} & set(image.tag_v2.get(Tag.ExtraSamples, ())))
    if image.format == "JPEG2000":
        return content.find(b"cdef", 0, content.find(b"jp2c")) >= 0  # the box that tells what the channels are
    return image.format not in ("BMP", "TGA")


def _is_clear(image: Image.Image) -> bool:
    """Return whether the alpha of a picture is zero everywhere."""
    return "A" in image.getbands() and image.getchannel("A").getextrema()[1] == 0


def _without_alpha(image: Image.Image) -> Image.Image:
    """Return the colours of a picture as they are, without its alpha."""
    bands = image.split()
    return bands[0] if len(bands) == 2 else Image.merge("RGB", bands[:3])
