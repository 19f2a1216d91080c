"""Losses, penalties and spectral normalisation together: ranks, restarts, seeds and probes behave as ever."""

import pytest
import torch
from contents import assert_same, curves, train_killed, training_state
from ranks import in_double, on_two_ranks

from stylegan.config.file import build
from stylegan.training import distributed
from stylegan.training.loop import train_stage
from stylegan.training.schedule import stages
from stylegan.training.state import newest_checkpoint, start_stage
from stylegan.training.step import discriminator_step, generator_step

BATCH = 16
VARIANTS = {
    "wgan-gp": {"loss": "wgan", "r1_gamma": 0, "gp_weight": 10, "drift_weight": 0.001},
    "lazy-gp": {"loss": "hinge", "r1_gamma": 0, "gp_weight": 10, "drift_weight": 0.001, "penalty_interval": 2},
    "several-d": {"loss": "hinge", "r1_gamma": 3, "d_steps": 3},
    "lazy-r1-r2": {"loss": "saturating", "r1_gamma": 3, "r2_gamma": 3, "penalty_interval": 2},
}


def make(variant, seed=0):
    tree = {
        "name": "t",
        "seed": seed,
        "data": {"source": "digits", "resolution": 16, "channels": 1},
        "model": {
            "latent_size": 8,
            "mapping_layers": 2,
            "mapping_fmaps": 8,
            "fmap_base": 64,
            "fmap_max": 8,
            "spectral_norm": True,
        },
        "training": {"batch": BATCH, "fade_kimg": 0.064, "stable_kimg": 0.064} | VARIANTS[variant],
    }
    config = build(tree)
    stage = stages(config)[0]
    return config, stage, start_stage(config, stage, num_labels=0, previous=None)


def train_three_steps(variant, **options):
    """Train each player for three steps on this rank's share of the same images."""
    config, stage, state = make(variant, **options)
    data = torch.randint(0, 256, (3, BATCH, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    share = distributed.own_share(BATCH, config.model.mbstd_group)
    for reals in data:
        discriminator_step(state, config, stage, reals[share], None)
        generator_step(state, config, stage, None)
        state.nimg += BATCH
    return state


def train_all():
    return {variant: train_three_steps(variant).state_dict() for variant in VARIANTS}


def test_two_ranks_train_like_one(tmp_path):
    """On 1 and 2 ranks all weights, and the vectors of the power method, agree after three steps of every variant."""
    one, two = in_double(train_all), on_two_ranks(train_all, tmp_path)
    for variant in VARIANTS:
        for network in ("G", "D", "G_ema"):
            for name, value in one[variant][network].items():
                of_ranks = [saved[variant][network][name] for saved in two]
                assert torch.equal(*of_ranks), (variant, name)
                message = f"{variant} {network} {name}"
                torch.testing.assert_close(
                    of_ranks[0], value, rtol=0, atol=1e-5, msg=lambda text, message=message: f"{message}: {text}"
                )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_seed_decides_everything(variant):
    assert_same(train_three_steps(variant).state_dict(), train_three_steps(variant).state_dict())
    one, other = (train_three_steps(variant, seed=seed).D.head.dense0.parametrizations.weight[0]._u for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_it_is_the_same_to_the_last_bit(job, variant, monkeypatch):
    """Grown from 4x4 to 8x8 and killed at the second checkpoint of 8x8: the power method continues where it was."""
    options = {"training": VARIANTS[variant], "model": {"spectral_norm": True}}
    previous = train_stage(job(4, "one", **options))
    whole, broken = (job(8, name, previous, **options) for name in ("one", "two"))
    complete = train_stage(whole)
    train_killed(broken, monkeypatch)
    assert newest_checkpoint(broken.uri).nimg < broken.stage.end_nimg
    assert_same(training_state(train_stage(broken).uri), training_state(complete.uri))
    assert curves(broken.uri) == curves(whole.uri)


def test_probes_and_grids_in_between_do_not_move_d(job):
    """With spectral normalisation a forward pass in training mode moves D's buffers; measuring must not move them."""
    options = {"model": {"spectral_norm": True}}
    plain, probed = (
        job(4, "one", **options),
        job(4, "two", **options, snapshots={"probe_kimg": 0.004, "samples_kimg": 0.004}),
    )
    states = [training_state(train_stage(one).uri) for one in (plain, probed)]
    assert any("probe/accuracy" in point for _, point in curves(probed.uri))
    assert_same(states[0]["D"], states[1]["D"])
