"""Tests of the digits inside scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits


def test_digits_are_all_there(opened, contents):
    """The source has 1,797 scans with ten labels. The darkest and lightest of the 17 grey levels are 0 and 255."""
    source = opened("digits")
    assert len(source.images) == 1797
    assert source.label_names == tuple("0123456789")
    assert all(image.path.startswith(str(image.label)) for image in source.images)
    pixels = np.stack(list(contents(source).values())[:50])
    assert (pixels.shape, pixels.dtype) == ((50, 8, 8), np.uint8)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert opened("digits", "none").label_names == ()


def test_digits_are_those_of_scikit_learn(opened, contents):
    scans = load_digits()
    pixels = contents(opened("digits"))
    assert sorted(pixels) == sorted(f"{label}/{number:04d}" for number, label in enumerate(scans.target))
    for number, (label, scan) in enumerate(zip(scans.target, scans.images, strict=True)):
        assert np.array_equal(pixels[f"{label}/{number:04d}"], (scan * (255 / 16)).round().astype(np.uint8))
