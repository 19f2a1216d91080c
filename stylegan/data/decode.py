"""One image file to the pixels of every resolution: decode, orient, convert, crop, resize once, average down."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

# Only these decoders see the bytes: Pillow also knows formats that start other programs (EPS) or hold many pictures (PDF).
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}


class UnreadableImage(Exception):
    """This file gives no picture; the message says why."""


def decode(data: bytes, channels: Literal[1, 3]) -> Image.Image:
    """The picture in mode L or RGB, upright as its EXIF orientation says.

    Transparent parts show white. 16-bit grey is divided by 257 and rounded. Of an animation, the first frame.

    Raises:
        UnreadableImage: truncated, damaged, too large to be safe, or without a defined conversion.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        file = Image.open(BytesIO(data), formats=_formats())
        file.load()
        image = ImageOps.exif_transpose(file)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise UnreadableImage(_reason(error)) from error
    return _convert(image, "L" if channels == 1 else "RGB")


def measure(data: bytes) -> tuple[int, int, int]:
    """Width, height and channels of a picture as it is stored; a palette counts as RGB, transparency as a channel of its own.

    Raises:
        UnreadableImage: not an image in a known format.
    """
    try:
        image = Image.open(BytesIO(data), formats=_formats())
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error
    channels = len(image.getbands()) if image.mode != "P" else 3 + image.has_transparency_data
    return image.width, image.height, channels


@lru_cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this build of Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    return " ".join(str(error).split()) or type(error).__name__


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        if image.mode == "P":  # a palette has colours of its own, also on the way to grey
            image = image.convert("RGB")
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise UnreadableImage(f"mode {image.mode} cannot become {mode}") from error


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey (also in a 32-bit integer image) to 8 bit."""
    values = np.asarray(image)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(f"mode {image.mode} with values from {values.min()} to {values.max()} has no agreed range; use 8 or 16 bit")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def fit(image: Image.Image, resolution: int, resize_filter: Literal["lanczos", "bicubic", "box"]) -> Image.Image:
    """The central square, resized in one step with an antialiased filter (on 8-bit values, as Pillow does)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Not resize(box=...): its filter also looks at pixels outside the box.
    square = image.crop((left, top, left + side, top + side))
    return square if side == resolution else square.resize((resolution, resolution), _FILTERS[resize_filter])


def pyramid(image: Image.Image) -> dict[int, np.ndarray]:
    """uint8 pixels [r, r] or [r, r, 3] for r = R, R/2, ..., 4.

    Each level is the 2x2 box mean of the unrounded level above; rounding happens only here, on the way out, so no error
    adds up (the TFRecord tool of StyleGAN v1).
    """
    level = np.asarray(image, np.float32)
    levels = {}
    while True:
        levels[level.shape[0]] = np.rint(level).clip(0, 255).astype(np.uint8)
        if level.shape[0] <= 4:
            return levels
        level = (level[0::2, 0::2] + level[0::2, 1::2] + level[1::2, 0::2] + level[1::2, 1::2]) * np.float32(0.25)


def encode(pixels: np.ndarray) -> bytes:
    """Lossless PNG of uint8 pixels [H, W] or [H, W, 3]."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
