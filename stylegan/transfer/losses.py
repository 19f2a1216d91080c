"""The losses of style transfer (Huang & Belongie 2017, section 6.1), as mean squared differences of features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stylegan.networks.normalisation import adaptive_instance_norm, channel_statistics


def target_of(content_maps: Sequence[Tensor], style_maps: Sequence[Tensor]) -> Tensor:
    """Return t of equation 10: the deepest features of the contents with the statistics of those of the styles."""
    return adaptive_instance_norm(content_maps[-1], style_maps[-1])


def content_losses(maps: Sequence[Tensor], target: Tensor) -> Tensor:
    """Return the content loss [N] of images (equation 12).

    Args:
        maps: of the encoder of what was drawn, finest first.
        target: t, of the shape of the last map.
    """
    return (maps[-1] - target).square().mean((1, 2, 3))


def style_losses(maps: Sequence[Tensor], style_maps: Sequence[Tensor]) -> Tensor:
    """Return the style loss [N] of images (equation 13): differences of means and deviations, summed over the maps.

    Args:
        maps: of the encoder of what was drawn, finest first.
        style_maps: those of the styles; of any size.
    """
    total = maps[0].new_zeros(len(maps[0]))
    for drawn, style in zip(maps, style_maps, strict=True):
        for own, wanted in zip(channel_statistics(drawn), channel_statistics(style), strict=True):
            total = total + (own - wanted).square().mean(1)
    return total
