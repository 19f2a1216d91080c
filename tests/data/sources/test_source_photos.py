"""Tests of the photographs inside scikit-learn."""

from pathlib import Path

import numpy as np
import sklearn
from PIL import Image

from stylegan.data.sources.photos import LEAST_CONTRAST


def test_cut_outs_are_parts_of_the_photographs_with_contrast(opened, contents):
    source = opened("photos")
    assert len(source.images) == 333
    assert source.label_names == ("china", "flower")
    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    photos = {name: np.asarray(Image.open(folder / f"{name}.jpg").convert("RGB")) for name in source.label_names}
    pixels = contents(source)
    for image in source.images:
        name, _, place = image.path.partition("/")
        side, top, left = map(int, place.split("-"))
        assert name == source.label_names[image.label]
        assert np.array_equal(pixels[image.path], photos[name][top : top + side, left : left + side])
        assert pixels[image.path].mean(2).std() > LEAST_CONTRAST
    assert opened("photos", "none").label_names == ()
