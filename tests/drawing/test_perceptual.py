"""Which network compares the images of a model, and what is said where that cannot be known."""

import json
from pathlib import Path

import pytest
import torch
from public_weights import file_bytes, lpips_state, vgg16_state
from safetensors.torch import save

from stylegan.config.file import build
from stylegan.config.sections import ModelConfig
from stylegan.drawing.perceptual import perceptual_distance
from stylegan.errors import ConfigError
from stylegan.evaluation.features import public_weights
from stylegan.evaluation.features.embedded import METADATA, FeatureFacts
from stylegan.networks.classifier import Classifier
from stylegan.networks.generator import Generator

MODEL = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)


def generator(resolution: int = 8, channels: int = 1) -> Generator:
    return Generator(MODEL, resolution=resolution, channels=channels)


def write_network(folder: Path, name: str, *, kind: str = "classifier", resolution: int = 8, seed: int = 0) -> Path:
    """Write an untrained feature network."""
    torch.manual_seed(seed)
    network = Classifier(resolution=resolution, channels=1, num_classes=2)
    facts = FeatureFacts(
        kind=kind, resolution=resolution, channels=1, label_names=("a", "b"), accuracy=1, dataset_fingerprint=""
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(save(network.state_dict(), {METADATA: facts.model_dump_json()}))
    return folder / name


def write_run(root: Path, features: str, networks: dict[str, str]) -> str:
    """Write the report of a run."""
    run = root / "runs" / "tiny-0123456789"
    run.mkdir(parents=True)
    record = {
        "protocol": "",
        "dataset_fingerprint": "",
        "checkpoint_uri": "",
        "metrics": {},
        "settings": {"features": features, "networks": networks},
    }
    (run / "report.json").write_text(json.dumps(record))
    return str(run)


def sha256(path: Path) -> str:
    from hashlib import sha256

    return sha256(path.read_bytes()).hexdigest()


def test_a_run_is_compared_by_the_network_that_evaluated_it(tmp_path: Path) -> None:
    """Of several networks below the root, the one of the report's digest; a damaged file beside it is passed over."""
    write_network(tmp_path / "features", "classifier-0.safetensors", seed=1)
    own = write_network(tmp_path / "features", "classifier-1.safetensors", seed=2)
    (tmp_path / "features" / "classifier-2.safetensors").write_bytes(b"none")
    run = write_run(tmp_path, "classifier", {"classifier": sha256(own)})
    distance = perceptual_distance(generator(), run)
    assert distance.network.uris == (str(own),)
    a = torch.rand(3, 1, 8, 8, requires_grad=True)
    far = distance(a, torch.rand(3, 1, 8, 8))
    (gradient,) = torch.autograd.grad(far.sum(), a)
    assert (far.shape, bool((gradient != 0).any())) == ((3,), True)
    own.unlink()
    with pytest.raises(
        ConfigError, match=r"the network that it was evaluated with .* is not in .*features; give --features"
    ):
        perceptual_distance(generator(), run)


def test_another_network_may_be_given(tmp_path: Path) -> None:
    own = write_network(tmp_path, "rotation-0.safetensors", kind="rotation")
    assert perceptual_distance(generator(), None, features=str(own)).network.name == "rotation"
    with pytest.raises(ConfigError, match=r"^--features none: there is no such file"):
        perceptual_distance(generator(), None, features="none")


@pytest.mark.parametrize(("resolution", "channels"), [(16, 1), (8, 3)])
def test_a_network_for_other_images_is_refused(tmp_path: Path, resolution: int, channels: int) -> None:
    own = write_network(tmp_path, "rotation-0.safetensors", kind="rotation")
    with pytest.raises(
        ConfigError, match=rf"compares images of 8x8 .* makes {resolution}x{resolution} with {channels};"
    ):
        perceptual_distance(generator(resolution, channels), None, features=str(own))


def test_a_checkpoint_without_a_run_takes_the_only_network_of_the_config(tmp_path: Path) -> None:
    tree = {
        "name": "tiny",
        "storage": {"root": str(tmp_path)},
        "data": {"source": "digits", "resolution": 8, "channels": 1},
    }
    config = build(tree)
    with pytest.raises(ConfigError, match="has 0 classifier networks for images of 8x8 with 1 channel"):
        perceptual_distance(generator(), None, config=config)
    own = write_network(tmp_path / "features", "classifier-0.safetensors")
    write_network(tmp_path / "features", "classifier-1.safetensors", resolution=16)
    assert perceptual_distance(generator(), None, config=config).network.uris == (str(own),)
    write_network(tmp_path / "features", "classifier-2.safetensors", seed=1)
    with pytest.raises(ConfigError, match=r"has 2 classifier networks \(classifier-0.safetensors, classifier-2"):
        perceptual_distance(generator(), None, config=config)


def test_a_run_that_is_not_evaluated_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not evaluated yet, which names the network"):
        perceptual_distance(generator(), str(tmp_path))


def test_lpips_compares_where_its_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are enlarged to what VGG16 can halve; without weights and a hint, nothing large is downloaded."""
    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"the weights vgg16, lpips of LPIPS are not in .*weights; give --features URI"
    ):
        perceptual_distance(generator(), None)
    (tmp_path / "weights").mkdir()
    known = {}
    for name, state in (("vgg16", vgg16_state()), ("lpips", lpips_state())):
        content, file = file_bytes(state), public_weights.KNOWN[name]
        (tmp_path / "weights" / file.name).write_bytes(content)
        digest = sha256(tmp_path / "weights" / file.name)
        known[name] = public_weights.WeightFile(file.name, file.url, digest, len(content))
    monkeypatch.setattr(public_weights, "KNOWN", dict(public_weights.KNOWN) | known)
    run = write_run(tmp_path / "data", "inception", {})
    for found in (perceptual_distance(generator(), None), perceptual_distance(generator(), run)):
        assert found.network.name == "lpips"
        a = torch.rand(2, 1, 8, 8, requires_grad=True)
        far = found(a, torch.rand(2, 1, 8, 8))
        (gradient,) = torch.autograd.grad(far.sum(), a)
        assert (far > 0).all()
        assert gradient.isfinite().all()
