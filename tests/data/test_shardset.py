"""The record, the names and the settings that writers and readers of shards share."""

from itertools import pairwise

import pyarrow as pa
import pytest

from stylegan.config.sections import DataConfig
from stylegan.data import dataset_card
from stylegan.data.shardset import ShardSet, distinct, level_name, levels, parameters, settings_key, shard_size


def config(**changes: object) -> DataConfig:
    return DataConfig(**({"source": "x", "resolution": 16} | changes))


def test_without_larger_resolutions_they_are_the_same_shards():
    shards = ShardSet(
        uri="u", fingerprint="f", num_images=9, resolutions=(4, 8, 16), label_names=("a",), num_rejected=1
    )
    assert shards.up_to(8).resolutions == (4, 8)
    assert shards.up_to(8).model_copy(update={"resolutions": (4, 8, 16)}) == shards == shards.up_to(64)


@pytest.mark.parametrize("resolution", [4, 16, 1024])
def test_levels_are_the_powers_from_4(resolution):
    found = levels(config(resolution=resolution))
    assert (found[0], found[-1]) == (4, resolution)
    assert all(after == 2 * before for before, after in pairwise(found))
    assert level_name(resolution) == f"r{resolution:04d}"


def test_the_smaller_limit_counts():
    """The limits are a number of images and MB of raw pixels; a tar has at least one image."""
    assert shard_size(config(images_per_shard=100)) == 100
    assert shard_size(config(resolution=1024, shard_mb=10)) == 3
    assert shard_size(config(resolution=1024, channels=1, shard_mb=10)) == 9
    assert shard_size(config(resolution=1024, shard_mb=1)) == 1


def test_settings_are_those_that_decide_the_shards():
    """The source, the limits on rejects and the reuse of older sets do not change the key."""
    same = [config(), config(source="y"), config(max_rejected=3), config(incremental=False), config(max_corrupt=1)]
    assert len({settings_key(data) for data in same}) == 1
    other = [
        config(resolution=8),
        config(channels=1),
        config(crop="wide"),
        config(resize_filter="box"),
        config(min_size=1),
    ]
    other += [config(max_pixels=9), config(duplicates="keep"), config(images_per_shard=9), config(shard_mb=9)]
    assert len({settings_key(data) for data in [config(), *other]}) == len(other) + 1
    assert "source" not in parameters(config())


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a", "b"], ("a", "b")),
        (["a", "a", "a"], ("a", "a (1)", "a (2)")),
        (["a", "a", "a (0)"], ("a", "a (1)", "a (0)")),
        (["a", "a", "a (1)"], ("a", "a (1)", "a (1) (2)")),
        ([], ()),
    ],
)
def test_names_are_kept_apart(names, wanted):
    """No two classes have one name, whatever the names are; a name made up here may be that of another class too."""
    assert distinct(names) == distinct(distinct(names)) == wanted


def test_classes_with_one_name_are_all_counted():
    """The card of a set, which has its counts by name, loses none of them."""
    table = pa.table({"label": [0, 1, 1, 2, 2, 2]})
    assert dataset_card._counts({"label_names": ["a", "a", "a (0)"]}, table) == {"a": 1, "a (1)": 2, "a (0)": 3}
