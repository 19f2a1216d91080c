"""Commands on a model: samples, weights from and to other programs."""

import io
import json
import os
import subprocess
import sys

import fsspec
import pytest
from command_line import TREE, fail
from PIL import Image

from flows.cli.main import main


@pytest.mark.parametrize(
    ("seeds", "says"),
    [("3-1", "rising ranges"), ("x", "numbers"), ("0-99999", "at most"), ("0-" + "9" * 5000, "numbers")],
)
def test_bad_seeds(capsys, seeds, says):
    assert says in fail(capsys, 2, "sample", "somewhere", "--seeds", seeds)


def test_sample_of_no_model(capsys, write, tmp_path):
    assert "no such model" in fail(capsys, 2, "sample", str(tmp_path))
    assert "no such model" in fail(capsys, 2, "sample", "t-0000", "--config", write())


@pytest.fixture
def untrained(tmp_path):
    """A folder with an untrained 8x8 RGB generator."""
    import torch

    from stylegan.config.sections import ModelConfig
    from stylegan.networks.generator import Generator
    from stylegan.networks.weights import save_generator

    model = ModelConfig(**TREE["model"])
    torch.manual_seed(0)
    (tmp_path / "generator.safetensors").write_bytes(save_generator(Generator(model, resolution=8, channels=3), ()))
    return str(tmp_path)


def test_sample_draws_the_same_seed_the_same_way_in_any_grid(tmp_path, untrained):
    for seeds, name in (("0-3", "four.png"), ("2", "one.png")):
        assert main(["sample", str(tmp_path), "--seeds", seeds, "--out", str(tmp_path / name)]) == 0
    four, one = Image.open(tmp_path / "four.png"), Image.open(tmp_path / "one.png")
    assert one.size == (64, 64)
    left, below = four.width - 2 * 67, four.height - 67
    assert list(four.crop((left, below, left + 64, below + 64)).getdata()) == list(one.getdata())
    assert main(["sample", str(tmp_path), "--label", "x"]) == 2


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "PNG"), ("x.JPG", "JPEG"), ("x.jpeg", "JPEG"), ("x.webp", "WEBP")]
)
def test_the_ending_of_a_picture_says_its_format(tmp_path, untrained, name, kind):
    assert main(["sample", untrained, "--seeds", "0-3", "--out", str(tmp_path / name)]) == 0
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.height) == (kind, 3 + 2 * 67)


def test_a_picture_on_standard_output_is_alone_there(untrained, tmp_path):
    for option in ([], ["--json"]):
        command = [sys.executable, "-m", "flows.cli.main", "sample", untrained, "--seeds", "0", "--out", "-", *option]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        assert Image.open(io.BytesIO(done.stdout)).size == (64, 64)
        assert done.stdout.endswith(b"IEND\xaeB`\x82")
        assert untrained.encode() in done.stderr


def test_sample_says_which_classes_of_many_it_has_drawn(capsys, tmp_path):
    """Classes are named by `--label`, which may be repeated, or counted by `--cols`."""
    import official_tf as tf

    (tmp_path / "official.pkl").write_bytes(tf.write(tf.arguments(8, 1, label_size=20)))
    imported(capsys, tmp_path / "official.pkl", tmp_path / "out")
    for options, says in (
        ([], "16 images of MODEL in OUT: the first 16 of 20 classes; --cols or --label draws others"),
        (["--cols", "3"], "3 images of MODEL in OUT: the first 3 of 20 classes; --cols or --label draws others"),
        (["--label", "19", "--label", "2"], "2 images of MODEL in OUT"),
        (["--cols", "20"], "20 images of MODEL in OUT"),
    ):
        out = str(tmp_path / "x.png")
        assert main(["sample", str(tmp_path / "out"), "--seeds", "0", "--out", out, *options]) == 0
        assert capsys.readouterr().out.strip().replace(out, "OUT").replace(str(tmp_path / "out"), "MODEL") == says
    assert "--cols" in fail(capsys, 2, "sample", str(tmp_path / "out"), "--cols", "1.5")


@pytest.mark.parametrize("psi", ["nan", "inf", "-inf", "1e308", "-10.5"])
def test_psi_must_be_a_number_of_sensible_size(capsys, untrained, tmp_path, psi):
    out = tmp_path / "x.png"
    assert "must be a number from -10 to 10" in fail(capsys, 2, "sample", untrained, f"--psi={psi}", "--out", str(out))
    assert not out.exists()


def test_a_grid_too_large_for_memory_is_refused(capsys, untrained, tmp_path, monkeypatch):
    from stylegan.verbs import sample

    out = str(tmp_path / "x.webp")
    monkeypatch.setattr(sample, "MOST_PIXELS", 64 * 64 * 4)
    assert "at most 4 fit" in fail(capsys, 2, "sample", untrained, "--seeds", "0-4", "--out", out)


def imported(capsys, source, out):
    """The record of an import that works."""
    assert main(["import-weights", str(source), "--out", str(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_import_weights_makes_a_model_for_every_verb(capsys, tmp_path):
    """Sampling takes the average Gs; G and D lie beside it; the same import again repairs what is missing."""
    import official_tf as tf
    from safetensors import safe_open

    from stylegan.networks.weights import load_generator

    given = tf.arguments(8, 1, label_size=3)
    (tmp_path / "official.pkl").write_bytes(tf.write(given))
    record = imported(capsys, tmp_path / "official.pkl", tmp_path / "out")
    assert (record["resolution"], record["channels"], record["num_labels"]) == (8, 1, 3)
    assert sorted([*record["files"], "import.json"]) == sorted(os.listdir(tmp_path / "out"))
    for name, seed in (("generator", 0), ("G", 10)):
        network, label_names = load_generator((tmp_path / "out" / f"{name}.safetensors").read_bytes())
        assert label_names == ("0", "1", "2")
        assert network.w_avg.tolist() == tf.generator_variables(given, seed)[""]["dlatent_avg"].tolist()
    with safe_open(tmp_path / "out" / "D.safetensors", "np") as file:
        assert json.loads(file.metadata()["stylegan.discriminator"])["num_labels"] == 3
    options = ["--seeds", "0-3", "--psi", "0.7", "--label", "2", "--out", str(tmp_path / "grid.png")]
    assert main(["sample", str(tmp_path / "out"), *options]) == 0
    capsys.readouterr()
    assert Image.open(tmp_path / "grid.png").height == 3 + 2 * 67
    (tmp_path / "out" / "generator.safetensors").unlink()
    assert imported(capsys, tmp_path / "official.pkl", tmp_path / "out") == record
    assert (tmp_path / "out" / "generator.safetensors").exists()


def test_import_weights_overwrites_nothing_else(capsys, tmp_path):
    import official_tf as tf

    for seed in (0, 1):
        (tmp_path / f"{seed}.pkl").write_bytes(tf.write(tf.arguments(8), seed=seed))
    imported(capsys, tmp_path / "0.pkl", tmp_path / "out")
    before = (tmp_path / "out" / "generator.safetensors").read_bytes()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "training.pt").write_bytes(b"mine")
    for target, says in (
        ("out", "holds something else"),
        ("checkpoint", "holds something else"),
        ("0.pkl", "is a file"),
    ):
        assert says in fail(capsys, 2, "import-weights", str(tmp_path / "1.pkl"), "--out", str(tmp_path / target))
    assert (tmp_path / "out" / "generator.safetensors").read_bytes() == before
    assert os.listdir(tmp_path / "checkpoint") == ["training.pt"]


def test_import_weights_of_what_is_none(capsys, tmp_path):
    """One line each, and no folder."""
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "text.pkl").write_text("<html>404 Not Found</html>")
    assert "gone.pkl: no such file" in fail(capsys, 2, "import-weights", str(tmp_path / "gone.pkl"), *out)
    line = fail(capsys, 1, "import-weights", str(tmp_path / "text.pkl"), *out)
    assert "text.pkl: these 26 bytes are not an official network pickle" in line
    assert "is a folder; give the path" in fail(capsys, 2, "import-weights", str(tmp_path), *out)
    assert "out" in fail(capsys, 2, "import-weights", str(tmp_path / "text.pkl"))
    assert not (tmp_path / "out").exists()


def test_weights_go_from_bucket_to_bucket(capsys, s3_server, tmp_path):
    import official_tf as tf

    bucket = s3_server()
    with fsspec.open(f"{bucket}/official.pkl", "wb") as file:
        file.write(tf.write(tf.arguments(8)))
    assert imported(capsys, f"{bucket}/official.pkl", f"{bucket}/imported")["uri"] == f"{bucket}/imported"
    assert main(["export", f"{bucket}/imported", "--out", f"{bucket}/exports/generator.safetensors", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    with (
        fsspec.open(record["path"], "rb") as exported,
        fsspec.open(f"{bucket}/imported/generator.safetensors", "rb") as original,
    ):
        assert exported.read() == original.read()
    with fsspec.open(f"{bucket}/other.pkl", "wb") as file:
        file.write(tf.write(tf.arguments(8), seed=1))
    assert "holds something else" in fail(
        capsys, 2, "import-weights", f"{bucket}/other.pkl", "--out", f"{bucket}/imported"
    )


def test_export_writes_the_sampled_generator(capsys, tmp_path):
    """The ONNX file draws the imported network's images, and its end decides on the format."""
    import numpy as np
    import official_tf as tf
    import onnxruntime

    given = tf.arguments(8)
    (tmp_path / "official.pkl").write_bytes(tf.write(given))
    imported(capsys, tmp_path / "official.pkl", tmp_path / "out")
    target = tmp_path / "exports" / "g.onnx"
    assert main(["export", str(tmp_path / "out"), "--out", str(target), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["format"], record["resolution"], record["num_bytes"]) == ("onnx", 8, target.stat().st_size)
    assert record["max_difference"] <= 1e-4
    z = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    (images,) = onnxruntime.InferenceSession(target).run(None, {"z": z, "psi": np.array(0.7, np.float32)})
    np.testing.assert_allclose(
        images, tf.generate(given, tf.generator_variables(given), z, psi=0.7), rtol=1e-4, atol=1e-4
    )
    assert "g.pt: must end in .safetensors or .onnx" in fail(
        capsys, 2, "export", str(tmp_path / "out"), "--out", "g.pt"
    )
    assert "no such model" in fail(capsys, 2, "export", str(tmp_path / "exports"), "--out", str(target))
