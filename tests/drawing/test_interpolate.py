"""Walks through latent space: they pass their images, are closed, and move evenly."""

import torch

from stylegan.drawing.interpolate import StyleWalk, slerp, walk_z


def test_slerp_goes_along_a_great_circle_at_even_speed():
    torch.manual_seed(0)
    a, b = torch.randn(2, 16, dtype=torch.float64)
    points = torch.stack([slerp(a, b, t) for t in torch.linspace(0, 1, 11, dtype=torch.float64)])
    assert torch.equal(points[0], a)
    assert torch.equal(points[-1], b)
    units = points / points.norm(dim=1, keepdim=True)
    angles = torch.acos((units[1:] * units[:-1]).sum(1))
    torch.testing.assert_close(angles, angles[:1].expand(10))
    lengths = torch.lerp(a.norm(), b.norm(), torch.linspace(0, 1, 11, dtype=torch.float64))
    torch.testing.assert_close(points.norm(dim=1), lengths)


def test_slerp_of_equal_latents_stays_there():
    a = torch.randn(3, 8)
    torch.testing.assert_close(slerp(a, a.clone(), 0.3), a)
    assert slerp(a, -a, 0.5).isfinite().all()


def test_walks_pass_their_images_and_are_closed():
    torch.manual_seed(0)
    keys = torch.randn(5, 2, 8)
    for walk in (lambda position: walk_z(keys, position), StyleWalk(keys)):
        for key in range(5):
            torch.testing.assert_close(walk(float(key)), keys[key], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(walk(5.0), keys[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(walk(4.9999), keys[0], atol=5e-3, rtol=0)


def test_a_walk_of_styles_has_no_corner_anywhere():
    """Not even where it ends and begins again: its speed is the same on both sides."""
    keys = torch.randn(4, 8, dtype=torch.float64)
    walk, step = StyleWalk(keys), 1e-4
    for position in (0.0, 1.0, 3.0):
        before, after = (walk(position) - walk(position - step)), (walk(position + step) - walk(position))
        torch.testing.assert_close(before / step, after / step, atol=1e-2, rtol=0)
