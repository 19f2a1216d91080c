"""The stage plan against the published schedule (algorithm: progressive growing)."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylegan.config_file import build
from stylegan.training.schedule import crossed, ema_beta, stages


def config(resolution=1024, **training):
    return build({"name": "t", "data": {"source": "digits", "resolution": resolution}, "training": {"minibatch_repeats": 1, **training}})


def official_lod(kimg, resolution=1024, start=8, length=600):
    """The level of detail as the paper's training schedule defines it."""
    phase = math.floor(kimg / (2 * length))
    rest = kimg - phase * 2 * length
    return max(math.log2(resolution) - math.log2(start) - phase - max(rest - length, 0) / length, 0)


def test_faithful_schedule_at_1024():
    """8x8 until 600 kimg, each resolution fades for 600 and stays for 600, 1024x1024 fades in from 7,800 to 8,400, the end is 25,000."""
    plan = stages(config(total_kimg=25_000))
    assert [stage.resolution for stage in plan] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [stage.levels_below for stage in plan] == [7, 6, 5, 4, 3, 2, 1, 0]
    last = plan[-1]
    assert abs(last.start_nimg / 1000 - 7800) < 1
    assert last.fade_images == 600_000
    assert abs(last.end_nimg / 1000 - 25_000) < 1
    assert [stage.learning_rate for stage in plan] == [0.001, 0.001, 0.001, 0.001, 0.0015, 0.002, 0.003, 0.003]


def test_lod_agrees_with_the_official_formula():
    """At every 37th kimg: resolution below + fade give the published level of detail."""
    plan = stages(config(total_kimg=25_000))
    for kimg in range(10, 25_000, 37):
        stage = next(stage for stage in plan if kimg * 1000 < stage.end_nimg)
        lod = stage.levels_below + 1 - stage.alpha(kimg * 1000)
        assert lod == pytest.approx(official_lod(kimg), abs=2e-3)


def test_fifteen_optimizer_resets_at_1024():
    """At the start of training, and at the start and the end of each of seven fades."""
    resets = 0
    for stage in stages(config(total_kimg=25_000, batch=512)):
        resets += sum(stage.resets_optimizers(nimg) for nimg in range(stage.start_nimg, stage.end_nimg, stage.batch))
    assert resets == 15


def test_alpha_holds_between_two_looks_at_the_schedule():
    stage = stages(config(16, minibatch_repeats=4, batch=8, fade_kimg=1, stable_kimg=1))[1]
    looks = [stage.alpha(stage.start_nimg + i * 8) for i in range(12)]
    assert looks == [0] * 4 + [0.032] * 4 + [0.064] * 4


def test_one_stage_can_have_its_own_length_batch_and_rate():
    plan = stages(config(32, stages={16: {"stable_kimg": 1, "fade_kimg": 2, "batch": 4, "learning_rate": 0.5}}))
    assert (plan[1].fade_images, plan[1].stable_images, plan[1].batch, plan[1].learning_rate) == (2000, 1000, 4, 0.5)
    assert plan[0].stable_images == plan[2].stable_images == 600_000


@given(st.integers(1, 64), st.floats(0.01, 3), st.floats(0.01, 3))
def test_stages_join_without_gap_and_end_on_whole_batches(batch, fade, stable):
    plan = stages(config(32, batch=batch * 4, fade_kimg=fade, stable_kimg=stable, minibatch_repeats=3))
    for below, above in itertools.pairwise(plan):
        assert below.end_nimg == above.start_nimg
    for stage in plan:
        assert stage.num_images % stage.batch == 0
        assert stage.alpha(stage.end_nimg + stage.batch * stage.repeats) == 1.0


def test_half_life_of_the_average():
    assert ema_beta(32, 10) ** (10_000 / 32) == pytest.approx(0.5)
    assert [round(ema_beta(batch, 10), 5) for batch in (256, 128, 64, 32, 16)] == [0.98241, 0.99117, 0.99557, 0.99778, 0.99889]
    assert ema_beta(32, 0) == 0


def test_intervals_are_crossed_once():
    assert [nimg for nimg in range(0, 1000, 96) if crossed(0.25, nimg, nimg + 96)] == [192, 480, 672, 960]
