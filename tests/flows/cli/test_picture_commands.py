"""`figures`, `mix` and `video` on a small model, and what they say about wrong values."""

import json

import numpy as np
import pytest
import torch
from command_line import TREE, fail
from PIL import Image
from resnets import make_resnet, write_resnet

from flows.cli.main import main
from stylegan.config.sections import ModelConfig
from stylegan.drawing.draw import draw, paint, styles
from stylegan.drawing.latents import Latents, latent, latents_bytes
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator, save_generator


def folder(tmp_path, num_labels=0, **model):
    torch.manual_seed(0)
    generator = Generator(ModelConfig(**(TREE["model"] | model)), resolution=8, channels=3, num_labels=num_labels)
    for layer in generator.synthesis.layers:
        if layer.noise_weight is not None:
            layer.noise_weight.data.fill_(0.3)
    names = [f"class {number}" for number in range(num_labels)]
    (tmp_path / "generator.safetensors").write_bytes(save_generator(generator, names))
    return str(tmp_path)


@pytest.fixture
def untrained(tmp_path):
    return folder(tmp_path)


@pytest.fixture
def generator(untrained, tmp_path):
    return load_generator((tmp_path / "generator.safetensors").read_bytes())[0]


def cells(path, columns):
    sheet = np.asarray(Image.open(path))
    rows, left = sheet.shape[0] // 67, sheet.shape[1] - columns * 67
    body = sheet[sheet.shape[0] - rows * 67 :, left:].reshape(rows, 67, columns, 67, 3)
    return body[:, :64:8, :, :64:8].transpose(0, 2, 4, 1, 3)


def test_mix_draws_rows_columns_and_mixed_images(capsys, untrained, generator, tmp_path):
    """A mixed image has the noise of its row. All layers of the column make the column's image, but for that noise."""
    out = tmp_path / "mix.png"
    options = ["--rows", "0-1", "--cols", "6-8", "--styles", "0-3", "--noise", "5", "--out", str(out)]
    assert main(["mix", untrained, *options, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["rows"], record["columns"], record["layers"], record["num_layers"]) == (2, 3, [0, 1, 2, 3], 4)
    sheet = cells(out, 4)
    assert np.array_equal(sheet[0, 1:], draw(generator, [6, 7, 8], noise=5))
    assert np.array_equal(sheet[1:, 0], draw(generator, [0, 1], noise=5))
    assert np.abs(sheet[1, 1:].astype(int) - sheet[0, 1:]).max() <= 1
    assert main(["mix", untrained, "--rows", "0", "--cols", "6", "--styles", "fine", "--out", str(out)]) == 0
    mixed = cells(out, 2)
    assert not np.array_equal(mixed[1, 1], mixed[1, 0])
    assert not np.array_equal(mixed[1, 1], mixed[0, 1])
    assert capsys.readouterr().out.startswith(f"1x1 images of {untrained} in {out}: layers 2, 3 of 4 from the columns")


def test_latents_of_a_file_are_drawn_mixed_and_walked_through(capsys, untrained, generator, tmp_path):
    """`sample` takes several files; `mix` has their images as rows; `video` walks from one to the next."""
    files = []
    for seed in (0, 1):
        ws = torch.randn(1, 4, generator.w_avg.shape[0], generator=torch.Generator().manual_seed(seed))
        (tmp_path / f"{seed}.npz").write_bytes(latents_bytes(Latents(ws)))
        files += ["--w", str(tmp_path / f"{seed}.npz")]
    assert main(["sample", untrained, *files, "--cols", "2", "--out", str(tmp_path / "s.png")]) == 0
    drawn = cells(tmp_path / "s.png", 2)[0]
    assert not np.array_equal(drawn[0], drawn[1])
    assert main(["mix", untrained, *files, "--cols", "3", "--noise", "stored", "--out", str(tmp_path / "m.png")]) == 0
    assert np.array_equal(cells(tmp_path / "m.png", 2)[1:, 0], drawn)
    film = tmp_path / "v.webp"
    assert main(["video", untrained, *files, "--seconds", "1", "--fps", "4", "--out", str(film)]) == 0
    with Image.open(film) as frames:
        first = np.asarray(frames.convert("RGB")).astype(int).reshape(8, 32, 8, 32, 3).mean((1, 3)).transpose(2, 0, 1)
        assert (frames.n_frames, frames.size) == (4, (256, 256))
    assert np.abs(first - drawn[0]).mean() < 12  # WebP changes colours a little
    capsys.readouterr()
    assert "give one of the two" in fail(capsys, 2, "sample", untrained, *files, "--seeds", "1")
    assert "give one of the two" in fail(capsys, 2, "video", untrained, *files, "--seeds", "1")
    assert "have their class in them" in fail(capsys, 2, "sample", untrained, *files, "--label", "x")


@pytest.mark.parametrize("space", ["z", "w"])
def test_a_film_passes_the_images_of_its_seeds(capsys, untrained, generator, tmp_path, space):
    """With two images in each of four cells, and two frames, each frame shows one image of each; the noise is the first one's."""
    out = tmp_path / "film.webp"
    options = ["--seeds", "0-7", "--grid", "2x2", "--seconds", "0.5", "--fps", "4", "--space", space, "--noise", "3"]
    assert main(["video", untrained, *options, "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["num_frames"], record["keyframes"], record["width"], record["height"]) == (2, 2, 512, 512)
    with Image.open(out) as film:
        for number in range(2):
            film.seek(number)
            pixels = np.asarray(film.convert("RGB")).astype(int)
            found = pixels.reshape(2, 8, 32, 2, 8, 32, 3).mean((2, 5)).transpose(0, 2, 4, 1, 3).reshape(4, 3, 8, 8)
            expected = draw(generator, [0 + number, 2 + number, 4 + number, 6 + number], noise=3).numpy()
            assert np.abs(found - expected).mean() < 12


def test_figures_are_written_to_a_folder(capsys, untrained, tmp_path):
    out = tmp_path / "figures"
    assert main(["figures", untrained, "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record["figures"]) == {"mixing", "noise", "noise_layers", "psi", "walk"}
    assert "two stages at least" in record["skipped"]["stages"]
    assert "the model is of no run" in record["skipped"]["neighbours"]
    assert {path.name for path in out.iterdir()} == {
        "mixing.png",
        "noise.png",
        "noise_layers.png",
        "psi.png",
        "walk.webp",
    }
    assert main(["figures", untrained, "--out", str(out), "--only", "psi,stages"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"psi of {untrained} in {out}"
    assert printed[1].startswith("not drawn: stages: ")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["mix", "--styles", "0-9"], "--styles 0-9: this model has the layers 0 to 3; coarse is 0 (4x4 on)"),
        (["mix", "--styles", "big"], "--styles big: must be coarse, middle, fine, or layers"),
        (["mix", "--rows", "5-1"], "--rows 5-1: must be numbers and rising ranges"),
        (["mix", "--cols", "x"], "--cols x: must be numbers"),
        (["mix", "--label", "3"], "--label 3: this model is not class-conditional; leave it out"),
        (["mix", "--psi", "11"], "--psi 11: must be a number from -10 to 10"),
        (["mix", "--noise", "loud"], "--noise loud: must be own, stored, none, or a seed"),
        (["mix", "--rng", "numpy", "--cols", "4294967296"], "seed 4294967296: must be from 0 to 4294967295"),
        (["mix", "--w", "missing.npz"], "--w missing.npz: there is no such file"),
        (["mix", "--out", "x.gif"], "--out x.gif: must end in .png, .jpg, .jpeg or .webp"),
        (["mix", "--rows", "0-99", "--cols", "0-9999"], "are too many for one grid"),
        (["video", "--seeds", "0-2", "--grid", "2x1"], "--seeds: 3 seeds for the 2 cells of --grid 2x1"),
        (["video", "--seeds", "0"], "two at least: 2, 3, ..."),
        (["video", "--grid", "0x2"], "--grid 0x2: must be columns x rows, such as 2x2; at most 256 cells"),
        (["video", "--grid", "99x99"], "at most 256 cells"),
        (["video", "--fps", "0"], "--fps 0: must be from 1 to 120"),
        (["video", "--seconds", "nan"], "--seconds nan: must be above 0 and at most"),
        (["video", "--seconds", "1e9"], "--seconds 1e+09: must be above 0 and at most 3333.33 at 30 fps"),
        (["video", "--out", "x.avi"], "--out x.avi: must end in .mp4 or .webp"),
        (["video", "--grid", "20x2", "--seeds", "0-79"], "a frame of 5120x512 pixels is too large"),
        (["video", "--device", "gpu"], "--device gpu: must be cpu, cuda, cuda:N or auto"),
        (["figures", "--out", "f", "--only", "mixing,grid"], "--only grid: no figure is called so; they are mixing, "),
        (["figures", "--out", "f", "--label", "x"], "--label x: this model is not class-conditional"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(capsys, untrained, tmp_path, monkeypatch, command, says):
    monkeypatch.chdir(tmp_path)
    assert says in fail(capsys, 2, command[0], untrained, *command[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["generator.safetensors"]


def test_classes_of_a_conditional_model_come_in_turn_or_are_one(tmp_path):
    uri = folder(tmp_path, num_labels=3, conditional=True)
    generator, _ = load_generator((tmp_path / "generator.safetensors").read_bytes())
    for options, labels in (([], [0, 1]), (["--label", "class 2"], [2, 2])):
        out = tmp_path / "m.png"
        assert main(["mix", uri, "--rows", "4", "--cols", "5", "--out", str(out), *options]) == 0
        sheet = cells(out, 2)
        assert np.array_equal(sheet[1, 0], draw(generator, [4], labels=labels[:1])[0])
        assert np.array_equal(sheet[0, 1], draw(generator, [5], labels=labels[1:])[0])


def test_a_model_without_styles_has_none_to_mix(capsys, tmp_path):
    assert "has no styles to mix" in fail(capsys, 2, "mix", folder(tmp_path, styles=False), "--out", "m.png")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["mix"], "has no styles to mix (it was trained with model.architecture: resnet)"),
        (["edit", "--attribute", "x", "--strength", "-1..1"], "has no styles to edit (it was trained with"),
        (
            ["video", "--psi", "0.7"],
            "--psi 0.7: this model has no w to truncate (model.architecture: resnet); leave it out",
        ),
        (["figures", "--psi", "0"], "--psi 0: this model has no w to truncate"),
        (["sample", "--psi", "-1"], "--psi -1: this model has no w to truncate"),
        (
            ["project", "missing.png"],
            "has no w to project pictures into (it was trained with model.architecture: resnet)",
        ),
    ],
)
def test_what_a_resnet_does_not_have_is_one_line(capsys, tmp_path, command, says):
    uri, (verb, *options) = write_resnet(tmp_path / "model"), command
    assert says in fail(capsys, 2, verb, uri, *options, "--out", str(tmp_path / "out.webp"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("space", ["z", "w"])
def test_a_film_of_a_resnet_passes_the_images_of_its_seeds(capsys, tmp_path, space):
    """Each cell has a class, in turn."""
    uri, out = write_resnet(tmp_path / "model", "a", "b"), tmp_path / "film.webp"
    options = [
        "--seeds",
        "0-3",
        "--grid",
        "2x1",
        "--seconds",
        "0.4",
        "--fps",
        "10",
        "--space",
        space,
        "--out",
        str(out),
    ]
    assert main(["video", uri, *options]) == 0
    assert "4 frames of 512x256" in capsys.readouterr().out
    with Image.open(out) as film:
        for number, seeds in ((0, [0, 2]), (2, [1, 3])):
            film.seek(number)
            pixels = np.asarray(film.convert("RGB")).reshape(32, 8, 2, 32, 8, 3).mean((1, 4)).transpose(1, 3, 0, 2)
            expected = draw(make_resnet(2), seeds, labels=[0, 1]).numpy()
            assert np.abs(pixels - expected).mean() < 12


def test_a_film_goes_from_class_to_class_of_a_resnet(capsys, tmp_path):
    """Its w has the class as numbers: half of the way between two latents is half of each class."""
    uri, out = write_resnet(tmp_path / "model", "a", "b"), tmp_path / "film.webp"
    generator = make_resnet(2)
    ws = torch.cat([styles(generator, latent(5, 8)[0], label) for label in (0, 1)])
    (tmp_path / "w.npz").write_bytes(latents_bytes(Latents(ws)))
    options = ["--w", str(tmp_path / "w.npz"), "--seconds", "0.4", "--fps", "10", "--out", str(out)]
    assert main(["video", uri, *options]) == 0
    expected = paint(generator, torch.stack([ws[0], ws.mean(0), ws[1]]), None).numpy()
    assert np.abs(expected[0].astype(int) - expected[2]).mean() > 24
    with Image.open(out) as film:
        for number in range(3):
            film.seek(number)
            pixels = np.asarray(film.convert("RGB")).reshape(32, 8, 32, 8, 3).mean((1, 3)).transpose(2, 0, 1)
            assert np.abs(pixels - expected[number]).mean() < 12


def test_everything_can_be_written_to_a_bucket(s3_server, untrained):
    """And the bytes are those of a local file."""
    import fsspec

    bucket = s3_server()
    assert main(["mix", untrained, "--rows", "0", "--cols", "1", "--out", f"{bucket}/mix.png"]) == 0
    assert main(["video", untrained, "--seconds", "0.2", "--fps", "10", "--out", f"{bucket}/a/film.webp"]) == 0
    assert main(["figures", untrained, "--only", "psi,walk", "--out", f"{bucket}/figures"]) == 0
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    names = {name.split("/", 1)[1] for name in fs.find(bucket)}
    assert names == {"mix.png", "a/film.webp", "figures/psi.png", "figures/walk.webp"}
    with fs.open(f"{bucket}/a/film.webp") as file, Image.open(file) as film:
        assert film.n_frames == 2


def test_imported_official_weights_draw_the_latents_of_the_official_scripts(capsys, tmp_path):
    """Their z are those of numpy, their noise that of the file, and their images untruncated unless psi is given."""
    import official_tf as tf

    (tmp_path / "official.pkl").write_bytes(tf.write(tf.arguments(8, 3)))
    uri = str(tmp_path / "imported")
    assert main(["import-weights", str(tmp_path / "official.pkl"), "--out", uri]) == 0
    generator, _ = load_generator((tmp_path / "imported" / "generator.safetensors").read_bytes())
    out = tmp_path / "mix.png"
    options = ["--rows", "888,829", "--cols", "639", "--styles", "0-1", "--rng", "numpy"]
    assert main(["mix", uri, *options, "--out", str(out)]) == 0
    sheet = cells(out, 2)
    for row, seed in ((0, 639), (1, 888), (2, 829)):
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, generator.model.latent_size)).float()
        expected = (generator(z)[0] * 127.5 + 127.5).round().clamp(0, 255).byte().numpy()
        assert np.array_equal(sheet[row, 1 if row == 0 else 0], expected)
