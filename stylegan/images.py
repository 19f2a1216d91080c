"""Convert pixels between networks (float, [-1, 1]) and pictures (uint8, PNG).

There are two ways to eight bits on purpose. Pictures for people are rounded. Images that are measured go through the
truncating transform that StyleGAN's metrics were defined with. Both return exactly the bytes that `to_float` was given.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from stylegan.errors import DamagedError, one_line


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 images [0, 255] of any shape to floats [-1, 1]."""
    return images.to(dtype) * (2 / 255) - 1


def to_uint8(images: Tensor) -> Tensor:
    """Convert float images of any shape, nominally [-1, 1], to uint8: rounded to nearest and clipped; for pictures."""
    return torch.round(images.detach().to(torch.float32) * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)


def quantise(images: Tensor) -> Tensor:
    """Convert float images of any shape, nominally [-1, 1], to uint8 as StyleGAN v1 does for its metrics.

    127.5 x + 128 is clipped to [0, 255] and its fraction cut off.
    """
    return (images.detach().to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def grid(images: Tensor | np.ndarray, columns: int) -> Image.Image:
    """Draw a contact sheet, filled row by row; cells without an image stay black.

    Args:
        images: [N, C, H, W] with C = 1 (grey) or 3 (RGB); uint8, or float in [-1, 1].
        columns: number of images in a row.

    Raises:
        ValueError: no images, or neither 1 nor 3 channels.
    """
    batch = torch.as_tensor(images)
    if batch.ndim != 4 or not len(batch) or batch.shape[1] not in (1, 3):
        raise ValueError(f"grid needs images of shape [N >= 1, 1 or 3, H, W], got {list(batch.shape)}")
    pixels = (batch if batch.dtype == torch.uint8 else to_uint8(batch)).cpu()

    # Fill up the last row with black, then put the cells side by side.
    num, channels, height, width = pixels.shape
    rows = -(-num // columns)
    sheet = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
    sheet[:num] = pixels
    tiled = sheet.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)  # [rows, H, columns, W, C]
    array = tiled.reshape(rows * height, columns * width, channels).numpy()
    return Image.fromarray(array[:, :, 0] if channels == 1 else array)


def png_bytes(image: Image.Image) -> bytes:
    """Encode a picture as the bytes of a PNG file."""
    return picture_bytes(image, ".png")


# Formats of pictures for people, by the ending of a file's name, with the options of Pillow's encoder.
PICTURE_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}


def picture_bytes(image: Image.Image, ending: str) -> bytes:
    """Encode a picture in the format of an ending, one of PICTURE_FORMATS.

    Raises:
        ValueError: the format cannot hold a picture of this size.
    """
    kind, options = PICTURE_FORMATS[ending]
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=kind, **options)
    except (OSError, ValueError, SystemError) as error:
        raise ValueError(f"{image.width}x{image.height} pixels do not fit into a {ending} file; use .png") from error
    return buffer.getvalue()


def open_picture(data: bytes, origin: str, *, cure: str) -> Image.Image:
    """Decode a PNG file that this program stored.

    `Image.open` refuses large pictures, because a stranger's small file may decode to gigabytes. A grid of 14 x 14
    images of 1024x1024 is as large, and our own.

    Args:
        data: the bytes of its file.
        origin, cure: the file, and how to get it again, for the error message.

    Raises:
        DamagedError: the bytes are not a whole PNG file.
    """
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise DamagedError(f"{origin}: is not a picture ({one_line(error, 200)}); {cure}") from error
    return image


def thumbnail(image: Image.Image, side: int = 1024) -> bytes:
    """Return a picture as a PNG file of at most `side` pixels in width and height; a smaller one keeps its size."""
    image = image.copy()
    image.thumbnail((side, side))
    return png_bytes(image)
