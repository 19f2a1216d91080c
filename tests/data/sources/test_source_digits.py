"""Tests of the digits inside scikit-learn."""

import numpy as np


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
