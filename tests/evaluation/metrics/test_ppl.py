"""Perceptual path length against generators whose path lengths are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegan.evaluation.metrics.ppl import Path, average_down, crop, cropped_side, path_length, slerp

NUM = 64


def draw(size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    z0, z1 = torch.randn(2, NUM, size, dtype=torch.float64)
    return z0, z1, torch.rand(NUM, 1, dtype=torch.float64)


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).sum(dim=1)


def lengths(metric: str, matrix: Tensor, *, shift: float = 0.0) -> Tensor:
    """Return squared path lengths of a generator that maps z to w = z + shift and w to the image matrix @ w."""
    path = Path.named(metric, epsilon=1e-4, cropped=False)
    w = path.ends(*draw(), lambda z: z + shift)
    return path.lengths((w @ matrix.T)[:, :, None, None], squared)


@pytest.mark.parametrize("metric", ["ppl_wfull", "ppl_wend"])
def test_in_w_a_linear_generator_moves_by_its_matrix_times_the_difference(metric: str) -> None:
    z0, z1, _ = draw()
    matrix = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(
        lengths(metric, matrix, shift=3.0), ((z1 - z0) @ matrix.T).square().sum(dim=1), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("metric", ["ppl_zfull", "ppl_zend"])
def test_in_z_an_identity_moves_by_the_angle(metric: str) -> None:
    """slerp walks the unit circle at constant speed, so the squared length is the squared angle between the latents."""
    z0, z1, _ = draw()
    angle = torch.acos(torch.nn.functional.cosine_similarity(z0, z1))
    torch.testing.assert_close(lengths(metric, torch.eye(6, dtype=torch.float64)), angle.square(), rtol=1e-5, atol=0)


def test_without_a_mapping_network_z_keeps_its_length() -> None:
    """It goes from the length of one end to that of the other; with one it is normalised."""
    z0, z1, _ = draw()
    t = torch.full((NUM, 1), 0.25, dtype=torch.float64)
    for normalised in (True, False):
        path = Path.named("ppl_zfull", epsilon=0.5, cropped=False, normalised=normalised)
        first, second = path.ends(z0, z1, t, lambda z: z).chunk(2)
        for z, share in ((first, 0.25), (second, 0.75)):
            length = torch.lerp(z0.norm(dim=1), z1.norm(dim=1), share)
            torch.testing.assert_close(z.norm(dim=1), torch.ones_like(length) if normalised else length)
            torch.testing.assert_close(z / z.norm(dim=1, keepdim=True), slerp(z0, z1, torch.full_like(t, share)))


def test_full_looks_along_the_path_and_end_at_its_start() -> None:
    """The generator squares w, so its speed depends on the place: 2 x dx is 2 z0 (z1 - z0) at the start only."""
    z0, z1, t = draw(1)
    for metric, place in (("ppl_wend", z0), ("ppl_wfull", z0 + t * (z1 - z0))):
        path = Path.named(metric, epsilon=1e-6, cropped=False)
        images = path.ends(z0, z1, t, lambda z: z).square()[:, :, None, None]
        expected = (2 * place * (z1 - z0)).square()[:, 0]
        torch.testing.assert_close(path.lengths(images, squared), expected, rtol=1e-3, atol=1e-6)


def test_names_say_what_a_path_is() -> None:
    found = {
        name: (Path.named(name, epsilon=1.0, cropped=True))
        for name in ("ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend")
    }
    assert [(p.space, p.full) for p in found.values()] == [("z", True), ("w", True), ("z", False), ("w", False)]


def test_slerp_stays_on_the_unit_sphere_between_its_ends() -> None:
    a, b, t = draw()
    torch.testing.assert_close(torch.linalg.vector_norm(slerp(a, b, t), dim=1), torch.ones(NUM, dtype=torch.float64))
    torch.testing.assert_close(slerp(a, b, torch.zeros_like(t)), torch.nn.functional.normalize(a))
    torch.testing.assert_close(slerp(a, b, torch.ones_like(t)), torch.nn.functional.normalize(b))


def test_crop_takes_the_face_region() -> None:
    images = torch.arange(16 * 16).reshape(1, 1, 16, 16)
    assert torch.equal(crop(images), images[:, :, 6:14, 4:12])
    assert crop(torch.zeros(1, 1, 4, 4)).shape == (1, 1, 4, 4)


@pytest.mark.parametrize("resolution", [4, 8, 32, 1024])
def test_the_side_of_a_crop_is_known_before(resolution: int) -> None:
    assert crop(torch.zeros(1, 1, resolution, resolution)).shape[-1] == cropped_side(resolution)


def test_crops_above_256_are_averaged_over_whole_squares_and_others_stay() -> None:
    """1024 is cropped to 512 and averaged to 256; a crop of 128 is not enlarged."""
    images = torch.arange(512.0).expand(1, 1, 512, 512)
    assert torch.equal(average_down(images)[0, 0, 0], torch.arange(0.5, 512, 2))
    small = torch.zeros(1, 1, 128, 128)
    assert average_down(small) is small
    seen = []
    Path.named("ppl_wend", epsilon=1.0, cropped=True).lengths(
        torch.zeros(2, 1, 1024, 1024), lambda a, b: seen.append(a.shape[-1]) or squared(a, b)
    )
    assert seen == [256]


def test_only_a_path_that_is_cropped_is_cropped() -> None:
    images = torch.zeros(2, 1, 8, 8)
    images[1, 0, 0, 0] = 1.0  # a corner, outside the face region
    assert Path.named("ppl_wend", epsilon=1.0, cropped=False).lengths(images, squared).tolist() == [1.0]
    assert Path.named("ppl_wend", epsilon=1.0, cropped=True).lengths(images, squared).tolist() == [0.0]


def test_outliers_outside_the_percentiles_do_not_count() -> None:
    """For 0 ... 200 the percentiles are exactly 2 and 198, and both are kept."""
    values = np.arange(201, dtype=np.float32)
    values[-1] = 1e9
    found = path_length(np.random.default_rng(0).permutation(values))
    assert found.value == 100
    assert found.high - found.value < 10


def test_percentiles_between_two_values_go_outwards() -> None:
    """For 10 values the 1st and the 99th percentile are inside the outermost gaps, so all values are kept."""
    values = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 11], np.float32)
    assert path_length(values).value == pytest.approx(1.9)
