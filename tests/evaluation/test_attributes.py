"""Attribute classifiers: trained once per attribute, kept, and right."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stylegan import storage
from stylegan.config import EvaluationConfig
from stylegan.data.loader import load_images
from stylegan.data.shards import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation import attributes as attributes_module
from stylegan.evaluation.attributes import AttributeNet, attribute_values, obtain_attributes
from stylegan.images import to_float

BRIEF = EvaluationConfig(attributes_kimg=1.2)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's widths are for 256x256."""
    monkeypatch.setattr(attributes_module, "MODEL", attributes_module.MODEL.model_copy(update={"fmap_max": 16}))


def no_workers(_function: Any, items: Iterable[Any]) -> list[Any]:
    assert not list(items), "nothing should be trained"
    return []


def test_every_class_is_an_attribute_and_is_learnt(shards: ShardSet, root: str) -> None:
    uris = obtain_attributes(BRIEF, shards, root=root)
    assert [storage.name(uri) for uri in uris] == ["0000.safetensors", "0001.safetensors"]
    table = load_images(shards, 8)
    logits = AttributeNet([storage.read_bytes(uri) for uri in uris]).attributes(to_float(torch.tensor(table.images)))
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
    net = AttributeNet([storage.read_bytes(uri) for uri in obtain_attributes(BRIEF, shards, root=root)])
    images = to_float(torch.tensor(load_images(shards, 8).images[:9]))
    torch.testing.assert_close(net.attributes(images)[:2], net.attributes(images[:2]))


def test_values_are_one_column_per_class(shards: ShardSet) -> None:
    table = load_images(shards, 8)
    values = attribute_values(shards, table)
    assert values.shape == (120, 2)
    assert np.array_equal(values.argmax(axis=1), table.labels)


def test_images_without_labels_are_a_reason(unlabelled: ShardSet, root: str) -> None:
    with pytest.raises(StepError, match="learn from labels, which these images do not have"):
        obtain_attributes(BRIEF, unlabelled, root=root)


def test_too_few_images_are_a_reason(shards: ShardSet, root: str) -> None:
    few = shards.model_copy(update={"num_images": 9, "fingerprint": "few"})
    with pytest.raises(StepError, match="9 images are too few to train attribute classifiers; at least 10"):
        obtain_attributes(BRIEF, few, root=root)
