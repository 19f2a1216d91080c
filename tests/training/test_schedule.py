"""The plan of stages against the published schedule of progressive growing."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylegan.config.file import build, load
from stylegan.training.schedule import crossed, ema_beta, stages


def config(resolution=1024, **training):
    return build(
        {
            "name": "t",
            "data": {"source": "digits", "resolution": resolution},
            "training": {"minibatch_repeats": 1, **training},
        }
    )


def official_lod(kimg, resolution=1024, start=8, length=600):
    """Return the level of detail as the paper's training schedule defines it."""
    phase = math.floor(kimg / (2 * length))
    rest = kimg - phase * 2 * length
    return max(math.log2(resolution) - math.log2(start) - phase - max(rest - length, 0) / length, 0)


# The published tables (section "training script" of the official code): minibatch over all GPUs at 4x4, 8x8, ...,
# 1024x1024.
OFFICIAL_MINIBATCH = {
    1: [128, 128, 128, 64, 32, 16, 8, 4, 4],
    2: [256, 256, 128, 64, 32, 16, 8, 8, 8],
    4: [512, 256, 128, 64, 32, 16, 16, 16, 16],
    8: [512, 256, 128, 64, 32, 32, 32, 32, 32],
}
OFFICIAL_RATE = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}  # 0.001 below
OFFICIAL_TICK = {4: 160, 8: 140, 16: 120, 32: 100, 64: 80, 128: 60, 256: 40, 512: 30, 1024: 20}  # kimg


def official_resolution(kimg):
    return 2 ** (10 - math.floor(official_lod(kimg)))


def official_resets():
    """Return the kimg at which the official loop resets Adam: the schedule updates that change floor or ceil of lod."""
    resets, before, nimg = [], None, 0
    while nimg < 8_600_000:  # nothing changes after the last fade
        lod = official_lod(nimg / 1000)
        if (math.floor(lod), math.ceil(lod)) != before:
            resets.append(nimg / 1000)
        before = math.floor(lod), math.ceil(lod)
        nimg += 4 * OFFICIAL_MINIBATCH[8][int(math.log2(official_resolution(nimg / 1000))) - 2]
    return resets


@pytest.fixture(scope="module")
def ffhq():
    """The plan of the config of the paper."""
    return stages(load(Path(__file__).parents[2] / "configs" / "ffhq-1024.yaml"))


def test_ffhq_has_the_published_stages(ffhq):
    """8x8 trains until 600 kimg, and each further resolution fades in for 600 and then trains for 600.

    1024x1024 fades in from 7,800 to 8,400, and training ends at 25,000.
    """
    assert [stage.resolution for stage in ffhq] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [stage.levels_below for stage in ffhq] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [stage.fade_images for stage in ffhq] == [0] + [600_000] * 7
    assert [stage.start_nimg / 1000 for stage in ffhq] == pytest.approx([0, *range(600, 8000, 1200)], abs=0.5)
    assert (ffhq[-1].start_nimg + ffhq[-1].fade_images) / 1000 == pytest.approx(8400, abs=0.5)
    assert ffhq[-1].end_nimg / 1000 == pytest.approx(25_000, abs=0.5)


def test_ffhq_follows_the_official_schedule_at_every_tick(ffhq):
    """lod, resolution, minibatch and learning rate agree from 0 to 25,000 kimg.

    Stages end on whole batches, so they may change within a kimg of the official schedule.
    """
    ticks, kimg = 0, 0.0
    while kimg < 25_000:
        resolution = official_resolution(kimg)
        stage = next(stage for stage in ffhq if kimg * 1000 < stage.end_nimg)
        assert stage.levels_below + 1 - stage.alpha(round(kimg * 1000)) == pytest.approx(official_lod(kimg), abs=3e-3)
        if official_resolution(kimg - 1) == official_resolution(kimg + 1):  # otherwise either of two stages is right
            assert stage.resolution == resolution, kimg
            assert stage.batch == OFFICIAL_MINIBATCH[8][int(math.log2(resolution)) - 2], kimg
            assert stage.learning_rate == OFFICIAL_RATE.get(resolution, 0.001), kimg
        ticks, kimg = ticks + 1, kimg + OFFICIAL_TICK[resolution]
    assert ticks > 900


def test_ffhq_takes_as_many_steps_as_published(ffhq):
    """About 718 thousand iterations, of which 537.5 thousand are at 1024x1024."""
    steps = [stage.num_images // stage.batch for stage in ffhq]
    assert sum(steps) == pytest.approx(718_000, rel=1e-3)
    assert steps[-1] == pytest.approx(537_500, rel=1e-5)


def test_ffhq_resets_adam_where_the_official_loop_does(ffhq):
    """Fifteen times: at the start of training, and at the start and the end of each of seven fades."""
    resets = [
        nimg / 1000
        for stage in ffhq
        for nimg in range(stage.start_nimg, min(stage.end_nimg, 8_600_000), stage.batch)
        if stage.resets_optimizers(nimg)
    ]
    assert len(resets) == 15
    assert resets == pytest.approx(official_resets(), abs=1.1)  # at 8x8 schedule updates are 1.024 kimg apart


@pytest.mark.parametrize("gpus", OFFICIAL_MINIBATCH)
def test_auto_batches_are_those_of_the_official_script(gpus):
    """The batches agree for every number of GPUs and every resolution of the published table."""
    tree = {"name": "t", "data": {"source": "digits", "resolution": 1024}, "ray": {"workers": gpus}}
    plan = stages(build(tree | {"training": {"batch": "auto", "start_resolution": 4}}))
    assert [stage.batch for stage in plan] == OFFICIAL_MINIBATCH[gpus]


def test_defaults_are_those_of_one_gpu():
    """Batches, rates and repeats of a config that sets none of them."""
    plan = stages(build({"name": "t", "data": {"source": "digits", "resolution": 1024}}))
    assert [stage.batch for stage in plan] == OFFICIAL_MINIBATCH[1][1:]
    assert [stage.learning_rate for stage in plan] == [OFFICIAL_RATE.get(stage.resolution, 0.001) for stage in plan]
    assert {stage.repeats for stage in plan} == {4}


@pytest.mark.parametrize(
    ("resolution", "kimg"), [(1024, 8400), (512, 7200), (256, 6000), (128, 4800), (64, 3600), (32, 2400)]
)
def test_last_fade_ends_when_published(resolution, kimg):
    """lod reaches 0 at 1,200 kimg for every doubling from 8x8."""
    last = stages(config(resolution))[-1]
    assert (last.start_nimg + last.fade_images) / 1000 == pytest.approx(kimg, abs=0.5)


def test_alpha_is_constant_between_two_schedule_updates():
    stage = stages(config(16, minibatch_repeats=4, batch=8, fade_kimg=1, stable_kimg=1))[1]
    alphas = [stage.alpha(stage.start_nimg + i * 8) for i in range(12)]
    assert alphas == [0] * 4 + [0.032] * 4 + [0.064] * 4


@given(
    st.integers(1, 64),
    st.integers(1, 20),
    st.floats(0.01, 3),
    st.floats(0, 3),
    st.sampled_from([{}, {16: {"batch": 12}}]),
)
def test_alpha_is_one_from_the_end_of_the_fade_on(batch, repeats, fade, stable, own):
    """Adam is reset there too, however far apart two updates of the schedule are."""
    plan = stages(
        config(16, batch=batch * 4, fade_kimg=fade, stable_kimg=stable, minibatch_repeats=repeats, stages=own)
    )
    stage = plan[1]
    steps = range(stage.start_nimg, stage.end_nimg, stage.batch)
    end = stage.start_nimg + stage.fade_images
    assert all(stage.alpha(nimg) == 1 for nimg in (*steps, stage.end_nimg) if nimg >= end)
    assert all(stage.alpha(nimg) < 1 for nimg in steps if nimg < end)
    after = [nimg for nimg in steps if nimg >= end]
    assert [nimg for nimg in steps if stage.resets_optimizers(nimg)] == [stage.start_nimg, *after[:1]]


def test_a_stable_part_shorter_than_an_update_of_the_schedule_trains_the_new_resolution_alone():
    stage = stages(config(16, minibatch_repeats=100, batch=8, fade_kimg=1, stable_kimg=0.1))[1]
    resets = [
        nimg - stage.start_nimg for nimg in range(stage.start_nimg, stage.end_nimg, 8) if stage.resets_optimizers(nimg)
    ]
    assert (stage.alpha(stage.end_nimg), resets) == (1, [0, 1000])


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


@pytest.mark.parametrize("d_steps", [1, 2, 3, 5])
def test_every_so_many_steps_of_a_stage_update_g(d_steps):
    """The count begins anew with each stage, and the images of a stage stay what they are."""
    one, several = (
        stages(config(16, batch=8, d_steps=count, fade_kimg=0.04, stable_kimg=0.05)) for count in (1, d_steps)
    )
    for plain, stage in zip(one, several, strict=True):
        assert stage == plain.model_copy(update={"d_steps": d_steps})
        nimgs = range(stage.start_nimg, stage.end_nimg, stage.batch)
        updates = [stage.updates_G(nimg) for nimg in nimgs]
        assert updates == [(step + 1) % d_steps == 0 for step in range(len(nimgs))]
        for now in range(len(nimgs) + 1):
            for steps in range(now + 1):
                counted = stage.num_G_updates(stage.start_nimg + now * stage.batch, steps)
                assert counted == sum(updates[now - steps : now]), (now, steps)


def test_half_life_of_the_average():
    assert ema_beta(32, 10) ** (10_000 / 32) == pytest.approx(0.5)
    assert [round(ema_beta(batch, 10), 5) for batch in (256, 128, 64, 32, 16, 4)] == [
        0.98241,
        0.99117,
        0.99557,
        0.99778,
        0.99889,
        0.99972,
    ]
    assert ema_beta(32, 0) == 0


def test_intervals_are_crossed_once():
    assert [nimg for nimg in range(0, 1000, 96) if crossed(0.25, nimg, nimg + 96)] == [192, 480, 672, 960]
