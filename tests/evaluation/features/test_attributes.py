"""Attribute classifiers: trained once per attribute, stored, and accurate."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from stylegan import storage
from stylegan.config.sections import DataConfig, EvaluationConfig
from stylegan.data.loading.loader import load_images
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation.features import attributes as attributes_module
from stylegan.evaluation.features.attributes import AttributeNet, attribute_names, attribute_values, obtain_attributes
from stylegan.evaluation.features.spaces import obtain_spaces
from stylegan.images import to_float

BRIEF = EvaluationConfig(attributes_kimg=1.2)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow the networks: the paper's widths are for 256x256."""
    monkeypatch.setattr(attributes_module, "MODEL", attributes_module.MODEL.model_copy(update={"fmap_max": 16}))


def no_workers(_function: Any, items: Iterable[Any]) -> list[Any]:
    """Fail if anything is to be trained."""
    assert not list(items), "nothing should be trained"
    return []


def test_every_class_is_an_attribute_and_is_learnt(shards: ShardSet, root: str) -> None:
    uris = obtain_attributes(BRIEF, shards, root=root)
    assert [storage.name(uri) for uri in uris] == ["0000.safetensors", "0001.safetensors"]
    table = load_images(shards, 8)
    logits = AttributeNet({uri: storage.read_bytes(uri) for uri in uris}).attributes(
        to_float(torch.tensor(table.images))
    )
    right = (logits.numpy() > 0) == attribute_values(shards, table)
    assert right.mean(axis=0).min() > 0.9


def test_they_are_trained_once_and_one_by_one(shards: ShardSet, root: str) -> None:
    uris = obtain_attributes(BRIEF, shards, root=root)
    assert obtain_attributes(BRIEF, shards, root=root, pmap=no_workers) == uris
    before = storage.read_bytes(uris[1])
    storage.delete(uris[1])
    asked: list[Any] = []

    def watch(function: Any, items: Iterable[Any]) -> list[Any]:
        asked.extend(items)
        return [function(item) for item in asked]

    torch.rand(3)
    assert obtain_attributes(BRIEF, shards, root=root, pmap=watch) == uris
    assert [request.index for request in asked] == [1]
    assert storage.read_bytes(uris[1]) == before  # the same bytes again, whatever the global random state


def test_what_is_learnt_depends_on_budget_seed_and_data(shards: ShardSet, tmp_path: Path) -> None:
    asked: list[Any] = []

    def watch(_function: Any, items: Iterable[Any]) -> list[float]:
        requests = list(items)
        asked.append(requests[0].uri)
        return [1.0 for _ in requests]

    for change in ({}, {"attributes_kimg": 2.0}, {"seed": 1}):
        obtain_attributes(BRIEF.model_copy(update=change), shards, root=str(tmp_path), pmap=watch)
    obtain_attributes(BRIEF, shards.model_copy(update={"fingerprint": "other"}), root=str(tmp_path), pmap=watch)
    assert len(set(asked)) == 4


def test_a_network_is_the_discriminator_without_minibatch_statistics(shards: ShardSet, root: str) -> None:
    """The logit of an image does not depend on the others in its batch."""
    net = AttributeNet({uri: storage.read_bytes(uri) for uri in obtain_attributes(BRIEF, shards, root=root)})
    images = to_float(torch.tensor(load_images(shards, 8).images[:9]))
    torch.testing.assert_close(net.attributes(images)[:2], net.attributes(images[:2]))


def test_values_are_one_column_per_class(shards: ShardSet) -> None:
    table = load_images(shards, 8)
    values = attribute_values(shards, table)
    assert values.shape == (shards.num_images, 2)
    assert np.array_equal(values.argmax(axis=1), table.labels)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Return shards of 120 grey 8x8 images with three attributes.

    These are a bright left half, a bright top half, and one that all images have; an image may have any number of them.
    """
    folder = tmp_path_factory.mktemp("described")
    random = np.random.default_rng(0)
    rows = []
    for number in range(120):
        left, top = random.integers(0, 2, 2)
        pixels = random.integers(0, 60, (8, 8))
        pixels[:, :4] += 90 * left
        pixels[:4] += 90 * top
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append([f"{number}.png", [int(left), int(top), 1]])
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    data = DataConfig(source=str(folder), resolution=8, channels=1)
    return write_shards(open_source(data), data, str(tmp_path_factory.mktemp("root")))


def test_attributes_of_the_shards_are_learnt_one_by_one(described: ShardSet, root: str) -> None:
    """Each attribute has a binary classifier of its own; the set has no classes."""
    assert (described.label_names, len(described.attribute_names)) == ((), 3)
    assert attribute_names(described) == described.attribute_names
    table = load_images(described, 8)
    values = attribute_values(described, table)
    assert set(map(tuple, values[:, :2].tolist())) == {(False, False), (False, True), (True, False), (True, True)}
    assert values[:, 2].all()
    uris = obtain_attributes(BRIEF, described, root=root)
    logits = AttributeNet({uri: storage.read_bytes(uri) for uri in uris}).attributes(
        to_float(torch.tensor(table.images[:]))
    )
    assert ((logits.numpy() > 0) == values).mean(axis=0).min() > 0.9


def test_attributes_do_not_exclude_each_other(described: ShardSet, shards: ShardSet, root: str) -> None:
    """So the most confident half is kept, as published, even of more than two; other features see no labels."""
    evaluation = BRIEF.model_copy(update={"metrics": ("separability",), "features": "inception"})
    spaces = obtain_spaces(evaluation, described, root=root)
    assert spaces.attribute_names == described.attribute_names
    assert not spaces.exclusive
    assert not obtain_spaces(evaluation, shards, root=root).independent
    with pytest.raises(ConfigError, match="needs class labels"):
        obtain_spaces(evaluation.model_copy(update={"features": "classifier"}), described, root=root)


def test_images_without_labels_are_a_reason(unlabelled: ShardSet, root: str) -> None:
    with pytest.raises(StepError, match="learn from labels, which these images do not have"):
        obtain_attributes(BRIEF, unlabelled, root=root)


def test_too_few_images_are_a_reason(shards: ShardSet, root: str) -> None:
    few = shards.model_copy(update={"num_images": 9, "fingerprint": "few"})
    with pytest.raises(StepError, match="9 images are too few to train attribute classifiers; at least 10"):
        obtain_attributes(BRIEF, few, root=root)


@pytest.mark.parametrize("content", [b"", b"{}", bytes(64)])
def test_a_damaged_network_is_named_with_its_cure(content: bytes) -> None:
    line = (
        r"^s/0000\.safetensors: is not a classifier of attributes \([^\n]+\); delete it and run the same command again"
    )
    with pytest.raises(StepError, match=line):
        AttributeNet({"s/0000.safetensors": content})


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_data: bytes) -> None:
        raise MemoryError("full")

    monkeypatch.setattr(safetensors.torch, "load", fail)
    with pytest.raises(MemoryError, match="full"):
        AttributeNet({"s/0000.safetensors": b""})
