"""The network of each role, embedded or published; published networks have random weights in their file layout."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from public_weights import file_bytes, inception_state, lpips_state, vgg16_state

from stylegan import storage
from stylegan.config.sections import METRICS, EvaluationConfig, WeightsConfig
from stylegan.data.loading.loader import load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.engine import evaluate
from stylegan.evaluation.features import attributes as attributes_module
from stylegan.evaluation.features import spaces as spaces_module
from stylegan.evaluation.features.attributes import AttributeNet
from stylegan.evaluation.features.embedded import obtain_features
from stylegan.evaluation.features.spaces import (
    Network,
    check_features,
    manifold_features,
    obtain_spaces,
    open_network,
    recognise,
)
from stylegan.evaluation.generate import REALS, SampleChunk, Subject
from stylegan.evaluation.work import measure_chunk
from stylegan.images import to_float
from stylegan.networks.inception import InceptionV3
from stylegan.networks.vgg import LPIPS, VGG16

EVERYTHING = EvaluationConfig(metrics=METRICS)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> WeightsConfig:
    """Return URIs of files in the published layouts, with their digests, because they are not the public files."""
    folder, uris = tmp_path_factory.mktemp("weights"), {}
    for kind, state in (("inception", inception_state()), ("vgg16", vgg16_state()), ("lpips", lpips_state())):
        data = file_bytes(state)
        (folder / f"{kind}.pth").write_bytes(data)
        uris[kind] = f"{folder}/{kind}.pth#sha256={hashlib.sha256(data).hexdigest()}"
    return WeightsConfig(**uris)


@pytest.fixture
def inception(published: WeightsConfig, monkeypatch: pytest.MonkeyPatch) -> EvaluationConfig:
    """Return settings for the published networks, and for attribute classifiers that train on 8 images."""
    monkeypatch.setattr(attributes_module, "MODEL", attributes_module.MODEL.model_copy(update={"fmap_max": 8}))
    return EvaluationConfig(features="inception", weights=published, attributes_kimg=0.008)


def asked(evaluation: EvaluationConfig, *metrics: str) -> EvaluationConfig:
    """Return the settings with these metrics only."""
    return evaluation.model_copy(update={"metrics": metrics})


def test_the_embedded_network_serves_every_role(shards: ShardSet, root: str) -> None:
    spaces = obtain_spaces(EVERYTHING, shards, root=root)
    net = obtain_features(EVERYTHING, shards, root=root)
    assert {role: (network.name, network.sha256) for role, network in spaces.networks.items()} == dict.fromkeys(
        ("pooled", "manifold", "distance", "attributes", "style"), ("classifier", net.sha256)
    )
    assert spaces.attribute_names == ("left", "right")
    assert spaces.facts == {"classifier_accuracy": net.facts.accuracy}
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    torch.testing.assert_close(recognise(spaces, images, "cpu"), net.recognise(images))
    torch.testing.assert_close(manifold_features(spaces, images, "cpu"), net.recognise(images)[0])


def test_published_networks_have_their_own_names_and_digests(
    inception: EvaluationConfig, shards: ShardSet, root: str
) -> None:
    spaces = obtain_spaces(asked(inception, *METRICS), shards, root=root)
    assert {role: network.name for role, network in spaces.networks.items()} == {
        "pooled": "inception",
        "manifold": "vgg16",
        "distance": "lpips",
        "attributes": "attributes",
        "style": "vgg16",
    }
    assert spaces["pooled"].sha256 == str(inception.weights.inception).partition("=")[2]
    assert len({network.sha256 for network in spaces.networks.values()}) == 4
    assert spaces["style"].sha256 == spaces["manifold"].sha256
    assert (spaces["pooled"].num_features, spaces["manifold"].num_features) == (2048, 4096)
    kinds = {role: type(open_network(network, "cpu")) for role, network in spaces.networks.items()}
    assert kinds == {
        "pooled": InceptionV3, "manifold": VGG16, "distance": LPIPS, "attributes": AttributeNet, "style": VGG16,
    }  # fmt: skip


def test_workers_find_the_weights_below_the_root(inception: EvaluationConfig, shards: ShardSet, root: str) -> None:
    """Workers need neither the internet nor this machine's cache."""
    spaces = obtain_spaces(asked(inception, "fid"), shards, root=root)
    assert list(spaces.networks) == ["pooled"]
    (uri,) = spaces["pooled"].uris
    assert uri == f"{root}/features/inception-{spaces['pooled'].sha256[:10]}.pth"
    assert hashlib.sha256(storage.read_bytes(uri)).hexdigest() == spaces["pooled"].sha256


def test_a_copy_of_public_weights_is_checked_once_and_made_anew_if_damaged_or_gone(
    inception: EvaluationConfig,
    shards: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The files are large, and quick metrics ask for them again at every mark."""
    monkeypatch.setattr(spaces_module, "_INTACT", set())
    asked_for = asked(inception, "fid")
    (uri,) = obtain_spaces(asked_for, shards, root=str(tmp_path))["pooled"].uris
    whole, read, reads = storage.read_bytes(uri), storage.read_bytes, list[str]()

    def obtain() -> int:
        """Obtain the network again, and return how often the copy was read."""
        reads.clear()
        obtain_spaces(asked_for, shards, root=str(tmp_path))
        assert read(uri) == whole
        return reads.count(uri)

    monkeypatch.setattr(storage, "read_bytes", lambda uri: (reads.append(uri), read(uri))[1])
    assert obtain() == 0  # this process has written it
    storage.delete(uri)
    assert obtain() == 0
    monkeypatch.setattr(spaces_module, "_INTACT", set())  # another process
    assert (obtain(), obtain()) == (1, 0)
    monkeypatch.setattr(spaces_module, "_INTACT", set())
    storage.write_bytes(uri, whole[:-1])
    assert obtain() == 1
    assert f"{uri}: is damaged (its SHA-256 is " in caplog.text


def test_a_network_is_read_once(shards: ShardSet, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = obtain_spaces(EVERYTHING, shards, root=root)["pooled"]
    open_network.cache_clear()
    reads, read = list[str](), storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda uri: (reads.append(uri), read(uri))[1])
    found = open_network(network, "cpu")
    assert reads == [network.uris[0]]
    assert (found.uri, found.sha256) == (network.uris[0], network.sha256)


def test_an_evaluation_with_published_networks(
    inception: EvaluationConfig, shards: ShardSet, root: str, checkpoint: Callable[..., str]
) -> None:
    """A handful of images has an Inception Score; metrics that need more images, or larger ones, are skipped."""
    few = asked(inception, "fid", "is", "ppl_wend", "separability")
    few = few.model_copy(update={"num_images": 4, "num_reals": 6, "is_splits": 2, "separability_samples": 60})
    report = evaluate(checkpoint(), shards, few, root=root)
    scores = {"is_inception", "is_std_inception"}
    assert scores <= set(report.metrics) <= scores | {"separability_w_attributes", "separability_z_attributes"}
    assert report.settings["networks"].keys() == {"inception", "lpips", "attributes"}
    assert report.skipped["fid_inception"].startswith(
        "6 reference images are too few for a covariance of 2048 features"
    )
    assert report.skipped["ppl_wend_lpips"].startswith(
        "LPIPS needs images of 16x16 at least, these are 4x4 after the crop"
    )
    assert set(report.attributes) == {"left", "right"}


def test_a_worker_hands_out_the_features_of_each_network_as_they_are_kept(
    inception: EvaluationConfig, shards: ShardSet, root: str
) -> None:
    """Inception's features of a real are in single precision, VGG16's in half precision."""
    spaces = obtain_spaces(asked(inception, "fid", "pr"), shards, root=root)
    subject = Subject("", "", None, shards, (), spaces, inception, "cpu")
    part = measure_chunk(SampleChunk(subject, REALS, (("manifold", 1), ("pooled", 1)), 0))
    assert {name: (rows.shape, str(rows.dtype)) for name, rows in part.items()} == {
        "pooled": ((1, 2048), "float32"),
        "manifold": ((1, 4096), "float16"),
    }
    image = to_float(torch.tensor(load_images(shards, 8).images[:1]))
    np.testing.assert_allclose(part["pooled"], recognise(spaces, image, "cpu")[0], rtol=1e-5)
    np.testing.assert_allclose(part["manifold"], manifold_features(spaces, image, "cpu"), rtol=1e-3, atol=1e-4)


def test_unlabelled_images_have_no_attribute_classifiers(
    inception: EvaluationConfig, unlabelled: ShardSet, root: str, checkpoint: Callable[..., str]
) -> None:
    report = evaluate(checkpoint(), unlabelled, asked(inception, "separability"), root=root)
    assert report.skipped["separability_w_attributes"].startswith("attribute classifiers learn from labels")


def test_missing_weights_are_told_before_anything_trains(tmp_path: Path) -> None:
    gone = EvaluationConfig(
        features="inception", metrics=("fid", "pr"), weights=WeightsConfig(inception=f"{tmp_path}/none.pth")
    )
    with pytest.raises(
        ConfigError, match=r"evaluation\.weights\.inception=.*none\.pth.*there is no such file"
    ) as caught:
        check_features(gone, labelled=False)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"something else")
    wrong = EvaluationConfig(features="inception", metrics=("fid",), weights=WeightsConfig(inception=str(path)))
    with pytest.raises(ConfigError, match=r"has the sha256 .*, expected 6726825d"):
        check_features(wrong, labelled=True)


def test_only_what_the_metrics_need_is_asked_for(inception: EvaluationConfig) -> None:
    check_features(asked(inception, "separability"), labelled=True)
    nothing = EvaluationConfig(metrics=(), features="inception", weights=WeightsConfig(inception="nowhere"))
    check_features(nothing, labelled=False)


def test_labels_are_asked_for_by_the_classifier_alone() -> None:
    check_features(EvaluationConfig(metrics=("fid",), features="rotation"), labelled=False)
    with pytest.raises(ConfigError, match=r"evaluation.features=classifier: needs class labels"):
        check_features(EvaluationConfig(metrics=("fid",)), labelled=False)
    check_features(EvaluationConfig(metrics=()), labelled=False)


def test_a_file_that_changes_is_not_mistaken_for_the_old_one(shards: ShardSet, root: str) -> None:
    network = obtain_spaces(EVERYTHING, shards, root=root)["pooled"]
    with pytest.raises(StepError, match="changed during the evaluation"):
        open_network(Network(network.name, network.uris, "0" * 64), "cpu")
