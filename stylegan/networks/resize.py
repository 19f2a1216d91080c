"""TensorFlow 1's bilinear resize, which the published feature networks need and which differs from all others."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_tf1(images: Tensor, side: int) -> Tensor:
    """Resize images as TensorFlow 1's ResizeBilinear does (align_corners=False, half_pixel_centers=False).

    There is no antialiasing. Pixel i of the result is taken at i * r / side in the source, so the picture moves by up
    to half a pixel. PyTorch's bilinear resize aligns pixel centres instead, which leads to other features.

    Args:
        images: float [N, C, r, r] of any range and size.
        side: side of the result.

    Returns:
        [N, C, side, side] in the same range.
    """
    return _resample(_resample(images, -1, side), -2, side)


def _resample(images: Tensor, dim: int, side: int) -> Tensor:
    """Resize one dimension of images to `side`."""
    length = images.shape[dim]
    if length == side:
        return images
    # Positions are computed in float32, as in TensorFlow's kernel.
    scale = torch.full((), length / side, dtype=torch.float32, device=images.device)  # no copy to a GPU to wait for
    position = torch.arange(side, dtype=torch.float32, device=images.device) * scale
    low = position.long()
    high = (low + 1).clamp_max(length - 1)
    share = (position - low).to(images.dtype)
    return torch.lerp(
        images.index_select(dim, low), images.index_select(dim, high), share if dim == -1 else share[:, None]
    )
