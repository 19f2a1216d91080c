"""Draw what a style transfer makes of contents and styles, as one sheet."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from stylegan.images import grid, to_float, to_uint8
from stylegan.networks.style_transfer import StyleTransfer


@torch.no_grad()
def draw_sheet(network: StyleTransfer, contents: Tensor, styles: Tensor, *, cell: int) -> Image.Image:
    """Draw a column for each style, which is at its top, and a row for each content, which is at its left.

    Args:
        network: on any device.
        contents: uint8 [N, C, r, r].
        styles: uint8 [M, C, r, r].
        cell: as for `images.grid`.
    """
    device = network.encoder.device
    as_floats = to_float(styles).to(device)
    cells: list[Tensor | None] = [None, *styles]
    for content in contents:
        repeated = to_float(content).to(device).expand(len(styles), -1, -1, -1)
        cells += [content, *to_uint8(network(repeated, as_floats)).cpu()]
    return grid(cells, len(styles) + 1, cell=cell)
