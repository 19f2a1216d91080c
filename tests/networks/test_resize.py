"""Comparison of the resize with TensorFlow 1's formula and with torch-fidelity's port."""

import pytest
import torch
from public_weights import pictures
from reference import torch_fidelity

from stylegan.networks.resize import resize_tf1


def test_enlarging_starts_at_the_first_pixel_and_repeats_the_last() -> None:
    """Check that pixel i of the result is taken at i * 2 / 4 in the source: no half pixels, nothing beyond the edge."""
    image = torch.tensor([[0.0, 8.0], [16.0, 40.0]])[None, None]
    rows = [[0, 4, 8, 8], [8, 16, 24, 24], [16, 28, 40, 40], [16, 28, 40, 40]]
    assert resize_tf1(image, 4)[0, 0].tolist() == rows


def test_reducing_takes_points_without_averaging() -> None:
    """Check that a resize from 6 to 4 takes the points 0, 1.5, 3 and 4.5."""
    image = torch.arange(6.0).square().expand(1, 1, 6, 6)
    assert resize_tf1(image, 4)[0, 0].tolist() == [[0, 2.5, 9, 20.5]] * 4


@pytest.mark.parametrize("side", [8, 32, 299, 512])
def test_equals_torch_fidelity(side: int) -> None:
    """Check resizes to 299 pixels, from smaller, larger and equal sizes."""
    images = pictures(2, side).float()
    expected = torch_fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x(
        images, size=(299, 299), align_corners=False
    )
    torch.testing.assert_close(resize_tf1(images, 299), expected, rtol=0, atol=1e-3)
