"""Steps of the two players: what they change, what they draw, and that the number of ranks does not matter."""

import copy

import numpy as np
import pytest
import torch
from ranks import in_double, on_two_ranks

from stylegan.config.file import build
from stylegan.errors import DivergedError
from stylegan.training import distributed
from stylegan.training.schedule import ema_beta, stages
from stylegan.training.state import start_stage
from stylegan.training.step import discriminator_step, generator_step, process_reals
from stylegan.training.step_inputs import Draws, Share, discriminator_inputs
from stylegan.training.update import MAX_SKIPPED, DivergenceCheck

TREE = {
    "name": "t",
    "data": {"source": "digits", "resolution": 16, "channels": 1},
    "model": {
        "latent_size": 8,
        "mapping_layers": 2,
        "mapping_fmaps": 8,
        "fmap_base": 64,
        "fmap_max": 8,
        "conditional": True,
    },
    "training": {
        "start_resolution": 8,
        "batch": 16,
        "fade_kimg": 0.064,
        "stable_kimg": 0.064,
        "r1_gamma": 10,
        "mirror": True,
    },
}


def make(**training):
    config = build({**TREE, "training": {**TREE["training"], **training}})
    stage = stages(config)[0]
    return config, stage, start_stage(config, stage, num_labels=3, previous=None)


def reals(count=16, resolution=8):
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, 1, resolution, resolution), dtype=np.uint8))


LABELS = torch.arange(16) % 3


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before, network):
    return {name for name, value in before.items() if not torch.equal(network.state_dict()[name], value)}


def test_each_player_changes_only_its_own_weights():
    config, stage, state = make()
    g, d = weights(state.G), weights(state.D)
    discriminator_step(state, config, stage, reals(), LABELS)
    assert changed(g, state.G) == {"w_avg"}  # updated whenever G runs in training
    assert changed(d, state.D)
    d = weights(state.D)
    generator_step(state, config, stage, LABELS)
    assert changed(d, state.D) == set()
    assert changed(g, state.G) > {"w_avg"}


def one_step(state, config, stage):
    discriminator_step(state, config, stage, reals(), LABELS)
    generator_step(state, config, stage, LABELS)


def test_average_of_w_follows_twice_per_iteration():
    config, stage, state = make()
    discriminator_step(state, config, stage, reals(), LABELS)
    once = state.G.w_avg.clone()
    generator_step(state, config, stage, LABELS)
    assert not torch.equal(once, state.G.w_avg)


def test_generator_average_moves_in_the_d_step_and_copies_buffers():
    config, stage, state = make()
    generator_step(state, config, stage, LABELS)
    before, current = weights(state.G_ema), weights(state.G)
    discriminator_step(state, config, stage, reals(), LABELS)
    beta = ema_beta(stage.batch, config.training.ema_kimg)
    for name, parameter in state.G_ema.named_parameters():
        torch.testing.assert_close(parameter, before[name] * beta + current[name] * (1 - beta))
    torch.testing.assert_close(state.G_ema.w_avg, state.G.w_avg)


def test_d_and_g_draw_independently_and_the_same_again_after_a_restart():
    config, stage, _ = make()
    positions = torch.arange(stage.batch)
    one, again = (Draws.of(config, stage, 32, "D", positions) for _ in range(2))
    other, later = Draws.of(config, stage, 32, "G", positions), Draws.of(config, stage, 48, "D", positions)
    z = one.normal(8)
    assert torch.equal(z, again.normal(8))
    assert not torch.equal(z, other.normal(8))
    assert not torch.equal(z, later.normal(8))


@pytest.mark.parametrize("player", ["D", "G"])
def test_every_step_of_a_player_draws_new_numbers(player):
    """From the same state and images, another image count gives another update."""
    after = []
    for nimg in (0, 16):
        config, stage, state = make(mirror=False)
        state.nimg = nimg
        if player == "D":
            discriminator_step(state, config, stage, reals(), LABELS)
        else:
            generator_step(state, config, stage, LABELS)
        after.append(weights(getattr(state, player)))
    assert any(not torch.equal(value, after[1][name]) for name, value in after[0].items())


@pytest.mark.parametrize("static", [False, True])
def test_mixing_cuts_inside_the_current_layers(static):
    """Over many steps every cutoff from 1 to the last current layer occurs, none beyond; ten per cent do not mix."""
    config, stage, _ = make()
    share = Share.of(config, stage, torch.device("cpu"))
    steps = [discriminator_inputs(config, stage, n, share, reals(), LABELS, static=static) for n in range(0, 1600, 16)]
    cutoffs = [int(step.cutoff) for step in steps]
    assert set(cutoffs) == {1, 2, 3, 4}  # 4 layers at 8x8; 4 means not mixed
    assert 0.02 <= cutoffs.count(4) / len(cutoffs) <= 0.25
    assert all(static or (step.mixed_z is None) == (step.cutoff == 4) for step in steps)


def test_reals_are_faded_and_mirrored():
    images = reals(2)
    full = process_reals(images, alpha=1.0)
    assert full.min() >= -1
    assert full.max() <= 1
    coarse = process_reals(images, alpha=0.0)
    assert torch.equal(coarse[:, :, ::2, ::2], coarse[:, :, 1::2, 1::2])
    torch.testing.assert_close(process_reals(images, alpha=0.25), 0.25 * full + 0.75 * coarse)
    flipped = process_reals(images, alpha=1.0, flips=torch.tensor([True, False]))
    assert torch.equal(flipped[0], full[0].flip(2))
    assert torch.equal(flipped[1], full[1])


@pytest.mark.parametrize("player", ["D", "G"])
def test_non_finite_gradients_skip_the_update_and_end_the_stage_when_they_stay(player):
    """Weights and Adam's state do not change, good updates of the other player do not count, and 50 in a row end it."""
    config, stage, state = make()
    network, optimizer = getattr(state, player), getattr(state, f"opt_{player}")
    one_step(state, config, stage)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    before, moments = weights(network), copy.deepcopy(optimizer.state_dict())
    for _ in range(MAX_SKIPPED - 1):
        if player == "D":
            discriminator_step(state, config, stage, reals(), LABELS)
        else:
            generator_step(state, config, stage, LABELS)
    other = "G" if player == "D" else "D"
    assert {name: int(count) for name, count in state.skipped.items()} == {player: MAX_SKIPPED - 1, other: 0}
    assert state.sums["optim/skipped"] == MAX_SKIPPED - 1
    DivergenceCheck(state).check()
    one_step(state, config, stage)
    assert changed({k: v for k, v in before.items() if not v.isnan().any()}, network) <= {"w_avg"}
    torch.testing.assert_close(optimizer.state_dict()["state"], moments["state"], rtol=0, atol=0)
    with pytest.raises(DivergedError, match=r"diverged at 0 images: 5. updates of [DG].*learning_rate"):
        DivergenceCheck(state).check()


def test_r1_weight_is_given_at_the_final_resolution():
    """If the run ends two levels higher, the same stage needs 16 times the gamma for the same update."""
    gradients = []
    for resolution, gamma in ((8, 10.0), (32, 160.0)):
        tree = copy.deepcopy(TREE) | {"data": {"source": "digits", "resolution": resolution, "channels": 1}}
        config = build({**tree, "training": {**TREE["training"], "r1_gamma": gamma, "mirror": False}})
        stage = stages(config)[0]
        state = start_stage(config, stage, num_labels=3, previous=None)
        discriminator_step(state, config, stage, reals(), LABELS)
        gradients.append(weights(state.D))
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name])


def train_three_steps():
    config, stage, state = make()
    share, data = distributed.own_share(stage.batch, config.model.mbstd_group), reals(48, stage.resolution)
    for start in range(0, 48, 16):
        batch = start + share
        discriminator_step(state, config, stage, data[batch], batch % 3)
        generator_step(state, config, stage, LABELS)
        state.nimg += stage.batch
    return state.state_dict()


def test_two_ranks_train_like_one(tmp_path):
    """With the same global batch on 1 and 2 ranks, all weights agree to 1e-5 after 3 full D and G steps with R1."""
    one, two = in_double(train_three_steps), on_two_ranks(train_three_steps, tmp_path)
    for network in ("G", "D", "G_ema"):
        for name, value in one[network].items():
            assert torch.equal(two[0][network][name], two[1][network][name]), name
            torch.testing.assert_close(
                two[0][network][name], value, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_shares_of_ranks_are_whole_groups(monkeypatch):
    """With 8 images and groups of 4, the groups are {0,2,4,6} and {1,3,5,7}: one for each rank."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.own_share(8, 4).tolist())
    assert shares == [[0, 2, 4, 6], [1, 3, 5, 7]]
