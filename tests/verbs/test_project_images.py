"""Pictures into a folder: what is written, what is kept from before, what is converted, and one line for each bad picture."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from resnets import write_resnet
from safetensors.torch import save

from stylegan.config.sections import ModelConfig
from stylegan.drawing.draw import draw
from stylegan.drawing.latents import read_latents
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.features.embedded import METADATA, FeatureFacts
from stylegan.images import png_bytes
from stylegan.networks.classifier import Classifier
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.verbs import project as verb
from stylegan.verbs.project import Projections, project_images

MODEL = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Return the folder of an untrained 8x8 grey generator with two classes."""
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    generator = Generator(MODEL, resolution=8, channels=1, num_labels=2)
    (tmp_path / "model" / "generator.safetensors").write_bytes(save_generator(generator, ("cat", "dog")))
    return str(tmp_path / "model")


@pytest.fixture
def features(tmp_path: Path) -> str:
    """Return the file of an untrained feature network."""
    torch.manual_seed(1)
    network = Classifier(resolution=8, channels=1, num_classes=2)
    facts = FeatureFacts(
        kind="rotation", resolution=8, channels=1, label_names=("a", "b"), accuracy=1, dataset_fingerprint=""
    )
    path = tmp_path / "features.safetensors"
    path.write_bytes(save(network.state_dict(), {METADATA: facts.model_dump_json()}))
    return str(path)


@pytest.fixture
def run(model: str, features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """run(*pictures, **options): project them in this process, in a few steps; the map on Ray has tests of its own."""
    means = verb.evaluation_means
    monkeypatch.setattr(verb, "evaluation_means", lambda config: means(config) | {"pmap": map})

    def call(*pictures: object, **options: object) -> Projections:
        given = {"steps": 3, "features": features, "out": str(tmp_path / "out")} | options
        return project_images(None, model, [str(picture) for picture in pictures], **given)

    return call


def picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_a_picture_gets_a_folder_with_latents_a_picture_and_a_film(run, model: str, tmp_path: Path) -> None:
    record = run(picture(tmp_path / "own.png"))
    (image,) = record.images
    folder = tmp_path / "out" / "own"
    assert image.folder == str(folder)
    assert {path.name for path in folder.iterdir()} == {*image.files, "projection.json"}
    assert image.files[:2] == ("w.npz", "projection.png")
    assert image.files[2] in ("search.mp4", "search.webp")
    assert (record.network, record.classes, image.converted, image.cached) == ("rotation", ("cat", "dog"), "", False)
    assert image.figures.label in (0, 1)
    with Image.open(folder / "projection.png") as drawn:
        assert drawn.mode == "L"
        assert drawn.width > 2 * 128
    with np.load(folder / "w.npz") as file:
        assert (file["w"].shape, file["w"].dtype) == ((1, 4, 8), np.float32)  # the layout of StyleGAN2-ADA
        assert file["noise3"].shape == (1, 1, 8, 8)
    generator = Generator(MODEL, resolution=8, channels=1, num_labels=2)
    assert len(read_latents(str(folder / "w.npz"), generator).rows()) == 1


def test_what_is_there_is_not_done_again(run, tmp_path: Path) -> None:
    """The same model, settings and pixels, whatever the file is called; other ones are done anew."""
    path = picture(tmp_path / "own.png")
    first = run(path).images[0]
    content = (tmp_path / "out" / "own" / "w.npz").read_bytes()
    again = run(path).images[0]
    assert (again.cached, again.figures, again.files) == (True, first.figures, first.files)
    for options in ({"seed": 1}, {"steps": 4}, {"space": "w"}, {"label": "dog"}):
        assert not run(path, **options).images[0].cached
    assert not run(path).images[0].cached
    assert (tmp_path / "out" / "own" / "w.npz").read_bytes() == content
    picture(path, seed=1)
    assert not run(path).images[0].cached


@pytest.mark.parametrize("name", ["w.npz", "projection.png", "projection.json"])
def test_a_folder_that_a_kill_left_does_not_count(run, tmp_path: Path, name: str) -> None:
    path = picture(tmp_path / "own.png")
    run(path)
    file = tmp_path / "out" / "own" / name
    content = file.read_bytes()
    file.unlink()
    assert not run(path).images[0].cached
    if name != "projection.json":
        assert file.read_bytes() == content


def test_a_damaged_record_is_made_anew(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = picture(tmp_path / "own.png")
    run(path)
    marker = tmp_path / "out" / "own" / "projection.json"
    marker.write_text("{}")
    assert not run(path).images[0].cached
    assert str(marker) in caplog.text
    assert json.loads(marker.read_text())["figures"]["psnr"] > 0


def test_a_folder_of_pictures_and_one_bad_one(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the order of the listing; the bad one is one line, in the log and in the record."""
    source = tmp_path / "photos"
    for number, name in enumerate(("a.png", "a.jpg", "sub/c.png")):
        picture(source / name, seed=number)
    (source / "b.png").write_bytes(b"no picture")
    record = run(source)
    assert [image.image for image in record.images] == [
        str(source / name) for name in ("a.jpg", "a.png", "b.png", "sub/c.png")
    ]
    assert [Path(image.folder).name for image in record.images] == ["a.jpg", "a.png", "", "c"]
    assert record.num_failed == 1
    bad = record.images[2]
    assert (bad.error, bad.figures) == ("not an image in a known format", None)
    assert f"{source / 'b.png'}: not an image in a known format" in caplog.text
    twice = run(source / "sub" / "c.png", source).images
    folders = [image.folder for image in twice if image.folder]
    assert folders == [str(tmp_path / "out" / name) for name in ("c", "a.jpg", "a.png", "sub/c")]
    twice = run(source / "a.png", source / "a.png").images
    assert [Path(image.folder).name for image in twice] == ["a.png", "a.png-2"]


def test_pictures_are_converted_as_sharding_does(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stylegan")
    record = run(picture(tmp_path / "photo.png", size=(24, 20), mode="RGB"))
    words = "24x20 with 3 channel(s), converted as sharding does: the central square, 8x8, grey"
    assert record.images[0].converted == words
    assert f"photo.png: {words}" in caplog.text
    with Image.open(tmp_path / "photo.png") as photo:
        square = photo.convert("L").crop((2, 0, 22, 20)).resize((8, 8), Image.Resampling.LANCZOS)
    with Image.open(tmp_path / "out" / "photo" / "projection.png") as sheet:
        left = np.asarray(sheet)[-6 - 128 : -6 : 16, 6 : 6 + 128 : 16]
    assert np.array_equal(left, np.asarray(square))


def test_an_image_of_the_model_is_taken_as_it_is(model: str, tmp_path: Path) -> None:
    """Also by a run whose own pictures are cropped, or too small below a bound."""
    from stylegan.config.sections import DataConfig

    generator, _ = verb.load_generator(Path(model, "generator.safetensors").read_bytes())
    target = draw(generator, [1], labels=[0])[0]
    data = DataConfig(source="x", resolution=8, channels=1, crop="celeba", min_size=100)
    pixels, words = verb.convert_picture(png_bytes(Image.fromarray(target[0].numpy())), data)
    assert np.array_equal(pixels, target.numpy())
    assert words == ""
    with pytest.raises(verb.UnreadableImage, match=r"has a shorter side than data.min_size=100"):
        verb.convert_picture(png_bytes(Image.new("L", (16, 16))), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"--steps 0: must be from 1 to 100,000"),
        ({"space": "z"}, r"--space z: must be w or w\+"),
        ({"label": "cow"}, r"--label cow: no such class; the classes are cat, dog"),
        ({"seed": -1}, r"seed -1: must be from 0"),
        ({"out": ""}, r"--out"),
        ({"features": "none.safetensors"}, r"--features none.safetensors: there is no such file"),
    ],
)
def test_a_value_that_is_not_allowed_is_one_line(run, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(picture(tmp_path / "own.png"), **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_such_picture_and_no_pictures(run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^IMAGE .*none.png: no such folder or file"):
        run(tmp_path / "none.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StepError, match=r"^IMAGE .*empty: contains no image"):
        run(tmp_path / "empty")


def test_a_generator_that_changes_meanwhile_fails_its_pictures_alone(
    run, model: str, tmp_path: Path, monkeypatch
) -> None:
    """A worker never projects with another network than that of the key."""
    weights = Path(model, "generator.safetensors")
    ask = verb.ProjectionRequest

    def change(**facts: object):
        return ask(**facts | {"generator_sha256": "0" * 64})

    monkeypatch.setattr(verb, "ProjectionRequest", change)
    record = run(picture(tmp_path / "own.png"))
    assert record.images[0].error == f"{weights}: changed since this work began; run the same command again"
    assert not (tmp_path / "out" / "own").exists()


def test_a_resnet_has_no_w_to_project_into(tmp_path: Path) -> None:
    """It is said before anything is read or written."""
    uri = write_resnet(tmp_path / "resnet")
    with pytest.raises(
        ConfigError,
        match=r"resnet: has no w to project pictures into \(it was trained with model.architecture: resnet\)$",
    ):
        project_images(None, uri, ["missing.png"], out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
