"""Encoder and decoder of style transfer: what they are made of, their sizes, and their file."""

import pytest
import torch

from stylegan.errors import DamagedError
from stylegan.networks.classifier import Classifier
from stylegan.networks.pretrained import RectifiedConv
from stylegan.networks.style_transfer import StyleTransfer, encoder_of, load_transfer, save_transfer, shape_of
from stylegan.networks.vgg import VGG16Maps


def embedded(channels: int = 3) -> Classifier:
    """Return a classifier whose normalisation does something."""
    torch.manual_seed(0)
    network = Classifier(resolution=32, channels=channels, num_classes=2)
    network(torch.randn(16, channels, 32, 32))
    return network.eval()


def transfer(network, *, channels: int = 3, depth: int = 2) -> StyleTransfer:
    shape = shape_of(network, channels=channels, depth=depth, resolution=32)
    torch.manual_seed(1)
    return StyleTransfer(shape, encoder_of(network, shape)).eval()


def test_the_encoder_of_vgg16_ends_at_relu4_1_and_its_decoder_is_the_mirror():
    network = VGG16Maps().eval()
    model = transfer(network, depth=3)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    found = model.encoder.maps(images)
    assert [tuple(x.shape[1:]) for x in found] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    # In the middle, where the borders have no part, they are those of VGG16.
    for level, convolution in ((1, "5"), (2, "10")):
        below = list(network.maps(images))[level - 1]
        expected = network.features[convolution](torch.nn.functional.max_pool2d(below, 2))
        margin = 4
        middle = slice(margin, -margin) if expected.shape[-1] > 2 * margin else slice(3, 5)
        torch.testing.assert_close(found[level][..., middle, middle], expected[..., middle, middle])
    widths = [
        (layer.in_channels, layer.out_channels) for layer in model.decoder.layers if isinstance(layer, RectifiedConv)
    ]
    mirror = [(512, 256), (256, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64)]
    assert widths == mirror
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.decoder.modules())


def test_the_embedded_encoder_is_the_beginning_of_its_network():
    network = embedded()
    model = transfer(network)
    images = torch.rand(2, 3, 32, 32)
    maps = model.encoder.maps(images)
    assert len(maps) == 3
    for own, whole in zip(maps, network.maps(images), strict=False):
        middle = slice(3, -3) if own.shape[-1] > 6 else slice(3, 5)
        torch.testing.assert_close(own[..., middle, middle], whole[..., middle, middle])
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())


@pytest.mark.parametrize("network", [embedded(), VGG16Maps().eval()], ids=["embedded", "vgg16"])
def test_the_border_of_an_image_is_no_texture(network):
    model = transfer(network)
    for x in (
        *model.encoder.maps(torch.full((1, 3, 16, 16), 0.3)),
        model(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 8, 8)),
    ):
        torch.testing.assert_close(x, x.mean((2, 3), keepdim=True).expand_as(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (5, 3), (1, 1)])
def test_pictures_of_any_size_keep_it(size):
    model = transfer(embedded(1), channels=1)
    content, style = torch.rand(1, 1, *size), torch.rand(1, 1, 40, 21)
    assert model(content, style).shape == content.shape


def test_alpha_goes_from_the_content_to_the_style():
    model = transfer(embedded())
    content, style = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32) * 0.2
    plain = model.decoder(model.encoder.maps(content)[-1])
    torch.testing.assert_close(model(content, style, 0.0), plain)
    whole, half = model(content, style, 1.0), model(content, style, 0.5)
    assert not torch.equal(whole, plain)
    assert not torch.equal(half, whole)
    torch.testing.assert_close(
        model(content, content, 1.0), plain, atol=1e-4, rtol=1e-4
    )  # its own style changes nothing


def test_a_file_holds_all_of_it_and_equal_networks_give_equal_bytes():
    model = transfer(embedded())
    data = save_transfer(model)
    again = load_transfer(data)
    content, style = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again(content, style), model(content, style), atol=0, rtol=0)
    assert save_transfer(again) == data
    with pytest.raises(DamagedError, match="x: these 100 bytes are not a style transfer"):
        load_transfer(data[:100], "x")
