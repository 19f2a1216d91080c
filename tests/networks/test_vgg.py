"""Comparison of VGG16 and LPIPS with torch-fidelity, with the same random weights."""

from pathlib import Path

import pytest
import torch
from public_weights import file_bytes, lpips_state, pictures, vgg16_state
from reference import torch_fidelity

from stylegan.errors import ConfigError
from stylegan.images import to_float
from stylegan.networks import vgg
from stylegan.networks.vgg import LPIPS, VGG16, load_lpips, load_vgg16


@pytest.fixture(scope="module")
def files() -> tuple[bytes, bytes]:
    """Return random weights in the published layouts: VGG16, and the heads of LPIPS."""
    return file_bytes(vgg16_state()), file_bytes(lpips_state())


@pytest.fixture(scope="module")
def network(files: tuple[bytes, bytes]) -> VGG16:
    """Return the product's VGG16."""
    return load_vgg16(files[0])


@pytest.fixture(scope="module")
def lpips(files: tuple[bytes, bytes]) -> LPIPS:
    """Return the product's LPIPS."""
    return load_lpips(*files)


@pytest.fixture(scope="module")
def downloaded(files: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a torch.hub folder that contains these weights under the names of the published files."""
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name, data in zip(("vgg16-397923af.pth", "weights-vgg16-lpips.pth"), files, strict=True):
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def _no_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip initial weights: the reference would draw 138 million numbers, which the file then replaces."""
    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


@pytest.mark.usefixtures("_no_initial_weights")
def test_features_equal_torch_fidelity(network: VGG16, downloaded: Path) -> None:
    """Check fc2 after its ReLU, at a size below and a size above the network's own."""
    extractor = torch_fidelity("feature_extractor_vgg16").FeatureExtractorVGG16
    reference = extractor("vgg16", ["fc2_relu"], feature_extractor_weights_path=downloaded / "vgg16-397923af.pth")
    for side in (32, 299):
        images = pictures(2, side)
        (features,) = reference(images)
        torch.testing.assert_close(
            network.fc2(to_float(images)), features, rtol=1e-4, atol=1e-4 * features.std().item()
        )
        assert (features[0] - features[1]).norm() > 0.02 * features[0].norm()  # features depend on the image


@pytest.mark.usefixtures("_no_initial_weights")
def test_distances_equal_torch_fidelity(lpips: LPIPS, downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check distances at several sizes, without quantising, between different and between nearly equal images."""
    monkeypatch.setenv("TORCH_HOME", str(downloaded.parents[1]))
    reference = torch_fidelity("sample_similarity_lpips").SampleSimilarityLPIPS("lpips-vgg16")
    for side in (16, 50, 128):
        a, b = to_float(pictures(4, side)).chunk(2)
        for other, tolerance in ((b, 1e-4), (a + 1e-3 * b, 1e-3)):
            expected = reference((a + 1) * 127.5, (other + 1) * 127.5).flatten()
            torch.testing.assert_close(lpips.distance(a, other), expected, rtol=tolerance, atol=0)


def test_distance_is_one_of_pairs(lpips: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the distance is symmetric and zero to itself, and the same whether computed in parts or at once.

    Grey images count as three equal channels.
    """
    images = to_float(pictures(6, 32, channels=1))
    a, b = images.chunk(2)
    assert lpips.distance(a, a).tolist() == [0, 0, 0]
    whole = lpips.distance(a, b)
    assert (whole > 0).all()
    torch.testing.assert_close(lpips.distance(b.repeat(1, 3, 1, 1), a.repeat(1, 3, 1, 1)), whole)
    monkeypatch.setattr(vgg, "PIXELS_AT_ONCE", 2 * 32 * 32)
    torch.testing.assert_close(lpips.distance(a, b), whole)


def test_maps_are_those_before_each_pooling(network: VGG16) -> None:
    """Check relu1_2 to relu5_3: widths double and sizes halve."""
    maps = list(network.maps(torch.zeros(1, 3, 32, 32)))
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    assert all(x.min() == 0 < x.max() for x in maps)


def test_too_small_images_are_refused(lpips: LPIPS) -> None:
    """Check that images below sixteen pixels, which the last level needs, are refused."""
    with pytest.raises(ConfigError, match=r"^LPIPS: images of 8x8 are too small, its last level needs 16x16; .*$"):
        lpips.distance(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_loading_draws_nothing_and_freezes(files: tuple[bytes, bytes]) -> None:
    """Check that the global random state does not change and that the network is for inference.

    The large layers of VGG16 are not part of LPIPS.
    """
    before = torch.get_rng_state()
    network = load_lpips(*files)
    assert torch.equal(before, torch.get_rng_state())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) < 15e6


def test_refuses_other_files(files: tuple[bytes, bytes]) -> None:
    """Check that the heads of AlexNet, and heads instead of VGG16, are refused."""
    alexnet = file_bytes(
        {
            f"lin{level}.model.1.weight": torch.ones(1, width, 1, 1)
            for level, width in enumerate((64, 192, 384, 256, 256))
        }
    )
    cure = "give lpips/weights/v0.1/vgg.pth of the lpips package or weights-vgg16-lpips.pth of torch-fidelity"
    with pytest.raises(ConfigError, match=rf"^LPIPS v0.1 for VGG16: .*'lin1.model.1.weight' has the shape .*; {cure}$"):
        load_lpips(files[0], alexnet)
    with pytest.raises(ConfigError, match=r"^VGG16: .*; give torchvision's vgg16-397923af.pth$"):
        load_lpips(files[1], files[1])
