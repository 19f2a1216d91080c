"""The registered generator, as MLflow loads it."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from resnets import write_resnet

import stylegan
from stylegan.config.sections import ModelConfig
from stylegan.images import quantise
from stylegan.networks.generator import Generator, random_noise
from stylegan.networks.weights import load_generator
from stylegan.registry import versions as store
from stylegan.registry.pyfunc import GeneratorModel
from stylegan.tracking.connection import connect, resolve_uri

LABELS = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def registered(tmp_path_factory, empty_database, tiny_config, write_checkpoint, make_report, shards):
    """An unconditional model, a conditional one and a resnet, registered in the embedded MLflow of one folder.

    Returns their configs by name.
    """
    root = tmp_path_factory.mktemp("pyfunc")
    shutil.copy(empty_database, root / "mlflow.db")
    configs = {}
    for name, label_names in (("plain", ()), ("classes", LABELS), ("resnet", LABELS)):
        config = configs[name] = tiny_config(root, name=name)
        client = connect(resolve_uri(config))
        experiment = client.get_experiment_by_name("x")
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment("x", artifact_location=f"{root}/mlartifacts")
        )
        run_id = client.create_run(experiment_id).info.run_id
        folder = root / name / "checkpoint-000001000"
        is_resnet = name == "resnet"
        checkpoint = (
            write_resnet(folder, *label_names) if is_resnet else write_checkpoint(folder, label_names=label_names)
        )
        store.register(
            config, mlflow_run_id=run_id, checkpoint=checkpoint, shards=shards, report=make_report(), key=name
        )
    return configs


def load(config):
    version = connect(resolve_uri(config)).get_model_version_by_alias(config.model_name, "challenger")
    return mlflow.pyfunc.load_model(version.source)


@pytest.fixture(scope="module")
def plain(registered):
    return load(registered["plain"])


@pytest.fixture(scope="module")
def classes(registered):
    return load(registered["classes"])


def weights_of(config):
    uri = store.load_version(resolve_uri(config), f"models:/{config.model_name}@challenger")[0]
    return load_generator(Path(uri, "generator.safetensors").read_bytes())[0]


def test_an_image_is_what_the_generator_draws_for_that_seed(plain, registered):
    """z from the row's seed, noise from noise_seed, the metrics' cast to eight bits, channels last."""
    z = torch.randn(6, generator=torch.Generator().manual_seed(7))[None]
    noise = random_noise(torch.Generator().manual_seed(0), torch.device("cpu"))
    with torch.no_grad():
        expected = quantise(weights_of(registered["plain"])(z, noise=noise))[0].permute(1, 2, 0).numpy()
    images = plain.predict(pd.DataFrame({"seed": [7]}))
    assert images.shape == (1, 8, 8, 1)
    assert images.dtype == np.uint8
    assert images.std() > 1
    np.testing.assert_array_equal(images[0], expected)


def test_a_row_gives_the_same_image_in_any_batch(plain):
    together = plain.predict(pd.DataFrame({"seed": [3, 1, 4, 1]}))
    np.testing.assert_array_equal(together[1], together[3])
    assert (together[0] != together[1]).any()
    for seed, image in zip([3, 1, 4], together, strict=False):
        np.testing.assert_array_equal(plain.predict(pd.DataFrame({"seed": [seed]}))[0], image)


def test_z_is_taken_as_it_is_and_wins_over_the_seed(plain):
    z = torch.randn(6, generator=torch.Generator().manual_seed(5)).tolist()
    drawn = plain.predict(pd.DataFrame({"seed": [5]}))
    np.testing.assert_array_equal(plain.predict(pd.DataFrame({"z": [z]})), drawn)
    np.testing.assert_array_equal(
        plain.predict(pd.DataFrame({"z": [z, None], "seed": [9, 5]})), np.concatenate([drawn, drawn])
    )


def test_truncation_and_noise_follow_the_parameters(plain):
    rows = pd.DataFrame({"seed": [1, 2]})
    default = plain.predict(rows)
    np.testing.assert_array_equal(plain.predict(rows, params={"truncation_psi": 1.0}), default)
    assert (plain.predict(rows, params={"truncation_psi": 0.5}) != default).any()
    np.testing.assert_array_equal(plain.predict(rows, params={"truncation_psi": 0.5, "truncation_cutoff": 0}), default)
    assert (plain.predict(rows, params={"noise_seed": 1}) != default).any()
    both = plain.predict(rows, params={"truncation_psi": 0.0, "truncation_cutoff": 99})
    np.testing.assert_array_equal(both[0], both[1])  # everything at the mean, the same noise


def test_the_label_chooses_the_class(classes):
    images = classes.predict(pd.DataFrame({"seed": [1, 1, 1], "label": [0, 1, 0]}))
    np.testing.assert_array_equal(images[0], images[2])
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize(
    ("model", "rows", "message"),
    [
        ("plain", {"z": [[0.0] * 6, None]}, "row 1: has neither `seed` nor `z`"),
        ("plain", {"z": [[0.0] * 5]}, "row 0: z has shape [5]; it must be 6 finite numbers"),
        ("plain", {"z": [[0.0] * 5 + [float("nan")]]}, "must be 6 finite numbers"),
        ("plain", {"seed": [1], "label": [0]}, "has no classes; leave `label` out"),
        ("plain", {"other": [1]}, "no row with `seed` or `z`"),
        ("classes", {"seed": [1]}, "row 0: label is missing; this generator's classes are 0 (cat), 1 (dog), 2 (owl)"),
        (
            "classes",
            {"seed": [1, 1], "label": [2, 3]},
            "row 1: label 3; this generator's classes are 0 (cat), 1 (dog), 2 (owl)",
        ),
        ("classes", {"seed": [1], "label": [-1]}, "row 0: label -1"),
    ],
)
def test_a_row_that_cannot_be_drawn_is_named(model, rows, message, request):
    with pytest.raises(MlflowException) as caught:
        request.getfixturevalue(model).predict(pd.DataFrame(rows))
    assert message in str(caught.value)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"  # MLflow's server answers 400


def test_the_signature_tells_shapes_and_parameters(plain):
    schema = plain.metadata.signature
    assert schema.inputs.input_names() == ["seed", "z", "label"]
    assert schema.outputs.inputs[0].shape == (-1, 8, 8, 1)
    assert {param.name: param.default for param in schema.params} == {
        "truncation_psi": 1.0,
        "truncation_cutoff": 8,
        "noise_seed": 0,
        "encoding": "array",
    }


def test_a_resnet_has_no_parameters_of_truncation_and_noise(registered):
    model = load(registered["resnet"])
    assert {param.name: param.default for param in model.metadata.signature.params} == {"encoding": "array"}
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 32, 32, 3)
    images = model.predict(pd.DataFrame({"seed": [7, 8, 7], "label": [0, 0, 2]}))
    generator = weights_of(registered["resnet"])
    for image, seed, label in zip(images, (7, 8, 7), (0, 0, 2), strict=True):
        z = torch.randn(8, generator=torch.Generator().manual_seed(seed))[None]
        with torch.no_grad():
            expected = quantise(generator(z, torch.tensor([label])))[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image, expected)
    assert images.std(0).mean() > 1
    with pytest.raises(MlflowException, match=r"truncation_psi=0.7: this generator has no w to truncate"):
        model.unwrap_python_model().predict(None, pd.DataFrame({"seed": [7], "label": [0]}), {"truncation_psi": 0.7})


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels_of_the_array(channels):
    torch.manual_seed(0)
    model = GeneratorModel()
    model.generator, model.classes, model.device = small(8, channels), (), torch.device("cpu")
    rows = pd.DataFrame({"seed": [7, 8]})
    arrays = model.predict(None, rows, {"noise_seed": 3})
    texts = model.predict(None, rows, {"noise_seed": 3, "encoding": "png"})
    for array, text in zip(arrays, texts, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.array(picture).reshape(8, 8, channels), array)


def test_another_encoding_is_refused(plain):
    with pytest.raises(MlflowException, match="encoding=jpeg: must be array or png"):
        plain.predict(pd.DataFrame({"seed": [7]}), params={"encoding": "jpeg"})


def test_the_registered_model_answers_with_pngs(plain):
    rows = pd.DataFrame({"seed": [7]})
    (text,) = plain.predict(rows, params={"encoding": "png"})
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(text))))
    np.testing.assert_array_equal(pixels, plain.predict(rows)[0, :, :, 0])


def test_a_png_of_1024x1024_takes_less_than_2_mb():
    """The image has colour, structure of all scales and noise. As numbers it takes five times as much, at least."""
    torch.manual_seed(0)
    model = GeneratorModel()
    model.generator, model.classes, model.device = small(1024, 3, noise=0.02), (), torch.device("cpu")
    rows = pd.DataFrame({"seed": [7]})
    (text,) = model.predict(None, rows, {"encoding": "png"})
    array = model.predict(None, rows)
    assert len(np.unique(array)) > 200
    assert 200_000 < len(text) < 2e6
    assert len(json.dumps(array.tolist())) > 5 * len(text)


def small(resolution, channels, noise=0.5):
    """Return a generator with random weights and few features."""
    model = ModelConfig(latent_size=6, mapping_layers=2, mapping_fmaps=8, fmap_base=64, fmap_max=8)
    generator = Generator(model, resolution=resolution, channels=channels).eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if "noise_weight" in name:
            parameter.fill_(noise)
    return generator


@pytest.fixture
def global_uri():
    """Sets MLflow's global tracking URI, as notebooks do, until the end of the test."""
    yield mlflow.set_tracking_uri
    mlflow.set_tracking_uri(None)


def test_the_snippet_of_the_readme_draws_images(registered, global_uri):
    config = registered["classes"]
    connect(resolve_uri(config)).set_registered_model_alias("classes", "champion", "1")
    global_uri(resolve_uri(config))
    model = mlflow.pyfunc.load_model("models:/classes@champion")
    images = model.predict(pd.DataFrame({"seed": [0, 1, 2], "label": [1, 1, 0]}), params={"truncation_psi": 0.7})
    assert (images.shape, images.dtype) == ((3, 8, 8, 1), np.uint8)
    assert (images[0] != images[1]).any()


FRESH = """
import json, sys
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", str(finder))]
sys.path = [entry for entry in sys.path if entry not in ("", sys.argv[1])]
import importlib.util
assert importlib.util.find_spec("stylegan") is None, "the project is importable"
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[2])
images = mlflow.pyfunc.load_model("models:/plain@challenger").predict(pandas.DataFrame({"seed": [7]}))
import stylegan
print(json.dumps({"images": images.tolist(), "file": stylegan.__file__, "engines": [m for m in ("ray", "prefect") if m in sys.modules]}))
"""


def test_a_process_without_the_project_loads_the_model_by_its_alias(registered, plain, tmp_path):
    """The model brings its own copy of the package, and asks for neither Ray nor Prefect."""
    project = str(Path(stylegan.__file__).parents[1])
    uri = resolve_uri(registered["plain"])
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, project, uri],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert "mlartifacts" in answer["file"]
    assert answer["engines"] == []
    np.testing.assert_array_equal(answer["images"], plain.predict(pd.DataFrame({"seed": [7]})))
    assert list(tmp_path.iterdir()) == []
