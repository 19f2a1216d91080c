"""Lazy regularisation: gradient penalties in every k-th step only, as an update of their own (StyleGAN2, appendix B).

D's Adam is corrected for these updates in state.py, see test_state.py.
"""

import copy

import pytest
import torch
from contents import assert_same, curves, train_killed, training_state

from stylegan import storage
from stylegan.config.file import build
from stylegan.errors import DivergedError
from stylegan.training import losses
from stylegan.training import update as update_module
from stylegan.training.loop import train_stage
from stylegan.training.schedule import PENALTIES, Stage, stages
from stylegan.training.state import newest_checkpoint, start_stage
from stylegan.training.step import discriminator_step, generate, process_reals
from stylegan.training.step_inputs import Share, discriminator_inputs
from stylegan.training.update import DivergenceCheck

BATCH = 8


def make(**training):
    tree = {
        "name": "t",
        "data": {"source": "digits", "resolution": 32, "channels": 1},
        "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
        "training": {"batch": BATCH, "learning_rate": 0.01} | training,
    }
    config = build(tree)
    stage = stages(config)[0]
    return config, stage, start_stage(config, stage, num_labels=0, previous=None)


REALS = torch.randint(0, 256, (BATCH, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_penalty_steps_follow_from_the_image_count():
    stage = Stage(
        resolution=8,
        levels_below=0,
        start_nimg=100,
        fade_images=0,
        stable_images=10_000,
        batch=8,
        learning_rate=1,
        repeats=4,
        penalty_interval=3,
    )
    steps = range(100, 100 + 10 * 8, 8)
    assert [stage.has_penalty(nimg) for nimg in steps] == [True, False, False] * 3 + [True]
    for first in range(10):
        for last in range(first, 10):
            counted = sum(stage.has_penalty(nimg) for nimg in steps[first:last])
            assert stage.num_penalties(steps[last], last - first) == counted


def test_a_penalty_is_a_second_update_with_the_weight_of_its_interval():
    """The step equals one update by the GAN loss, then one by k times gamma / 2 times R1 at the native resolution."""
    config, stage, state = make(penalty_interval=4, r1_gamma=10)
    expected = copy.deepcopy(state.D)
    share = Share.of(config, stage, torch.device("cpu"))
    inputs = discriminator_inputs(config, stage, 0, share, REALS, None, static=False)
    images = process_reals(REALS, alpha=1.0)
    with torch.no_grad():
        fakes, _ = generate(copy.deepcopy(state.G), config.model, inputs)
    discriminator_step(state, config, stage, REALS, None)

    adam = torch.optim.Adam(expected.parameters(), lr=0.01 * 4 / 5, betas=(0.0, 0.99 ** (4 / 5)), eps=1e-8)
    losses.discriminator_nonsaturating(expected(images), expected(fakes)).mean().backward()
    adam.step()
    adam.zero_grad(set_to_none=True)
    images.requires_grad_()
    penalty = losses.r1_penalty(expected(images), images).mean()
    (4 * 10 / 4**2 / 2 * penalty).backward()  # two levels below 32x32
    adam.step()
    for name, value in state.D.state_dict().items():
        torch.testing.assert_close(
            value, expected.state_dict()[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(state.sums["loss/r1"], penalty.detach())


@pytest.mark.parametrize(
    "penalty",
    [{"r1_gamma": 10}, {"r1_gamma": 0, "r2_gamma": 10}, {"r1_gamma": 0, "gp_weight": 10, "loss": "wgan"}],
    ids=["r1", "r2", "gp"],
)
def test_steps_between_two_penalties_have_none(penalty):
    """In these steps the weight of the penalty changes nothing, and the curves get no value of the penalty."""
    after = {}
    for nimg in (0, BATCH):
        for factor in (1, 100):
            weight = {key: value * factor if key != "loss" else value for key, value in penalty.items()}
            config, stage, state = make(penalty_interval=2, **weight)
            state.nimg = nimg
            discriminator_step(state, config, stage, REALS, None)
            assert any(name in state.sums for name in PENALTIES) == (nimg == 0)
            after[nimg, factor] = weights(state.D)
    assert any(not torch.equal(value, after[0, 100][name]) for name, value in after[0, 1].items())
    assert_same(after[BATCH, 1], after[BATCH, 100])


@pytest.mark.parametrize("interval", [1, 3])
def test_r2_and_gp_are_where_they_belong(interval):
    """R2 is computed at the fakes, WGAN-GP at points between the pairs."""
    config, stage, state = make(penalty_interval=interval, r1_gamma=0, r2_gamma=3)
    seen = recorded(state.D)
    discriminator_step(state, config, stage, REALS, None)
    fakes = seen[1].detach()
    assert torch.equal(seen[-1], fakes)
    config, stage, state = make(penalty_interval=interval, r1_gamma=0, gp_weight=3, loss="wgan")
    seen = recorded(state.D)
    discriminator_step(state, config, stage, REALS, None)
    reals, fakes, between = seen
    shares = ((between - reals) / (fakes - reals)).detach()
    position = shares.flatten(1).median(1).values  # of each point on its line
    torch.testing.assert_close(
        between.detach(), torch.lerp(reals.detach(), fakes.detach(), position[:, None, None, None]), atol=1e-4, rtol=0
    )
    assert (position > 0).all()
    assert (position < 1).all()
    assert len(position.unique()) == BATCH


def recorded(D):
    """Return a list that receives all images that D sees from now on."""
    seen = []
    D.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    return seen


def test_drift_pulls_scores_of_reals_only():
    """Drift adds the gradient of epsilon times the mean squared score of the reals to that of WGAN."""
    results = []
    for drift in (0.0, 0.5):
        config, stage, state = make(loss="wgan", r1_gamma=0, gp_weight=10, drift_weight=drift)
        gradients = {}
        state.D.head.dense1.bias.register_hook(lambda g, found=gradients: found.update(bias=g.clone()))
        discriminator_step(state, config, stage, REALS, None)
        results.append((gradients["bias"], state.sums))
    (plain, _), (drifted, sums) = results
    torch.testing.assert_close(plain, torch.zeros(1), atol=1e-6, rtol=0)  # a bias moves reals and fakes alike
    torch.testing.assert_close(drifted, 0.5 * 2 * sums["scores/real"][None], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss", ["nonsaturating", "saturating", "wgan", "hinge"])
def test_every_loss_leaves_the_other_player_alone(loss):
    config, stage, state = make(loss=loss, r1_gamma=1, r2_gamma=1)
    before = {player: dict(weights(getattr(state, player))) for player in "GD"}
    discriminator_step(state, config, stage, REALS, None)
    assert {n for n, v in state.G.state_dict().items() if not torch.equal(v, before["G"][n])} == {"w_avg"}
    assert all(parameter.grad is None for player in "GD" for parameter in getattr(state, player).parameters())
    assert all(value.isfinite() for value in state.sums.values())


LAZY = {"penalty_interval": 3, "r1_gamma": 1.0}


def test_curves_show_the_mean_of_the_steps_with_a_penalty(job):
    """Points over one, five and four steps contain one, one and two steps with R1.

    Almost without learning, R1 equals that of the same steps of a run with R1 in every step.
    """
    still = {"training": LAZY | {"learning_rate": 1e-12}}
    previous = train_stage(job(4, "one", **still))
    lazy = job(8, "one", previous, **still, snapshots={"log_kimg": 0.02})
    plain = job(8, "two", previous, training=still["training"] | {"penalty_interval": 1}, snapshots={"log_kimg": 0.004})
    assert [lazy.stage.has_penalty(nimg) for nimg in range(16, 56, 4)] == [True, False, False] * 3 + [True]
    train_stage(lazy)
    train_stage(plain)
    found, every = ({nimg: point["loss/r1"] for nimg, point in curves(one.uri)} for one in (lazy, plain))
    assert found == pytest.approx({20: every[20], 40: every[32], 56: (every[44] + every[56]) / 2}, rel=1e-4)


def test_a_point_without_a_penalty_has_no_value_for_it(job):
    previous = train_stage(job(4, "one", training=LAZY))
    lazy = job(8, "one", previous, training=LAZY)
    train_stage(lazy)
    # The point at 40 covers the steps at 32 and 36, which have no penalty.
    assert [nimg for nimg, point in curves(lazy.uri) if "loss/r1" in point] == [24, 32, 48, 56]


def test_killed_between_two_penalties_and_resumed_it_is_the_same(job, monkeypatch):
    """Resumed at a step without a penalty, a stage has the weights, Adam and curves of an uninterrupted one."""
    options = {"training": LAZY}
    previous = train_stage(job(4, "one", **options))
    whole = job(8, "one", previous, **options)
    train_stage(whole)
    broken = job(8, "two", previous, **options)
    train_killed(broken, monkeypatch)
    killed = newest_checkpoint(broken.uri)
    assert killed.nimg < broken.stage.end_nimg
    assert not broken.stage.has_penalty(killed.nimg)
    again = train_stage(broken)
    assert_same(training_state(again.uri), training_state(storage.join(whole.uri, storage.name(again.uri))))
    assert curves(broken.uri) == curves(whole.uri)


def test_skipped_penalties_end_a_stage_although_the_other_updates_work(monkeypatch):
    """Each kind of update has a counter of its own: an update of D that works does not reset that of the penalties."""
    config, stage, state = make(penalty_interval=2)
    known = losses.penalties

    def broken(*args, **more):
        penalty, means = known(*args, **more)
        return penalty * torch.nan, means

    monkeypatch.setattr(losses, "penalties", broken)
    monkeypatch.setattr(update_module, "MAX_SKIPPED", 3)
    for _ in range(5):
        DivergenceCheck(state).check()
        discriminator_step(state, config, stage, REALS, None)
        state.nimg += BATCH
    assert {kind: int(count) for kind, count in state.skipped.items()} == {"G": 0, "D": 0, "D by its penalties": 3}
    with pytest.raises(DivergedError, match=r"diverged at 40 images: 3 updates of D by its penalties in a row"):
        DivergenceCheck(state).check()
    saved = state.state_dict()
    again = start_stage(config, stage, num_labels=0, previous=None)
    again.load_state_dict(saved)
    with pytest.raises(DivergedError):
        DivergenceCheck(again).check()

    # A penalty that works starts the count anew.
    monkeypatch.setattr(losses, "penalties", known)
    state.nimg += BATCH
    discriminator_step(state, config, stage, REALS, None)
    DivergenceCheck(state).check()


def test_penalties_that_are_not_lazy_have_no_counter():
    config, stage, state = make()
    discriminator_step(state, config, stage, REALS, None)
    assert set(state.skipped) == {"G", "D"}
