"""Convert pictures of any mode to 8-bit grey or RGB as a screen shows them.

This covers palettes, 16-bit values, ICC profiles and transparency.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from itertools import product
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

_PROFILED = ("L", "RGB", "CMYK")  # modes whose ICC profiles are applied
_GREY_WITH_ALPHA = ("1", "L", "LA", "La")


def to_screen(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """Convert a picture to mode L (`channels` 1) or RGB (`channels` 3).

    The list at the top of `stylegan.data.decode` says how each mode is converted.

    Raises:
        ValueError: values without an agreed range, or a mode without a defined conversion.
    """
    profile = image.info.get("icc_profile")

    # 16-bit grey to 8 bit.
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep_grey(image)

    # Palette to its colours, even if grey is wanted: the colours then give the luma.
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")

    # Separate the transparency: profiles apply to the colours alone.
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in _GREY_WITH_ALPHA else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")

    # Colours to sRGB.
    if profile and image.mode in _PROFILED:
        image = _to_srgb(image, profile)
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")

    # Transparent parts show white.
    if alpha is not None:
        paper = Image.new(image.mode, image.size, "white")
        paper.paste(image, mask=alpha)
        image = paper

    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey, which may be stored as 32-bit integers, to 8 bit."""
    values = np.asarray(image)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"mode {image.mode} with values from {values.min()} to {values.max()} has no agreed range; use 8 or 16 bit"
        )
    return Image.fromarray(from_16_bit(values))


def from_16_bit(values: np.ndarray) -> np.ndarray:
    """Convert values from 0 to 65535 to uint8, rounded to nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply an ICC profile; return the picture unchanged if the profile is of no use."""
    transform = _transform(profile, image.mode)
    if transform is None:
        return image
    try:
        return ImageCms.applyTransform(image, transform) or image
    except ImageCms.PyCMSError:
        return image


# Cached: pictures of one camera or program share a profile, and building a transform costs more than a small picture.
@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB.

    Return None if the profile is broken, made for another mode, or the same as sRGB to within one unit of 255.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform moves no colour by more than one unit of 255.

    Most pictures carry a profile of sRGB itself, in a version that differs slightly from maker to maker. Their pixels
    stay as they are.
    """
    steps = range(0, 256, 15)
    probed = [(grey,) * 3 for grey in range(256)] if mode == "L" else list(product(steps, repeat=3))
    colours = np.array(probed, np.uint8)[None]
    probe = Image.fromarray(colours).convert(mode)
    changed = ImageCms.applyTransform(probe, transform)
    return changed is not None and int(np.abs(np.asarray(changed).astype(int) - colours).max()) <= 1
