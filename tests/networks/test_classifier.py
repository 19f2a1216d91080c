"""The small classifier whose features measure images."""

import pytest
import torch
from torch.nn import functional

from stylegan.networks.classifier import Classifier


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resolution", [4, 8, 16, 64, 256, 1024])
def test_every_resolution_has_maps_a_vector_and_logits(resolution: int, channels: int) -> None:
    network = Classifier(resolution=resolution, channels=channels, num_classes=5).eval()
    images = torch.randn(2, channels, resolution, resolution)
    with torch.no_grad():
        maps = network.maps(images)
        assert network.pooled(images).shape == (2, network.num_features)
        assert network(images).shape == (2, 5)
    sides = [m.shape[-1] for m in maps]
    assert sides[0] == min(resolution, 256)
    assert sides[-1] == 4
    assert sides == sorted(sides, reverse=True)


def test_features_are_fewer_than_a_small_data_set_has_images() -> None:
    assert Classifier(resolution=16, channels=1, num_classes=10).num_features <= 128


def test_the_vector_is_the_mean_of_the_last_map_and_decides_the_class() -> None:
    network = Classifier(resolution=8, channels=1, num_classes=3).eval()
    images = torch.randn(4, 1, 8, 8)
    mean = network.maps(images)[-1].flatten(2).mean(dim=2)
    torch.testing.assert_close(network.pooled(images), mean)
    torch.testing.assert_close(network(images), network.head(mean))


def test_large_images_are_averaged_to_256() -> None:
    network = Classifier(resolution=512, channels=1, num_classes=2).eval()
    images = torch.randn(1, 1, 512, 512)
    torch.testing.assert_close(network(images), network(functional.avg_pool2d(images, 2)))


def test_half_size_crops_pass_through() -> None:
    network = Classifier(resolution=8, channels=3, num_classes=2).eval()
    assert [m.shape[-1] for m in network.maps(torch.randn(1, 3, 4, 4))] == [4, 2, 2]


def test_an_image_is_measured_alone() -> None:
    """Check that in eval mode the features of an image do not depend on the rest of the batch."""
    network = Classifier(resolution=8, channels=1, num_classes=2).eval()
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(network.pooled(images)[1:2], network.pooled(images[1:2]))
