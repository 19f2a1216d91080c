"""The verb that draws one picture in the style of another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan.config.sections import ModelConfig
from stylegan.errors import ConfigError, StepError
from stylegan.images import to_float, to_uint8
from stylegan.networks.classifier import Classifier
from stylegan.networks.generator import Generator
from stylegan.networks.style_transfer import StyleTransfer, encoder_of, save_transfer, shape_of
from stylegan.networks.weights import save_generator
from stylegan.transfer import apply
from stylegan.verbs.sample import sample
from stylegan.verbs.transfer import transfer


def network(channels: int = 3) -> StyleTransfer:
    torch.manual_seed(0)
    source = Classifier(resolution=16, channels=channels, num_classes=2).eval()
    shape = shape_of(source, channels=channels, depth=1, resolution=16)
    return StyleTransfer(shape, encoder_of(source, shape)).eval()


def picture(path: Path, size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> str:
    random = np.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path)
    return str(path)


@pytest.fixture
def model(tmp_path):
    """Return the folder of an untrained style transfer for colour images."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "transfer.safetensors").write_bytes(save_transfer(network()))
    return str(tmp_path / "model")


@pytest.fixture
def pictures(tmp_path):
    """Return a content of 30x21 pixels and a style of another size."""
    return picture(tmp_path / "content.png", (30, 21)), picture(tmp_path / "style.png", (17, 40), seed=1)


def test_the_picture_is_that_of_the_network_and_as_large_as_the_content(model, pictures, tmp_path):
    record = transfer(None, *pictures, model=model, alpha=0.7, out=str(tmp_path / "out.png"))
    assert (record.width, record.height, record.alpha, record.checkpoint_uri) == (30, 21, 0.7, model)
    content, style = (
        to_float(torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]) for path in pictures
    )
    expected = to_uint8(network()(content, style, 0.7))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)


def test_pictures_are_converted_as_sharding_would(model, pictures, tmp_path):
    grey = picture(tmp_path / "grey.png", (12, 9), "L")
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.open(pictures[0]).save(turned, exif=exif)
    for content, size in ((grey, (12, 9)), (str(turned), (21, 30))):
        record = transfer(None, content, pictures[1], model=model, out=str(tmp_path / "out.webp"))
        assert (record.width, record.height) == size
        assert Image.open(tmp_path / "out.webp").mode == "RGB"


def test_a_large_picture_is_made_smaller(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(apply, "LONGEST", 20)
    record = transfer(None, *pictures, model=model, out=str(tmp_path / "out.png"))
    assert (record.width, record.height) == (20, 14)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_number_from_0_to_1(model, pictures, alpha):
    with pytest.raises(ConfigError, match=r"--alpha .*: must be a number from 0, the content, to 1, the style"):
        transfer(None, *pictures, model=model, alpha=alpha, out="x.png")


def test_pictures_that_cannot_be_read_are_one_line(model, pictures, tmp_path):
    content, style = pictures
    (tmp_path / "text.png").write_text("no picture")
    for bad, message in (
        (str(tmp_path / "none.png"), "CONTENT .*none.png: there is no such file"),
        (str(tmp_path), "CONTENT .*: is a folder"),
        (str(tmp_path / "text.png"), "text.png: cannot be used as a picture .*not an image in a known format"),
        ("http://name:secret@127.0.0.1/x.png", "CONTENT"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            transfer(None, bad, style, model=model, out="x.png")
        assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match=r"STYLE .*none.png: there is no such file"):
        transfer(None, content, str(tmp_path / "none.png"), model=model, out="x.png")


def test_each_kind_of_model_is_drawn_from_by_its_own_verb(model, pictures, tmp_path):
    generator = Generator(
        ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8),
        resolution=8,
        channels=3,
    )
    (tmp_path / "gan").mkdir()
    (tmp_path / "gan" / "generator.safetensors").write_bytes(save_generator(generator, ()))
    with pytest.raises(
        StepError, match=r"holds no transfer.safetensors; it is a StyleGAN, from which `.*stylegan sample"
    ):
        transfer(None, *pictures, model=str(tmp_path / "gan"), out=str(tmp_path / "x.png"))
    with pytest.raises(StepError, match=r"is a style transfer, with which `.*stylegan transfer"):
        sample(None, model, seeds=[0], psi=None, out=str(tmp_path / "x.png"))
