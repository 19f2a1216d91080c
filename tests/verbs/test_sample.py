"""Grids of images: their layout, and images that are the same in every grid."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resnets import make_resnet, write_resnet

from stylegan.config.sections import ModelConfig
from stylegan.drawing.draw import draw
from stylegan.errors import ConfigError
from stylegan.images import to_uint8
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.verbs import sample as sampling
from stylegan.verbs.sample import sample

MODEL = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)


def untrained(num_labels: int = 0) -> Generator:
    torch.manual_seed(0)
    return Generator(MODEL, resolution=8, channels=3, num_labels=num_labels)


@pytest.fixture
def model(tmp_path):
    """model(names): the folder of an untrained 8x8 generator with these classes."""

    def make(*names):
        (tmp_path / "generator.safetensors").write_bytes(save_generator(untrained(len(names)), names))
        return str(tmp_path)

    return make


@pytest.fixture
def sheet(model, tmp_path):
    """sheet(names, **options): the record of a grid, and its images, 8x8 each, row by row."""

    def make(names=(), **options):
        path = tmp_path / "grid.png"
        record = sample(None, model(*names), **{"seeds": [0, 1], "psi": None, "out": str(path)} | options)
        pixels = np.asarray(Image.open(path))
        left, rows = pixels.shape[1] - record.columns * 67, pixels.shape[0] // 67
        top = pixels.shape[0] - rows * 67
        corners = [(top + row * 67, left + column * 67) for row in range(rows) for column in range(record.columns)]
        return record, [pixels[y : y + 64 : 8, x : x + 64 : 8].transpose(2, 0, 1) for y, x in corners]

    return make


def test_an_image_depends_on_seed_label_and_psi_alone():
    generator = untrained(3)
    images = draw(generator, [5, 6, 5, 5], labels=[1, 1, 2, 1], psi=0.5)
    assert (images.dtype, images.shape) == (torch.uint8, (4, 3, 8, 8))
    assert torch.equal(images[0], images[3])
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert torch.equal(draw(generator, [5], labels=[2], psi=0.5)[0], images[2])
    assert not torch.equal(draw(generator, [5], labels=[2])[0], images[2])


def test_a_conditional_model_has_a_row_for_each_seed_and_a_column_for_each_class(sheet):
    record, images = sheet(["a", "b", "c"], seeds=[7, 9])
    assert (record.columns, record.classes, record.num_classes, record.num_images) == (3, ("a", "b", "c"), 3, 6)
    expected = draw(untrained(3), [7, 7, 7, 9, 9, 9], labels=[0, 1, 2] * 2)
    assert np.array_equal(images, expected)


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"columns": 2}, (0, 1)),
        ({"columns": 1}, (0,)),
        ({"labels": ["c", "0"]}, (2, 0)),
        ({"labels": ["c", "a"], "columns": 2}, (2, 0)),
    ],
)
def test_classes_are_chosen(sheet, options, classes):
    record, images = sheet(["a", "b", "c"], **options)
    assert record.classes == tuple("abc"[number] for number in classes)
    expected = draw(untrained(3), [seed for seed in (0, 1) for _ in classes], labels=[*classes] * 2)
    assert np.array_equal(images, expected)


@pytest.mark.parametrize(
    ("names", "labels", "number"), [((), [], None), (("a", "b", "c"), ["b"], 1), (("only",), [], 0)]
)
def test_one_class_alone_has_one_image_for_each_seed(sheet, names, labels, number):
    """As has a model without classes: in about a square, or in so many columns."""
    generator, seeds = untrained(len(names)), [3, 4, 5, 6, 8]
    expected = draw(generator, seeds, labels=None if number is None else [number] * 5)
    for columns, in_row in ((None, 3), (2, 2), (9, 5)):
        record, images = sheet(names, seeds=seeds, labels=labels, columns=columns)
        assert (record.columns, record.classes, record.num_images) == (in_row, (), 5)
        assert np.array_equal(images[:5], expected)
        assert all((image == 230).all() for image in images[5:])


@pytest.mark.parametrize("names", [(), ("a", "b", "c")])
@pytest.mark.parametrize("psi", [None, 1.0])
def test_a_resnet_is_drawn_as_it_is(tmp_path, names, psi):
    """Each image depends on its seed and class alone; psi=1 is no truncation."""
    path = tmp_path / "grid.png"
    record = sample(None, write_resnet(tmp_path, *names), seeds=[7, 9], psi=psi, out=str(path))
    assert (record.columns, record.classes, record.resolution) == (len(names) or 2, names, 32)
    sheet, generator = np.asarray(Image.open(path)), make_resnet(len(names))
    for row, seed in enumerate([7, 9]):
        for column in range(max(len(names), 1)):
            z = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
            expected = to_uint8(generator(z, torch.tensor([column]) if names else None))[0].numpy()
            y, x = (row, column) if names else (0, row)
            top, left = sheet.shape[0] - (2 if names else 1) * 67, sheet.shape[1] - record.columns * 67
            cell = sheet[top + 67 * y :, left + 67 * x :][:64:2, :64:2].transpose(2, 0, 1)
            assert np.array_equal(cell, expected)


def test_a_resnet_has_no_w_to_truncate(tmp_path):
    uri = write_resnet(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"^--psi 0\.7: this model has no w to truncate \(model\.architecture: resnet\); leave it out$",
    ):
        sample(None, uri, seeds=[0], psi=0.7, out=str(tmp_path / "a.png"))
    assert not (tmp_path / "a.png").exists()


def test_of_many_classes_the_first_that_fit_are_drawn(sheet, monkeypatch):
    names = [str(number) for number in range(40)]
    assert sheet(names, seeds=[0])[0].columns == 16
    assert sheet(names, seeds=[0], columns=20)[0].columns == 20
    monkeypatch.setattr(sampling, "WIDEST", 5 * 64)
    assert sheet(names, seeds=[0])[0].columns == 5


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ("abc", {"columns": 4}, r"^--cols 4: each class has a column, and this model has 3 classes$"),
        ("abc", {"columns": 3, "labels": ["a", "b"]}, r"^--cols 3: each of the 2 --label has a column; leave it out$"),
        ("abc", {"columns": 0}, r"^--cols 0: must be at least 1$"),
        ("abc", {"labels": ["d"]}, r"^--label d: no such class; the classes are a, b, c$"),
        ("abc", {"labels": ["3"]}, r"^--label 3: no such class"),
        ("", {"labels": ["a"]}, r"^--label a: this model is not class-conditional; leave it out$"),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(sheet, tmp_path, names, options, says):
    with pytest.raises(ConfigError, match=says):
        sheet(names, **options)
    assert not (tmp_path / "grid.png").exists()


def test_a_single_image_has_no_frame(model, tmp_path):
    out = Path(tmp_path, "one.png")
    sample(None, model("a", "b"), seeds=[4], psi=None, labels=["b"], out=str(out))
    pixels = np.asarray(Image.open(out))
    assert pixels.shape == (64, 64, 3)
    assert np.array_equal(pixels[::8, ::8].transpose(2, 0, 1), draw(untrained(2), [4], labels=[1])[0])
