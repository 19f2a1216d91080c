"""Embedded feature networks: training, storage, loading, and their measurements."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.loading.loader import load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.features.embedded import (
    FeatureNet,
    check_embedded,
    load_features,
    obtain_features,
    one_versus_rest,
)
from stylegan.images import to_float


def settings(features: str, seed: int = 0) -> EvaluationConfig:
    """Return settings with these features."""
    return EvaluationConfig(features=features, seed=seed)


def no_workers(_function: Any, _items: Iterable[Any]) -> Any:
    """Fail, because nothing should be trained."""
    raise AssertionError("nothing should be trained")


@pytest.fixture(scope="module")
def net(shards: ShardSet, root: str) -> FeatureNet:
    """Return the classifier of the shards."""
    return obtain_features(settings("classifier"), shards, root=root)


@pytest.fixture(scope="module")
def images(shards: ShardSet) -> torch.Tensor:
    """Return all 120 images, in [-1, 1]."""
    return to_float(torch.tensor(load_images(shards, 8).images))


def test_a_classifier_learns_the_classes(net: FeatureNet, images: torch.Tensor, shards: ShardSet) -> None:
    assert (net.name, net.facts.label_names) == ("classifier", ("left", "right"))
    assert net.facts.accuracy >= 0.9
    posteriors = net.recognise(images)[1].exp()
    torch.testing.assert_close(posteriors.sum(dim=1), torch.ones(120))
    right = posteriors.argmax(dim=1) == torch.from_numpy(load_images(shards, 8).labels)
    assert right.float().mean() > 0.95


def test_rotations_are_learnt_without_labels(unlabelled: ShardSet, root: str) -> None:
    net = obtain_features(settings("rotation"), unlabelled, root=root)
    assert (net.name, net.facts.label_names) == ("rotation", ("0", "90", "180", "270"))
    assert net.facts.accuracy >= 0.75
    upright = to_float(torch.tensor(load_images(unlabelled, 8).images[:40]))
    for quarter in range(4):
        recognised = net.recognise(torch.rot90(upright, quarter, (2, 3)))[1].argmax(dim=1)
        assert (recognised == quarter).float().mean() > 0.75


def test_a_network_is_trained_once_per_data_set(net: FeatureNet, shards: ShardSet, root: str) -> None:
    again = obtain_features(settings("classifier"), shards, root=root, pmap=no_workers)
    assert (again.uri, again.sha256) == (net.uri, net.sha256)
    assert net.uri.startswith(f"{root}/features/classifier-")


def test_every_resolution_has_a_network_of_its_own(net: FeatureNet, shards: ShardSet, root: str) -> None:
    small = obtain_features(settings("classifier"), shards.up_to(4), root=root)
    assert small.network.resolution == 4
    assert small.uri != net.uri


def test_training_again_gives_the_same_bytes_and_shows_the_accuracy(
    net: FeatureNet, shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training neither depends on the global random state nor changes it."""
    torch.rand(3)
    before = torch.get_rng_state()
    with caplog.at_level(logging.INFO, "stylegan"):
        again = obtain_features(settings("classifier"), shards, root=str(tmp_path))
    assert torch.equal(before, torch.get_rng_state())
    assert again.sha256 == net.sha256
    assert f"{net.facts.accuracy:.1%} of the held-out images are classified correctly" in caplog.text


def test_distance_to_itself_is_zero_and_symmetric(net: FeatureNet, images: torch.Tensor) -> None:
    a, b = images[:8], images[8:16]
    assert net.distance(a, a).abs().max() == 0
    assert (net.distance(a, b) > 1e-3).all()
    torch.testing.assert_close(net.distance(a, b), net.distance(b, a))


def test_distance_is_the_sum_over_maps_of_mean_squared_unit_differences(net: FeatureNet, images: torch.Tensor) -> None:
    expected = 0.0
    for x, y in zip(net.network.maps(images[:1]), net.network.maps(images[1:2]), strict=True):
        pixels = [(x[0, :, i, j], y[0, :, i, j]) for i in range(x.shape[2]) for j in range(x.shape[3])]
        expected += sum(float((p / p.norm() - q / q.norm()).square().sum()) for p, q in pixels) / len(pixels)
    assert float(net.distance(images[:1], images[1:2])) == pytest.approx(expected, rel=1e-4)


def test_a_network_given_by_uri_keeps_its_kind(net: FeatureNet, unlabelled: ShardSet, root: str) -> None:
    found = obtain_features(settings(net.uri), unlabelled, root=root, pmap=no_workers)
    assert (found.name, found.sha256) == ("classifier", net.sha256)


def test_a_relative_uri_becomes_absolute(
    net: FeatureNet, shards: ShardSet, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have other working directories."""
    storage.write_bytes(f"{tmp_path}/here/net.safetensors", storage.read_bytes(net.uri))
    monkeypatch.chdir(tmp_path / "here")
    for given in ("net.safetensors", "../here/net.safetensors", f"file://{tmp_path}/here/net.safetensors"):
        check_embedded(settings(given), labelled=True)
        assert obtain_features(settings(given), shards, root=root).uri == f"{tmp_path}/here/net.safetensors"


def test_a_classifier_without_labels_names_the_key_and_the_cure() -> None:
    check_embedded(settings("classifier"), labelled=True)
    check_embedded(settings("rotation"), labelled=False)
    with pytest.raises(
        ConfigError, match=r"evaluation.features=classifier: needs class labels.*evaluation.features=rotation.*URI"
    ):
        check_embedded(settings("classifier"), labelled=False)


def test_attributes_are_log_odds_of_the_classes(net: FeatureNet, images: torch.Tensor) -> None:
    log_posteriors = net.recognise(images)[1].double()
    torch.testing.assert_close(net.attributes(images).double(), torch.logit(log_posteriors.exp()), rtol=1e-3, atol=1e-3)


def test_log_odds_of_a_sure_answer_are_not_infinite() -> None:
    """In float32 1 - p is 0 here, but the sum over the other classes is not 0."""
    logits = torch.tensor([[40.0, 0.0, 0.0], [1.0, 1.0, -50.0]])
    odds = one_versus_rest(torch.log_softmax(logits, dim=1))
    torch.testing.assert_close(odds[0], torch.tensor([40 - math.log(2), -40.0, -40.0]))
    torch.testing.assert_close(odds[1], torch.tensor([0.0, 0.0, -51 - math.log(2)]), rtol=1e-5, atol=1e-5)


def test_a_uri_without_a_file_is_refused_before_anything_trains(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"evaluation.features=clasifier: there is no such file; use classifier, rotation, inception, or",
    ):
        check_embedded(settings("clasifier"), labelled=True)
    with pytest.raises(ConfigError, match="there is no such file"):
        check_embedded(settings(f"{tmp_path}/none.safetensors"), labelled=True)


@pytest.mark.parametrize("content", [b"", b"nonsense", safetensors.torch.save({"x": torch.zeros(2)})])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    uri = f"{tmp_path}/other.safetensors"
    storage.write_bytes(uri, content)
    with pytest.raises(ConfigError, match="is not a feature network of this version") as caught:
        check_embedded(settings(uri), labelled=True)
    assert "\n" not in str(caught.value)


def test_a_damaged_network_is_refused(net: FeatureNet, tmp_path: Path) -> None:
    uri = f"{tmp_path}/cut.safetensors"
    storage.write_bytes(uri, storage.read_bytes(net.uri)[:-100])
    with pytest.raises(ConfigError, match="is not a feature network"):
        load_features(uri)


def test_a_lack_of_memory_is_no_damage(net: FeatureNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_data: bytes) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(safetensors.torch, "load", fail)
    with pytest.raises(MemoryError, match="full"):
        load_features(net.uri)


def test_our_own_network_is_trained_anew_after_the_damaged_file_is_deleted(
    shards: ShardSet, net: FeatureNet, root: str
) -> None:
    """It is not the user's file, so the cure is not another setting."""
    whole = storage.read_bytes(net.uri)
    for content in (b"", b"{}", whole[:-100]):
        storage.write_bytes(net.uri, content)
        with pytest.raises(
            StepError, match=rf"^{net.uri}: is not a feature network [^\n]+; delete it and run the same"
        ):
            obtain_features(settings(net.facts.kind), shards, root=root)
    storage.write_bytes(net.uri, whole)


def test_a_network_for_other_images_is_refused(net: FeatureNet, shards: ShardSet, root: str) -> None:
    small = shards.model_copy(update={"resolutions": (4,)})
    with pytest.raises(ConfigError, match="measures 8x8 grey images, the data set has 4x4 grey"):
        obtain_features(settings(net.uri), small, root=root)


def test_one_class_is_nothing_to_learn(shards: ShardSet, root: str) -> None:
    single = shards.model_copy(update={"label_names": ("only",), "fingerprint": "single"})
    with pytest.raises(
        ConfigError, match=r"only the class 'only', at least 2 are needed; set evaluation\.features=rotation"
    ):
        obtain_features(settings("classifier"), single, root=root)


def test_a_handful_of_images_is_too_few(shards: ShardSet, root: str) -> None:
    few = shards.model_copy(update={"num_images": 9, "fingerprint": "few"})
    with pytest.raises(StepError, match=r"9 images are too few to train evaluation\.features=rotation; at least 10"):
        obtain_features(settings("rotation"), few, root=root)
