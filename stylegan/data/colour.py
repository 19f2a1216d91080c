"""Pictures of any mode to 8-bit grey or RGB as a screen would show them: palettes, depth, ICC profiles, transparency."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from itertools import product
from typing import Literal

import numpy as np
from PIL import Image, ImageCms

_PROFILED = ("L", "RGB", "CMYK")  # modes whose profiles are followed
_GREY_WITH_ALPHA = ("1", "L", "LA", "La")


def to_screen(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """A picture in mode L or RGB; the table at the top of `stylegan.data.decode` says what becomes of what.

    Raises:
        ValueError: values without an agreed range, or a mode without a defined conversion.
    """
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep_grey(image)
    if image.mode in ("P", "PA"):  # a palette has colours of its own, also on the way to grey
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in _GREY_WITH_ALPHA else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if profile and image.mode in _PROFILED:
        image = _to_srgb(image, profile)
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    if alpha is not None:
        paper = Image.new(image.mode, image.size, "white")
        paper.paste(image, mask=alpha)
        image = paper
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey (also in a 32-bit integer image) to 8 bit."""
    values = np.asarray(image)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"mode {image.mode} with values from {values.min()} to {values.max()} has no agreed range; use 8 or 16 bit"
        )
    return Image.fromarray(from_16_bit(values))


def from_16_bit(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 65535 to uint8, rounded to nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    transform = _transform(profile, image.mode)
    if transform is None:
        return image
    try:
        return ImageCms.applyTransform(image, transform) or image
    except ImageCms.PyCMSError:
        return image


@lru_cache(
    maxsize=32
)  # the pictures of a camera or a program share theirs, and building it costs more than a small picture
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None if it is broken, made for another mode, or says (to a unit of 255) what sRGB says."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Most pictures carry a profile of sRGB itself, of which each maker has a slightly different copy: they stay as they are."""
    steps = range(0, 256, 15)
    colours = np.array(
        [(grey,) * 3 for grey in range(256)] if mode == "L" else list(product(steps, repeat=3)), np.uint8
    )[None]
    probe = Image.fromarray(colours).convert(mode)
    changed = ImageCms.applyTransform(probe, transform)
    return changed is not None and int(np.abs(np.asarray(changed).astype(int) - colours).max()) <= 1
