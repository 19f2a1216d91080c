"""References: computed once, stored, and read again."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from stylegan.data.shardset import ShardSet
from stylegan.evaluation.features.spaces import Network
from stylegan.evaluation.reference import Reference

VGG16 = Network("vgg16", ("uri",), "a" * 64, 5, "float16")
ROWS = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float16)


def open_reference(
    shards: ShardSet, root: Path, *needs: str, network: Network = VGG16, num_reals: int = 30
) -> Reference:
    """Return the reference of a network for these shards."""
    return Reference(network, shards, num_reals=num_reals, needs=needs, root=str(root))


def fill(reference: Reference) -> None:
    """Add all rows in three parts, and finish."""
    for start in range(0, 30, 12):
        reference.add(ROWS[start : start + 12])
    reference.finish()


def test_what_was_made_is_found_again_as_it_was(shards: ShardSet, tmp_path: Path) -> None:
    made = open_reference(shards, tmp_path, "moments", "features")
    assert not made.complete
    fill(made)
    found = open_reference(shards, tmp_path, "features", "moments")
    assert made.complete
    assert found.complete
    assert found.features.dtype == np.float16
    assert np.array_equal(found.features, ROWS)
    assert np.array_equal(found.moments.mean, made.moments.mean)
    np.testing.assert_allclose(found.moments.covariance, np.cov(ROWS.astype(float), rowvar=False), rtol=1e-9)
    assert found.moments.count == 30


def test_only_what_is_needed_is_made(shards: ShardSet, tmp_path: Path) -> None:
    fill(open_reference(shards, tmp_path, "moments"))
    assert [path.name for path in tmp_path.glob("stats/vgg16-*/*")] == [f"{shards.fingerprint}.npz"]
    both = open_reference(shards, tmp_path, "moments", "features")
    assert not both.complete  # the features are missing
    fill(both)
    assert both.moments.count == 30


def test_other_reals_and_other_networks_are_kept_apart(shards: ShardSet, tmp_path: Path) -> None:
    fill(open_reference(shards, tmp_path, "moments"))
    assert not open_reference(shards.up_to(4), tmp_path, "moments").complete  # the same images, smaller
    assert open_reference(shards, tmp_path, "moments").complete
    assert not open_reference(shards, tmp_path, "moments", num_reals=29).complete
    assert not open_reference(shards.model_copy(update={"fingerprint": "other"}), tmp_path, "moments").complete
    assert not open_reference(
        shards, tmp_path, "moments", network=Network("vgg16", ("uri",), "b" * 64, 5, "float16")
    ).complete


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_damaged_files_are_made_again(shards: ShardSet, tmp_path: Path, content: bytes) -> None:
    fill(open_reference(shards, tmp_path, "moments", "features"))
    for path in tmp_path.glob("stats/vgg16-*/*"):
        path.write_bytes(content)
    again = open_reference(shards, tmp_path, "moments", "features")
    assert not again.complete
    fill(again)
    assert open_reference(shards, tmp_path, "moments", "features").complete


def test_features_that_are_not_finite_are_made_again(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise every evaluation would be told to look for the fault in its images."""
    fill(open_reference(shards, tmp_path, "features"))
    (path,) = tmp_path.glob("stats/vgg16-*/*-features.npy")
    rows = np.load(path)
    rows[7, 2] = np.nan
    np.save(path, rows)
    again = open_reference(shards, tmp_path, "features")
    assert not again.complete
    assert f"{path}: is damaged (values that are not finite); it is computed again" in caplog.text
    fill(again)
    assert open_reference(shards, tmp_path, "features").complete


def test_files_with_any_damage_are_made_again_or_read(shards: ShardSet, tmp_path: Path) -> None:
    """Bytes that are cut off, set or flipped never end the evaluation."""
    fill(open_reference(shards, tmp_path, "moments", "features"))
    files = {path: path.read_bytes() for path in tmp_path.glob("stats/vgg16-*/*")}
    random = Random(5)
    for _ in range(150):
        for path, content in files.items():
            damaged = bytearray(content[: random.choice([len(content), random.randrange(len(content))])])
            for _ in range(random.randrange(6)):
                place = random.choice(
                    [random.randrange(len(content)), random.randrange(128), len(content) - 1 - random.randrange(200)]
                )
                damaged[place : place + 1] = bytes([random.randrange(256)])
            path.write_bytes(damaged)
        open_reference(shards, tmp_path, "moments", "features")
