"""The exported graph computes the generator's images for any batch, and is refused if it does not."""

import logging
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from resnets import make_resnet

from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.generator import Generator
from stylegan.networks.onnx import _compare_with_torch, _TensorOnlyGenerator, to_onnx

SMALL = {"latent_size": 8, "mapping_fmaps": 8, "mapping_layers": 2, "fmap_max": 4, "fmap_base": 64}
TRADITIONAL = {"styles": False, "const_input": False, "noise": False, "pixel_norm": True, "instance_norm": False}
CASES = {
    "grey, 3 classes": ({}, 16, 1, 3),
    "fused": ({"fmap_base": 256}, 128, 3, 0),
    "traditional": (TRADITIONAL, 8, 3, 0),
    "4x4": ({}, 4, 3, 0),
}


def make(case: str, seed: int = 0) -> Generator:
    """Make a generator in which every input of every layer matters."""
    switches, resolution, channels, num_labels = CASES[case]
    torch.manual_seed(seed)
    model = ModelConfig(**(SMALL | switches))
    generator = Generator(model, resolution=resolution, channels=channels, num_labels=num_labels)
    generator.w_avg += torch.randn(8)
    for name, parameter in generator.named_parameters():
        if name.endswith(("bias", "noise_weight", "const")):
            parameter.data += torch.randn_like(parameter) / 2
    return generator.eval().requires_grad_(False)


def draw(session: onnxruntime.InferenceSession, z: torch.Tensor, labels: torch.Tensor | None, psi: float) -> np.ndarray:
    """Compute images with onnxruntime."""
    feed = {"z": z.numpy(), "psi": np.array(psi, np.float32)} | ({} if labels is None else {"labels": labels.numpy()})
    return session.run(None, feed)[0]


@pytest.mark.parametrize("case", CASES)
def test_onnx_draws_what_torch_draws(case: str) -> None:
    """Check images with and without truncation in batches of any size, and the names and sizes of inputs and outputs.

    The file contains standard operators only.
    """
    generator = make(case)
    names = [f"class {i}" for i in range(generator.num_labels)]
    file = to_onnx(generator, names)
    assert file.max_difference <= 1e-4

    # Standard operators only.
    model = onnx.load_from_string(file.data)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", file.opset)]
    assert not model.functions

    # Names and sizes.
    session = onnxruntime.InferenceSession(file.data, providers=["CPUExecutionProvider"])
    inputs = {value.name: (value.shape, value.type) for value in session.get_inputs()}
    assert inputs.pop("labels", None) == ((["N"], "tensor(int64)") if names else None)
    assert inputs == {"z": (["N", 8], "tensor(float)"), "psi": ([], "tensor(float)")}
    side = generator.resolution
    assert [(out.name, out.shape) for out in session.get_outputs()] == [
        ("images", ["N", generator.channels, side, side])
    ]
    assert session.get_modelmeta().custom_metadata_map["label_names"] == str(names).replace("'", '"')

    # Images.
    for n, psi in ((1, 1.0), (2, 0.5), (5, 0.0), (3, -0.7)):
        z, labels = torch.randn(n, 8), torch.arange(n).flip(0) % len(names) if names else None
        expected = generator(z, labels, truncation_psi=psi).numpy()
        images = draw(session, z, labels, psi)
        np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-4)
        assert np.array_equal(images, draw(session, z, labels, psi))


@pytest.mark.parametrize("num_labels", [0, 3])
def test_the_file_of_a_resnet_has_no_psi(num_labels: int, caplog: pytest.LogCaptureFixture) -> None:
    generator = make_resnet(num_labels)
    names = [f"class {i}" for i in range(num_labels)]
    file = to_onnx(generator, names)
    assert file.max_difference <= 1e-4
    assert not [
        one for one in caplog.records if one.levelno >= logging.WARNING
    ]  # what the exporter says of its internals
    model = onnx.load_from_string(file.data)
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(file.data, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["z", *(["labels"] if names else [])]
    for n in (1, 5):
        z, labels = torch.randn(n, 8), torch.arange(n).flip(0) % num_labels if names else None
        feed = {"z": z.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        np.testing.assert_allclose(session.run(None, feed)[0], generator(z, labels).numpy(), rtol=1e-4, atol=1e-4)


def test_exporting_leaves_the_generator_as_it_was() -> None:
    """Check that weights and images are the same before and after, and that no random number is drawn."""
    generator, z = make("4x4"), torch.randn(2, 8)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    images, state = generator(z), torch.get_rng_state()
    to_onnx(generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert before.keys() == generator.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert torch.equal(generator(z), images)


def test_a_file_that_draws_other_images_is_refused() -> None:
    """Check that comparing the file of another generator with this one raises."""
    file = to_onnx(make("4x4", seed=1))
    with pytest.raises(
        StepError, match=r"^ONNX: onnxruntime's images differ from torch's by [^\n]*more than 0.0001[^\n]*$"
    ):
        _compare_with_torch(file.data, _TensorOnlyGenerator(make("4x4")), onnxruntime)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # makes the import fail as if the package were not installed
    with pytest.raises(StepError, match=rf"^ONNX needs [^\n]*{package}[^\n]*pip install 'stylegan-pipeline\[onnx\]'`$"):
        to_onnx(make("4x4"))
