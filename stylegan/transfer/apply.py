"""Draw one picture in the style of another, whatever their formats and sizes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from stylegan.config.sections import DataConfig
from stylegan.data.decode import UnreadableImage, decode
from stylegan.errors import ConfigError
from stylegan.images import picture, to_float
from stylegan.networks.style_transfer import StyleTransfer

LONGEST = 1024  # pixels of the longer side of a picture that is drawn, or taken as a style


def read_picture(data: bytes, network: StyleTransfer, origin: str) -> Image.Image:
    """Decode an image file as sharding does, in the colours that the network knows; a large one is made smaller.

    Args:
        data: the bytes of the file.
        network: decides between grey and RGB.
        origin: the file, for the error message.

    Raises:
        ConfigError: it is not a picture, or has more pixels than `data.max_pixels` allows by default.
    """
    limits = DataConfig(source=origin, resolution=network.shape.resolution)
    try:
        image = decode(data, network.shape.channels, limits)
    except UnreadableImage as error:
        raise ConfigError(f"{origin}: cannot be used as a picture ({error}); give a PNG, JPEG or WebP file") from None
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return image


@torch.no_grad()
def restyle(network: StyleTransfer, content: Image.Image, style: Image.Image, alpha: float = 1.0) -> Image.Image:
    """Return the content in the style; as large as the content.

    Args:
        network: on any device.
        content, style: as `read_picture` returns them.
        alpha: from 0 to 1; see `StyleTransfer`.
    """
    drawn = network(_floats(content, network), _floats(style, network), alpha)
    return picture(drawn[0], cell=1)


def check_alpha(alpha: float, name: str) -> str | None:
    """Return what is wrong with a value of alpha, None if nothing is."""
    return None if 0 <= alpha <= 1 else f"{name}{alpha:g}: must be a number from 0, the content, to 1, the style"


def _floats(image: Image.Image, network: StyleTransfer) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image))
    pixels = pixels[None, None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)[None]
    return to_float(pixels).to(network.encoder.device)
