"""Which images are contents, styles and held out."""

import numpy as np
import pytest

from stylegan.config.sections import TransferConfig
from stylegan.errors import ConfigError, StepError
from stylegan.transfer.pairs import split

LABELS = np.array([0, 1, 2] * 20)
NAMES = ("photos", "paintings", "prints")


def test_every_image_is_both_and_a_tenth_is_held_out():
    pairs = split(LABELS, NAMES, TransferConfig(), "s")
    assert pairs.contents.tolist() == pairs.styles.tolist() == list(range(54))
    assert pairs.held_contents.tolist() == pairs.held_styles.tolist() == list(range(54, 60))


def test_classes_divide_contents_and_styles():
    pairs = split(LABELS, NAMES, TransferConfig(style_classes=("paintings", "prints")), "s")
    assert set(LABELS[np.r_[pairs.contents, pairs.held_contents]]) == {0}
    assert set(LABELS[np.r_[pairs.styles, pairs.held_styles]]) == {1, 2}
    assert (len(pairs.held_contents), len(pairs.held_styles)) == (2, 4)


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (("cubism",), NAMES, "has no class cubism; the classes are photos, paintings, prints"),
        (("cubism",), (), "has no class cubism; it has no classes"),
        (NAMES, NAMES, "are all classes of data.source=s, which leaves no contents"),
    ],
)
def test_wrong_classes_are_one_line(classes, names, message):
    with pytest.raises(ConfigError, match=message):
        split(LABELS, names, TransferConfig(style_classes=classes), "s")


def test_too_few_images_are_one_line():
    with pytest.raises(StepError, match="has 1 images for the styles"):
        split(np.array([0, 0, 1]), NAMES[:2], TransferConfig(style_classes=("paintings",)), "s")


def test_batches_are_parts_of_one_order_in_which_every_image_comes_once():
    pairs = split(LABELS, NAMES, TransferConfig(), "s")
    whole = pairs.batch(0, 54, seed=3, resolution=16)
    parts = [pairs.batch(start, 9, seed=3, resolution=16) for start in range(0, 54, 9)]
    for number, images in enumerate(whole):
        assert sorted(images) == list(range(54))
        assert images.tolist() == np.concatenate([part[number] for part in parts]).tolist()
    assert whole[0].tolist() != whole[1].tolist()  # styles meet other contents


def test_held_out_pairs_are_different_ones_and_depend_on_the_seed():
    pairs = split(LABELS, NAMES, TransferConfig(), "s")
    contents, styles = pairs.held_out(20, seed=0)
    assert len(set(zip(contents, styles, strict=True))) == 20
    assert len(pairs.held_out(1000, seed=0)[0]) == 36  # all of them
    assert pairs.held_out(20, seed=1)[0].tolist() != contents.tolist()
