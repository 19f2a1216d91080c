"""The drift of new images: about zero for images of the same kind, far from it for others; which images are the new ones."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stylegan.config.file import build
from stylegan.data.loading.loader import load_images
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.drift import measure_drift, new_rows
from stylegan.evaluation.features import embedded
from stylegan.evaluation.features.spaces import obtain_spaces
from stylegan.evaluation.reference import Reference


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Sets of digits: the first 300; these and 100 more; these and 100 that are inverted; the config and its root."""
    folder = tmp_path_factory.mktemp("drift")
    digits, root = load_digits(), str(folder / "root")

    def make(name, count, inverted=0):
        source = folder / name
        for number in range(count + inverted):
            pixels = (digits.images[number] * 15.9).astype(np.uint8)
            path = source / str(digits.target[number]) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - pixels if number >= count else pixels).save(path)
        tree = {
            "name": "t",
            "storage": {"root": root},
            "data": {"source": str(source), "resolution": 8, "channels": 1},
            "training": {"batch": 4},
            "evaluation": {"kid_subsets": 20, "kid_subset_size": 80},
        }
        config = build(tree)
        return write_shards(open_source(config.data), config.data, root), config

    before, config = make("before", 300)
    return before, make("same", 400)[0], make("other", 300, 100)[0], config, root


def test_the_new_images_are_those_that_the_other_set_does_not_have(sets):
    before, same, _, _, _ = sets
    rows = new_rows(same, before)
    assert len(rows) == 100
    assert len(new_rows(before, before)) == 0
    images, old = load_images(same, 8).images, load_images(before, 8).images
    known = {image.tobytes() for image in old}
    assert all(images[row].tobytes() not in known for row in rows)
    others = sorted(set(range(same.num_images)) - set(rows.tolist()))
    assert all(images[row].tobytes() in known for row in others)


def test_images_of_the_same_kind_do_not_drift_and_others_do(sets):
    before, same, other, config, root = sets
    near = measure_drift(same, before, config.evaluation, root=root)
    far = measure_drift(other, before, config.evaluation, root=root)
    assert (near.num_new, near.num_old, near.network) == (100, 300, "classifier")
    assert near.low < 0.2 * far.low
    assert far.low > 0
    assert far.kid > 10 * abs(near.kid)
    assert near.preview == f"{same.uri}/preview.png"
    assert "100 new image(s) to 300" in near.text


def test_only_the_new_images_are_looked_at_once_an_evaluation_has_kept_the_old_ones(sets, monkeypatch):
    """The network is that of the old images, which is in storage already."""
    before, same, _, config, root = sets
    looked = []

    def pmap(function, requests):
        for request in requests:
            features = function(request)
            if hasattr(request, "rows"):
                looked.append((request.shards.uri, len(features), features))
            yield features

    first = measure_drift(same, before, config.evaluation, root=root, pmap=pmap)
    assert [(uri, rows) for uri, rows, _ in looked] == [(before.uri, 300), (same.uri, 100)]

    monkeypatch.setattr(embedded, "train_network", lambda *_: pytest.fail("trains a network"))
    spaces = obtain_spaces(config.evaluation, before, root=root, device="cpu")
    reference = Reference(spaces["pooled"], before, num_reals=300, needs={"features"}, root=root)
    reference.add(looked[0][2])
    reference.finish()
    looked.clear()
    assert measure_drift(same, before, config.evaluation, root=root, pmap=pmap) == first
    assert [(uri, rows) for uri, rows, _ in looked] == [(same.uri, 100)]


def test_fewer_than_two_new_images_have_no_distance(sets):
    before, _, _, config, root = sets
    assert measure_drift(before, before, config.evaluation, root=root) is None
