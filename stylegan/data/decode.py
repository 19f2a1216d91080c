"""Turn one image file into the pixels of every resolution: decode, orient, convert, crop, resize once, average down.

How each kind of file is treated:

- JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, PPM, TGA, JPEG 2000: decoded. All other formats are refused. Some that Pillow
  knows start programs (EPS) or hold many pictures (PDF).
- EXIF orientation (also in PNG, WebP, TIFF): the picture is turned upright. EXIF data that cannot be read are ignored.
- ICC profile of grey, RGB or CMYK: the colours are converted to sRGB (perceptual intent). A profile changes nothing if
  it is broken, does not fit the mode, or equals sRGB within one unit of 255. Without a profile, pixels count as sRGB.
  gAMA and cHRM chunks are ignored.
- 16-bit grey (PNG, TIFF, PGM, JPEG 2000; also as 32-bit integers up to 65535), 16-bit RGB and RGBA PNG: v becomes
  round(v / 257). 12-bit grey TIFF: round(v / 4095 * 255). Other 16-bit colour (grey with alpha, TIFF, JPEG 2000): the
  high byte is used. Floating point, signed bytes and larger integers have no agreed range and are `unreadable`.
- Grey TIFF whose zero is white: turned around, at every depth.
- Alpha channel, transparent palette entry or transparent colour: the picture is laid on white. The transparent colour of
  a PNG is compared with all bits of the file.
- A fourth channel that is no alpha: left out. It is none in a TGA whose header says so, in a BMP without a mask for it,
  and where it is zero everywhere in a TGA, a BMP, or a TIFF or JPEG 2000 that does not say what it is.
- Texts of any length in a PNG: left out. ICC profiles of up to 16 MB are used.
- Palette: its colours are used. 1 bit: black and white.
- CMYK without a profile, YCbCr, LAB: Pillow's conversion to RGB.
- Colour where one channel is wanted: luma of ITU-R 601. Grey where three channels are wanted: three equal ones.
- Animation, several pages or pictures (GIF, APNG, WebP, AVIF, TIFF, MPO): the first one is used.
- More pixels than `data.max_pixels` by the header: `too large`, before anything is decoded. A shorter side below
  `data.min_size`: `too small`.
- A file that ends too early: `truncated`; the missing part is never filled with grey.

JPEG's draft mode, which decodes at a fraction of the size, is not used. It is a second resize with its own filter: the
same picture would give other pixels as JPEG than as PNG, and `data.resize_filter` would not describe what was done.
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
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from stylegan.config.sections import DataConfig
from stylegan.data.colour import to_screen
from stylegan.data.containers import ORIENTED_BY, check_layout, completed, shortened
from stylegan.errors import one_line

Filter = Literal["lanczos", "bicubic", "box"]
RejectKind = Literal["unreadable", "truncated", "too large", "too small"]
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
_WITH_ALPHA = ("LA", "La", "RGBA", "RGBa")
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}
# CelebA's crop: 128x128 around (89, 121) of the aligned images, as in StyleGAN's and ProGAN's tools.
CELEBA_SIZE, CELEBA_BOX = (178, 218), (25, 57, 153, 185)


class UnreadableImage(Exception):
    """A file that gives no usable picture. `kind` is the kind of reject; the message is the reason."""

    def __init__(self, reason: str, kind: RejectKind = "unreadable") -> None:
        super().__init__(reason)
        self.kind: RejectKind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.kind)


@dataclass(frozen=True)
class Prepared:
    """One image at every resolution.

    Attributes:
        levels: by resolution r, uint8 pixels [r, r] or [r, r, 3].
        width: of the original, turned upright.
        height: of the original, turned upright.
    """

    levels: dict[int, np.ndarray]
    width: int
    height: int


def prepare(content: bytes | np.ndarray, data: DataConfig) -> Prepared:
    """Turn the bytes of a file, or pixels, into the pixels that the network sees.

    Args:
        content: a file in one of the formats above, or uint8 pixels [H, W] or [H, W, 3] in sRGB.

    Raises:
        UnreadableImage: not a picture, or not one that `data` accepts.
    """
    if isinstance(content, np.ndarray):
        picture = _from_array(content, data)
    else:
        picture = decode(content, data.channels, data)
    return Prepared(pyramid(crop(picture, data)), *picture.size)


def decode(content: bytes, channels: Literal[1, 3], data: DataConfig | None = None) -> Image.Image:
    """Decode a file to an upright picture in mode L or RGB.

    Args:
        data: gives the limits on the size; without it there are none.

    Raises:
        UnreadableImage: not a picture, or beyond a limit.
    """
    try:
        image = _open_image(content)
        if data is not None:
            _check_size(image.size, data)
        check_layout(image, content)
        image.load()
        return to_screen(_upright(completed(image, content)), channels)
    except Exception as error:  # decoders of damaged files raise nearly anything
        _refuse(error, content)


def read_shape(content: bytes) -> tuple[int, int, int]:
    """Return width, height and channels of a picture as it is stored, from its header.

    A palette counts as RGB. Transparency counts as one more channel, also that of a transparent colour.

    Raises:
        UnreadableImage: not an image in a known format.
    """
    try:
        image = _open_image(content)
    except Exception as error:
        _refuse(error, content)
    colours = 3 if image.mode in ("P", "PA") else len(image.getbands()) - (image.mode in _WITH_ALPHA)
    channels = colours + image.has_transparency_data
    return image.width, image.height, channels


def _open_image(content: bytes) -> ImageFile.ImageFile:
    """Do what `Image.open` does, without its check of the size.

    That check warns or fails at a limit that is global to the process. The limit here is that of the config.
    """
    short, profile = shortened(content)
    file, failure = BytesIO(short), None
    for accepts, opener in _openers():
        if accepts and accepts(content[:16]) is not True:
            continue
        try:
            file.seek(0)
            image: ImageFile.ImageFile = opener(file, "")
            if profile is not None:
                image.info["icc_profile"] = profile
            return image
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            failure = failure or (error if accepts else None)
    raise failure or UnidentifiedImageError()


@lru_cache
def _openers() -> tuple[tuple[Callable[[bytes], Any] | None, Callable[..., Any]], ...]:
    """Return Pillow's test and opener of each allowed format that this build of Pillow supports."""
    Image.init()
    found = [Image.OPEN[name] for name in _FORMATS if name in Image.OPEN]
    return tuple((accepts, opener) for opener, accepts in found)


def _check_size(size: tuple[int, int], data: DataConfig) -> None:
    """Raise UnreadableImage if a picture is larger or smaller than `data` allows."""
    width, height = size
    if width * height > data.max_pixels:
        raise UnreadableImage(f"{width}x{height} are more pixels than data.max_pixels={data.max_pixels}", "too large")
    if min(size) < max(data.min_size, 1):
        raise UnreadableImage(f"{width}x{height} has a shorter side than data.min_size={data.min_size}", "too small")


def _refuse(error: Exception, content: bytes) -> NoReturn:
    """Raise UnreadableImage for an error of a decoder."""
    if isinstance(error, UnreadableImage):
        raise error
    reason = one_line(error)
    if not content:
        raise UnreadableImage("empty file", "truncated") from error
    if isinstance(error, UnidentifiedImageError):
        raise UnreadableImage("not an image in a known format") from error
    # The plugins of a few formats check the size of their frames themselves.
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        raise UnreadableImage(reason, "too large") from error
    if _is_cut(content, reason):
        if "truncated" not in reason.lower():
            reason = f"truncated: {reason}"
        raise UnreadableImage(reason, "truncated") from error
    raise UnreadableImage(reason) from error


def _is_cut(content: bytes, reason: str) -> bool:
    """Return whether a file that cannot be decoded ends too early.

    Such a file lacks the end mark or the bytes that its format promises. For formats that promise nothing, the
    decoder's message decides.
    """
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
    words = ("truncated", "unexpected end", "not enough", "end of file", "decoder error -2")
    return any(word in reason.lower() for word in words)


def _boxes_end(content: bytes) -> int:
    """Return the position at which the last box of an AVIF or JPEG 2000 file ends, by the sizes in the box headers."""
    start = 0
    while start + 8 <= len(content):
        size = int.from_bytes(content[start : start + 4], "big")
        if size == 1:
            size = int.from_bytes(content[start + 8 : start + 16], "big")
        start += size if size >= 8 else len(content)  # 0: to the end of the file
    return start if start >= len(content) else len(content) + 1


def _upright(image: Image.Image) -> Image.Image:
    """Turn a picture upright by its EXIF orientation."""
    if not any(name in image.info for name in ORIENTED_BY):
        return image
    # Pillow's parser of EXIF data raises nearly anything if they are damaged, but the picture itself is whole.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _from_array(pixels: np.ndarray, data: DataConfig) -> Image.Image:
    """Convert uint8 pixels to a picture in mode L or RGB, with the same checks as for a file."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise UnreadableImage(f"pixels {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W] or [H, W, 3]")
    _check_size((pixels.shape[1], pixels.shape[0]), data)
    return to_screen(Image.fromarray(pixels), data.channels)


def crop(image: Image.Image, data: DataConfig) -> Image.Image:
    """Cut out the part of a picture that `data.crop` names, and resize it to a square of `data.resolution`.

    There is one resize, with an antialiased filter on 8-bit values, as in Pillow and StyleGAN's dataset tools. `wide`
    does what the tool's create_lsun_wide does, for any resolution R: the central 4:3 part, R x 3R/4, between black
    bars.

    Raises:
        UnreadableImage: `wide` would have to enlarge the picture, or `celeba` does not get an image of the aligned set.
    """
    if data.crop == "center":
        return fit(image, data.resolution, data.resize_filter)
    if data.crop == "wide":
        return _letterboxed(image, data)
    if image.size != CELEBA_SIZE:
        kind: RejectKind = "too small" if image.width < CELEBA_SIZE[0] or image.height < CELEBA_SIZE[1] else "too large"
        raise UnreadableImage(
            f"{image.width}x{image.height}, but data.crop=celeba takes the aligned images of 178x218 only", kind
        )
    return _resized(image, CELEBA_BOX, (data.resolution, data.resolution), data.resize_filter)


def fit(image: Image.Image, resolution: int, resize_filter: Filter) -> Image.Image:
    """Resize the central square of a picture to [resolution, resolution]."""
    side = min(image.size)
    return _resized(image, _central(image.size, (side, side)), (resolution, resolution), resize_filter)


def _letterboxed(image: Image.Image, data: DataConfig) -> Image.Image:
    """Resize the central 4:3 part of a picture and add black bars above and below."""
    size = (data.resolution, data.resolution * 3 // 4)
    width, height = min(image.width, round(image.height * 4 / 3)), min(image.height, round(image.width * 3 / 4))
    if width < size[0]:  # then the height is too small as well
        raise UnreadableImage(
            f"{image.width}x{image.height}: its 4:3 part, {width}x{height}, is below {size[0]}x{size[1]}", "too small"
        )
    square = Image.new(image.mode, (data.resolution, data.resolution))
    part = _resized(image, _central(image.size, (width, height)), size, data.resize_filter)
    square.paste(part, (0, (size[0] - size[1]) // 2))
    return square


def _central(size: tuple[int, int], part: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of a part in the middle."""
    left, top = (size[0] - part[0]) // 2, (size[1] - part[1]) // 2
    return left, top, left + part[0], top + part[1]


def _resized(
    image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int], resize_filter: Filter
) -> Image.Image:
    """Cut out a box, then resize it.

    `resize(box=...)` would do both at once, but its filter also reads pixels outside the box.
    """
    if box != (0, 0, *image.size):
        part = (box[2] - box[0], box[3] - box[1])
        # `crop(box)` would do the same, but it has the global check of the size that `Image.open` has.
        image = image.transform(part, Image.Transform.EXTENT, box)
    return image if image.size == size else image.resize(size, _FILTERS[resize_filter])


def pyramid(image: Image.Image | np.ndarray) -> dict[int, np.ndarray]:
    """Return the levels of a square picture: for r = R, R/2, ..., 4 the uint8 pixels [r, r] or [r, r, 3].

    Each level is the 2x2 box mean of the unrounded level above it. Only the returned values are rounded, so errors do
    not accumulate (as in the TFRecord tool of StyleGAN v1). Sums of at most 2^16 bytes are exact in float32.
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
