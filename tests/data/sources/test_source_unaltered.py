"""Tests of sources whose images must not be cropped, resized or converted."""

import pickle
import zipfile

import numpy as np
import pytest

from stylegan.config.sections import DataConfig
from stylegan.data.sources.unaltered import measured, unaltered
from stylegan.errors import StepError


@pytest.mark.parametrize(("size", "mode"), [((16, 8), "L"), ((16, 16), "L"), ((8, 8), "RGB"), ((8, 8), "LA")])
def test_unaltered_images_are_handed_out_or_refused(tmp_path, draw_images, opened, size, mode):
    """The reader returns fitting images unchanged, and refuses by name those that sharding would alter.

    The signature differs, so that the source never uses the shards of altered images.
    """
    draw_images(tmp_path, ["a.png"], size=(8, 8), mode="L")
    draw_images(tmp_path, ["b.png"], size=size, mode=mode)
    source = opened(tmp_path)
    strict = unaltered(source, DataConfig(source=str(tmp_path), resolution=8, channels=1))
    with strict.open() as read:
        assert read("a.png") == (tmp_path / "a.png").read_bytes()
        with pytest.raises(
            StepError,
            match=rf"b\.png: is {size[0]}x{size[1]} with {len(mode)} channel\(s\), expected 8x8 with 1 channel",
        ):
            read("b.png")
    assert strict.signature != source.signature


def test_arrays_are_measured_too(opened):
    """Sizes of arrays are checked as those of encoded images are; the width comes first."""
    assert measured(np.zeros((4, 6), np.uint8)) == (6, 4, 1)
    assert measured(np.zeros((4, 6, 3), np.uint8)) == (6, 4, 3)
    source = opened("digits")
    with unaltered(source, DataConfig(source="digits", resolution=8, channels=1)).open() as read:
        assert read("0/0000").shape == (8, 8)
    with (
        unaltered(source, DataConfig(source="digits", resolution=16, channels=1)).open() as read,
        pytest.raises(StepError, match="is 8x8"),
    ):
        read("0/0000")


def test_checked_images_of_an_archive(tmp_path, image_folder, opened):
    """The check works with an archive and through a pickled opener."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(image_folder / "cat/0.png", "top/cat/0.png")
    strict = unaltered(opened(tmp_path / "a.zip"), DataConfig(source="a.zip", resolution=16))
    with (
        pickle.loads(pickle.dumps(strict.open))() as read,
        pytest.raises(StepError, match=r"a\.zip/0\.png: is 24x20 with 3"),
    ):
        read("0.png")
