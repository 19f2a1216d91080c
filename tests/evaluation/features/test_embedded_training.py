"""The examples that train the feature network."""

import numpy as np
import pytest
import torch

from stylegan.data.loading.loader import ImageTable
from stylegan.evaluation.features.embedded_training import _Examples, _shift
from stylegan.evaluation.metrics.numerics import stream
from stylegan.images import to_float, to_uint8


def make_examples(kind: str, num_images: int) -> _Examples:
    """Return examples in which image i has the value i, except for one white corner, and the label i."""
    images = np.tile(np.arange(num_images, dtype=np.uint8)[:, None, None, None], (1, 1, 8, 8))
    images[:, :, 0, 0] = 255
    return _Examples(kind, ImageTable(images, np.arange(num_images)), stream("test"), "cpu")


def test_held_out_images_are_never_learnt() -> None:
    examples = make_examples("classifier", 100)
    seen = {int(label) for _ in range(30) for label in examples.batch(16)[1]}
    assert len(examples.held_out) == 10
    assert seen == set(range(100)) - set(examples.held_out.tolist())


def test_every_epoch_shows_every_image_once() -> None:
    examples = make_examples("classifier", 100)
    labels = torch.cat([examples.batch(30)[1] for _ in range(6)])
    assert (
        labels[:90].sort().values.tolist()
        == labels[90:].sort().values.tolist()
        == examples.training.sort().values.tolist()
    )


def test_images_come_with_their_labels() -> None:
    images, labels = make_examples("classifier", 50).batch(16)
    assert to_uint8(images)[:, 0, 4, 4].tolist() == labels.tolist()


def test_rotated_images_come_with_their_quarter_turns() -> None:
    """The white corner starts at the top left and turns anticlockwise."""
    images, turns = make_examples("rotation", 50).at(torch.arange(50))
    corners = {0: (0, 0), 1: (7, 0), 2: (7, 7), 3: (0, 7)}
    assert set(turns.tolist()) == set(corners)
    for image, turn in zip(images, turns.tolist(), strict=True):
        assert image[0][corners[turn]] == 1
        assert (image == 1).sum() == 1


def test_shifts_move_images_and_repeat_their_border() -> None:
    columns = to_float(torch.arange(8, dtype=torch.uint8)).expand(200, 2, 8, 8)
    shifted = to_uint8(_shift(columns, stream("shift")))
    assert shifted.shape == (200, 2, 8, 8)
    rows = {tuple(image[0, 0].tolist()) for image in shifted}
    assert rows == {(0, 0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 4, 5, 6, 7, 7)}
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    transposed = to_uint8(_shift(columns.transpose(2, 3), stream("shift")))
    assert {tuple(image[0, :, 0].tolist()) for image in transposed} == rows


@pytest.mark.parametrize(("num_images", "shown"), [(20, 1_080), (1_797, 20_000), (10_000, 90_000), (50_000, 150_000)])
def test_the_budget_grows_with_the_data_up_to_a_limit(num_images: int, shown: int) -> None:
    examples = make_examples("classifier", 1)
    examples.training = torch.arange(num_images - min(num_images // 10, 5000))
    assert examples.num_shown == shown
