"""The resize that the published feature networks were measured with: TensorFlow 1's, which differs from everybody else's."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_tf1(images: Tensor, side: int) -> Tensor:
    """Bilinear resize as TensorFlow 1's ResizeBilinear (align_corners=False, half_pixel_centers=False), without antialiasing.

    Pixel i of the result lies at i * r / side of the source, so the picture moves by up to half a pixel; PyTorch's bilinear
    resize puts pixel centres over each other instead and gives other features.

    Args:
        images: float [N, C, r, r] of any range and size.
        side: of the result.

    Returns:
        [N, C, side, side]
    """
    return _resample(_resample(images, -1, side), -2, side)


def _resample(images: Tensor, dim: int, side: int) -> Tensor:
    length = images.shape[dim]
    if length == side:
        return images
    scale = torch.tensor(length / side, dtype=torch.float32, device=images.device)
    position = (
        torch.arange(side, dtype=torch.float32, device=images.device) * scale
    )  # in float32, as TensorFlow's kernel
    low = position.long()
    high = (low + 1).clamp_max(length - 1)
    share = (position - low).to(images.dtype)
    return torch.lerp(
        images.index_select(dim, low), images.index_select(dim, high), share if dim == -1 else share[:, None]
    )
