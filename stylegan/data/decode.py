"""One image file to the pixels of every resolution: decode, orient, convert, crop, resize once, average down.

What is in a file, and what becomes of it:

- JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, PPM, TGA, JPEG 2000: decoded. Other formats are not images here: Pillow also knows some
  that start programs (EPS) or hold many pictures (PDF).
- EXIF orientation (also in PNG, WebP, TIFF): turned upright. EXIF data that cannot be read are passed over.
- ICC profile of grey, RGB or CMYK: colours are converted to sRGB (perceptual intent). A profile that is broken, does not fit the
  mode, or says what sRGB says within a unit of 255 changes nothing. Without a profile, pixels are taken to be sRGB; gAMA and cHRM
  chunks are not looked at.
- 16-bit grey (PNG, TIFF; also as 32-bit integers up to 65535), 16-bit RGB and RGBA PNG: v becomes round(v / 257). Of other
  16-bit colour (grey with alpha, TIFF, JPEG 2000) the high byte. Floating point and larger integers have no agreed range:
  `unreadable`.
- Alpha, a transparent palette entry or colour: laid on white.
- Palette: its colours; 1 bit: black and white.
- CMYK without a profile, YCbCr, LAB: Pillow's conversion to RGB.
- One channel wanted of colours: luma of ITU-R 601; three of grey: three times the same.
- Animation, several pages or pictures (GIF, APNG, WebP, AVIF, TIFF, MPO): the first.
- More than `data.max_pixels` by the header: `too large`, before anything is decoded. A shorter side than `data.min_size`:
  `too small`.
- A file that ends too early: `truncated`; never filled up with grey.

JPEG's draft mode, which decodes at a fraction of the size, is not used: it is a second resize with a filter of its own, so the
same picture as JPEG and as PNG would give other pixels, and `data.resize_filter` would not be what was done.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal, NoReturn

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from stylegan.config.sections import DataConfig
from stylegan.data.colour import from_16_bit, to_screen
from stylegan.errors import one_line

Filter = Literal["lanczos", "bicubic", "box"]
Kind = Literal["unreadable", "truncated", "too large", "too small"]
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}
_ORIENTED_BY = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
CELEBA_SIZE, CELEBA_BOX = (
    (178, 218),
    (25, 57, 153, 185),
)  # 128x128 around (89, 121), as in StyleGAN's and ProGAN's tools


class UnreadableImage(Exception):
    """This file gives no picture: `kind` sorts it, the message says why."""

    def __init__(self, reason: str, kind: Kind = "unreadable") -> None:
        super().__init__(reason)
        self.kind: Kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.kind)


@dataclass(frozen=True)
class Prepared:
    """One image at every resolution: `levels[r]` is uint8 [r, r] or [r, r, 3]; `width` and `height` are the original's, upright."""

    levels: dict[int, np.ndarray]
    width: int
    height: int


def prepare(content: bytes | np.ndarray, data: DataConfig) -> Prepared:
    """The bytes of a file, or pixels, to what the network sees.

    Args:
        content: a file in one of the formats above, or uint8 pixels [H, W] or [H, W, 3] in sRGB.

    Raises:
        UnreadableImage: no picture, or not one that `data` asks for.
    """
    if isinstance(content, np.ndarray):
        picture = _from_array(content, data)
    else:
        picture = decode(content, data.channels, data)
    return Prepared(pyramid(crop(picture, data)), *picture.size)


def decode(content: bytes, channels: Literal[1, 3], data: DataConfig | None = None) -> Image.Image:
    """The picture in mode L or RGB, upright. Limits are those of `data`.

    Raises:
        UnreadableImage: no picture, or beyond a limit.
    """
    try:
        image = _open(content)
        if data is not None:
            _check_size(image.size, data)
        image.load()
        return to_screen(_upright(_all_bits(image, content)), channels)
    except Exception as error:  # decoders of damaged files raise nearly anything
        _refuse(error, content)


def measure(content: bytes) -> tuple[int, int, int]:
    """Width, height and channels of a picture as it is stored; a palette counts as RGB, transparency as a channel of its own.

    Raises:
        UnreadableImage: not an image in a known format.
    """
    try:
        image = _open(content)
    except Exception as error:
        _refuse(error, content)
    channels = len(image.getbands()) if image.mode != "P" else 3 + image.has_transparency_data
    return image.width, image.height, channels


def _open(content: bytes) -> ImageFile.ImageFile:
    """`Image.open`, without its check of size: that warns or fails at a limit which is global to the process; ours is the config's."""
    file, failure = BytesIO(content), None
    for accepts, opener in _openers():
        if accepts and accepts(content[:16]) is not True:
            continue
        try:
            file.seek(0)
            return opener(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            failure = failure or (error if accepts else None)
    raise failure or UnidentifiedImageError()


@lru_cache
def _openers() -> tuple[tuple[Callable[[bytes], Any] | None, Callable[..., Any]], ...]:
    """Those of the formats that this build of Pillow has."""
    Image.init()
    found = [Image.OPEN[name] for name in _FORMATS if name in Image.OPEN]
    return tuple((accepts, opener) for opener, accepts in found)


def _check_size(size: tuple[int, int], data: DataConfig) -> None:
    width, height = size
    if width * height > data.max_pixels:
        raise UnreadableImage(f"{width}x{height} are more pixels than data.max_pixels={data.max_pixels}", "too large")
    if min(size) < max(data.min_size, 1):
        raise UnreadableImage(f"{width}x{height} has a shorter side than data.min_size={data.min_size}", "too small")


def _refuse(error: Exception, content: bytes) -> NoReturn:
    """Raise what a decoder raised as `UnreadableImage`."""
    if isinstance(error, UnreadableImage):
        raise error
    reason = one_line(error)
    if not content:
        raise UnreadableImage("empty file", "truncated") from error
    if isinstance(error, UnidentifiedImageError):
        raise UnreadableImage("not an image in a known format") from error
    if isinstance(
        error, Image.DecompressionBombError | Image.DecompressionBombWarning
    ):  # a few formats have checks within
        raise UnreadableImage(reason, "too large") from error
    if _is_cut(content, reason):
        raise UnreadableImage(
            reason if "truncated" in reason.lower() else f"truncated: {reason}", "truncated"
        ) from error
    raise UnreadableImage(reason) from error


def _is_cut(content: bytes, reason: str) -> bool:
    """Whether a file that cannot be decoded ends too early: formats that mark their end lack the mark, of others the decoder says so."""
    if content.startswith(b"\x89PNG"):
        return b"IEND" not in content[-1024:]  # some programs append a little
    if content.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in content[-1024:]
    if content.startswith(b"GIF8"):
        return not content.rstrip(b"\0").endswith(b";")
    if content.startswith(b"RIFF"):
        return len(content) < 12 or len(content) < 8 + int.from_bytes(content[4:8], "little")
    if content.startswith(b"BM"):
        return len(content) < max(int.from_bytes(content[2:6], "little"), 26)
    if content[4:8] in (b"ftyp", b"jP  "):
        return _boxes_end(content) > len(content) or (content[4:8] == b"jP  " and not content.endswith(b"\xff\xd9"))
    return any(
        word in reason.lower()
        for word in ("truncated", "unexpected end", "not enough", "end of file", "decoder error -2")
    )


def _boxes_end(content: bytes) -> int:
    """Where the last box of an AVIF or JPEG 2000 file ends by its own word."""
    start = 0
    while start + 8 <= len(content):
        size = int.from_bytes(content[start : start + 4], "big")
        if size == 1:
            size = int.from_bytes(content[start + 8 : start + 16], "big")
        start += size if size >= 8 else len(content)  # 0: to the end of the file
    return start if start >= len(content) else len(content) + 1


def _all_bits(image: Image.Image, content: bytes) -> Image.Image:
    """Of a 16-bit RGB or RGBA PNG Pillow keeps the high bytes; here the low ones are read too, so that the value can be rounded."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA") or content[24] != 16 or content[25] == 4:
        return image
    low = PngImagePlugin.PngImageFile(BytesIO(content))
    low.tile = [tile._replace(args=f"{image.mode};16L") for tile in low.tile]
    low.load()
    rounded = Image.fromarray(from_16_bit(np.asarray(image).astype(np.uint32) * 256 + np.asarray(low)))
    rounded.info = image.info
    return rounded


def _upright(image: Image.Image) -> Image.Image:
    if not any(name in image.info for name in _ORIENTED_BY):
        return image
    # The parser of damaged EXIF data raises nearly anything; the picture is whole.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _from_array(pixels: np.ndarray, data: DataConfig) -> Image.Image:
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise UnreadableImage(f"pixels {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W] or [H, W, 3]")
    _check_size((pixels.shape[1], pixels.shape[0]), data)
    return to_screen(Image.fromarray(pixels), data.channels)


def crop(image: Image.Image, data: DataConfig) -> Image.Image:
    """The part of a picture that `data.crop` names as a square of `data.resolution`, resized in one step with an antialiased filter.

    On 8-bit values, as Pillow and StyleGAN's dataset tools do. `wide` is the tool's create_lsun_wide for any resolution R: the
    central 4:3 part, R x 3R/4, between black bars.

    Raises:
        UnreadableImage: `wide` would have to enlarge it, or `celeba` is not of the aligned set.
    """
    if data.crop == "center":
        return fit(image, data.resolution, data.resize_filter)
    if data.crop == "wide":
        return _letterboxed(image, data)
    if image.size != CELEBA_SIZE:
        kind: Kind = "too small" if image.width < CELEBA_SIZE[0] or image.height < CELEBA_SIZE[1] else "too large"
        raise UnreadableImage(
            f"{image.width}x{image.height}, but data.crop=celeba takes the aligned images of 178x218 only", kind
        )
    return _resized(image, CELEBA_BOX, (data.resolution, data.resolution), data.resize_filter)


def fit(image: Image.Image, resolution: int, resize_filter: Filter) -> Image.Image:
    """The central square, resized."""
    side = min(image.size)
    return _resized(image, _central(image.size, (side, side)), (resolution, resolution), resize_filter)


def _letterboxed(image: Image.Image, data: DataConfig) -> Image.Image:
    size = (data.resolution, data.resolution * 3 // 4)
    width, height = min(image.width, round(image.height * 4 / 3)), min(image.height, round(image.width * 3 / 4))
    if width < size[0]:  # then its height is too
        raise UnreadableImage(
            f"{image.width}x{image.height}: its 4:3 part, {width}x{height}, is below {size[0]}x{size[1]}", "too small"
        )
    square = Image.new(image.mode, (data.resolution, data.resolution))
    square.paste(
        _resized(image, _central(image.size, (width, height)), size, data.resize_filter), (0, (size[0] - size[1]) // 2)
    )
    return square


def _central(size: tuple[int, int], part: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = (size[0] - part[0]) // 2, (size[1] - part[1]) // 2
    return left, top, left + part[0], top + part[1]


def _resized(
    image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int], resize_filter: Filter
) -> Image.Image:
    # Not resize(box=...): its filter also looks at pixels outside the box.
    if box != (0, 0, *image.size):
        part = (box[2] - box[0], box[3] - box[1])
        # As crop(box), which has the same check of size as `Image.open`.
        image = image.transform(part, Image.Transform.EXTENT, box)
    return image if image.size == size else image.resize(size, _FILTERS[resize_filter])


def pyramid(image: Image.Image | np.ndarray) -> dict[int, np.ndarray]:
    """uint8 pixels [r, r] or [r, r, 3] for r = R, R/2, ..., 4 of a square picture.

    Each level is the 2x2 box mean of the unrounded level above; rounding happens only here, on the way out, so no error
    adds up (the TFRecord tool of StyleGAN v1). Sums of at most 2^16 bytes are exact in float32.
    """
    pixels = np.asarray(image)
    side, sums, weight = len(pixels), pixels.astype(np.float32), 1.0
    levels = {side: pixels}
    while side > 4:
        side, weight = side // 2, weight / 4
        sums = sums[0::2] + sums[1::2]
        sums = sums[:, 0::2] + sums[:, 1::2]
        levels[side] = np.rint(sums * np.float32(weight)).astype(np.uint8)
    return levels
