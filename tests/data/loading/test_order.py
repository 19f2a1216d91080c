"""The order of images: every epoch shows all of them, consecutive calls join, and groups keep reads in one place."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stylegan.data.loading import order
from stylegan.data.loading.order import group_size, sample_indices, upcoming

numbers = {
    "num_images": st.integers(1, 60),
    "seed": st.integers(0, 2**32),
    "stage": st.sampled_from([4, 8, 256]),
    "group": st.sampled_from([1, 3, 7, 16, None]),
}


@given(**numbers, epoch=st.integers(0, 1000))
def test_every_epoch_shows_every_image_once(num_images, seed, stage, group, epoch):
    """N samples from an epoch's start are a permutation of all N images, with any size of groups."""
    indices = sample_indices(
        num_images, seed=seed, stage=stage, start=epoch * num_images, count=num_images, group=group
    )
    assert indices.dtype == np.int64
    assert sorted(indices.tolist()) == list(range(num_images))


@given(**numbers, start=st.integers(0, 300), sizes=st.lists(st.integers(0, 70), max_size=5))
def test_pieces_join_without_a_seam(num_images, seed, stage, group, start, sizes):
    """The order is the same however it is cut into calls, across groups and epochs."""
    position, pieces = start, []
    for size in sizes:
        pieces += sample_indices(num_images, seed=seed, stage=stage, start=position, count=size, group=group).tolist()
        position += size
    assert (
        sample_indices(num_images, seed=seed, stage=stage, start=start, count=sum(sizes), group=group).tolist()
        == pieces
    )


def group_of(start: int, **settings: int) -> range:
    return next(upcoming(start=start, count=1, **settings))


@given(**numbers, start=st.integers(0, 300), count=st.integers(0, 100))
def test_samples_come_from_the_groups_that_are_told(start, count, **settings):
    """`upcoming` yields all groups that the samples come from, and no other; groups are large enough."""
    indices = sample_indices(start=start, count=count, **settings).tolist()
    groups = [group_of(start + n, **settings) for n in range(count)]
    assert all(index in group for index, group in zip(indices, groups, strict=True))
    assert all(len(group) >= min(settings["group"] or 60, settings["num_images"]) for group in groups)
    listed = list(upcoming(start=start, count=count, **settings))
    assert set(listed) == set(groups)
    assert listed[:1] == groups[:1]


def test_groups_of_which_little_is_shown_are_left_out():
    """The samples are the rest of one group, a whole one, and the start of a third."""
    settings = {"num_images": 30, "seed": 1, "stage": 8, "group": 10}
    groups = [group_of(start, **settings) for start in (0, 10, 20)]
    assert list(upcoming(start=7, count=15, **settings)) == groups
    assert list(upcoming(start=7, count=15, **settings, least=0.3)) == groups[:2]
    assert list(upcoming(start=7, count=15, **settings, least=0.5)) == groups[1:2]


@given(num_images=st.integers(20, 200), seed=st.integers(0, 100), epoch=st.integers(0, 5))
def test_no_group_comes_twice_in_an_epoch(num_images, seed, epoch):
    """Within an epoch, reads never return to a group."""
    groups = [
        group_of(epoch * num_images + n, num_images=num_images, seed=seed, stage=8, group=10) for n in range(num_images)
    ]
    assert sum(before != after for before, after in pairwise(groups)) == num_images // 10 - 1


def test_order_differs_by_seed_stage_epoch_and_group():
    """Epochs, stages and seeds have their own order of the groups and inside the groups."""

    def shown(**changes: int) -> tuple[int, ...]:
        return tuple(sample_indices(40, **({"seed": 1, "stage": 8, "start": 0, "count": 40} | changes)))

    assert len({shown(), shown(seed=2), shown(stage=16), shown(start=40), shown(start=80), shown(group=20)}) == 6
    first, second = np.split(np.array(shown(group=20)), 2)
    assert (first % 20).tolist() != (second % 20).tolist()
    assert len({group_of(0, num_images=200, seed=seed, stage=8, group=10) for seed in range(30)}) > 5


def test_order_is_fixed_for_ever():
    """These numbers must not change: a resumed run relies on them."""
    assert sample_indices(10, seed=3, stage=16, start=7, count=8).tolist() == [9, 6, 2, 3, 0, 2, 8, 1]
    assert sample_indices(10, seed=3, stage=16, start=7, count=8, group=3).tolist() == [7, 8, 6, 1, 2, 0, 3, 5]


def test_result_may_be_changed():
    """The caller owns the array: writing to it does not change later results."""
    first = sample_indices(10, seed=0, stage=4, start=0, count=10)
    expected = first.copy()
    first[:] = -1
    assert (sample_indices(10, seed=0, stage=4, start=0, count=10) == expected).all()


def test_memory_is_that_of_groups():
    """A set of a billion images needs the permutations of its groups only."""
    indices = sample_indices(10**9, seed=0, stage=1024, start=0, count=100)
    assert indices.max() - indices.min() < 2 * group_size(1024)
    assert group_size(1024) == order.SMALLEST_GROUP
    assert group_size(32) == 4 * 2**30 // 3072
