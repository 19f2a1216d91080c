"""A worker's share that goes through the networks in several parts trains like one that goes through as a whole."""

import pytest
import torch
from ranks import in_double, on_two_ranks

from stylegan.config.file import build
from stylegan.training import distributed
from stylegan.training.schedule import stages
from stylegan.training.state import TrainState
from stylegan.training.step import discriminator_step, generator_step
from stylegan.training.step_inputs import Share

BATCH = 16
LABELS = torch.arange(40) % 3
VARIANTS = {
    "r1": {},
    "lazy": {"r1_gamma": 3, "r2_gamma": 3, "penalty_interval": 2, "loss": "hinge"},
    "wgan-gp": {"loss": "wgan", "r1_gamma": 0, "gp_weight": 10, "drift_weight": 0.001},
    "rotation": {"rotation": {}, "mirror": True},
}


def train(variant, largest):
    """Train both players for three steps within a fade, and return the state."""
    config = build(
        {
            "name": "t",
            "data": {"source": "digits", "resolution": 16, "channels": 1},
            "model": {
                "latent_size": 8,
                "mapping_layers": 2,
                "mapping_fmaps": 8,
                "fmap_base": 64,
                "fmap_max": 8,
                "conditional": True,
                "spectral_norm": variant == "lazy",
            },
            "training": {"batch": BATCH, "fade_kimg": 0.128, "max_batch_per_worker": largest} | VARIANTS[variant],
        }
    )
    stage = stages(config)[1]
    state = TrainState(config, 16, num_labels=3)
    state.reset_optimizers(config, stage.learning_rate)
    state.nimg = stage.start_nimg + 4 * BATCH  # alpha is 0.5
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in [*state.G.parameters(), *state.D.parameters()]:
            if parameter.unique().numel() == 1:  # Adam would make whole steps of the rounding of a constant channel
                parameter += torch.randn_like(parameter) * 0.3
    data = torch.randint(0, 256, (3, BATCH, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    share = distributed.own_share(BATCH, config.model.mbstd_group)
    for reals in data:
        discriminator_step(state, config, stage, reals[share], LABELS[share])
        generator_step(state, config, stage, LABELS)
        state.nimg += BATCH
    return state


def numbers(state):
    found = {
        f"{name}.{key}": value
        for name, network in state.networks().items()
        for key, value in network.state_dict().items()
    }
    return found | {f"sum of {name}": value for name, value in state.sums.items()}


def assert_near(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("variant", "largest"), [("r1", 8), *((variant, 4) for variant in VARIANTS)])
def test_parts_train_like_the_whole(variant, largest):
    """All weights, averages, vectors of the power method and sums for the curves agree to the rounding of float64."""
    whole, parts = in_double(lambda: train(variant, None)), in_double(lambda: train(variant, largest))
    assert_near(numbers(parts), numbers(whole))


def train_in_parts():
    return {variant: numbers(train(variant, 4)) for variant in ("lazy", "rotation")}


def test_parts_on_two_ranks_train_like_the_whole_on_one(tmp_path):
    """Of the sums, each rank has its own until they are written."""
    for found in on_two_ranks(train_in_parts, tmp_path):
        for variant, parts in found.items():
            whole = numbers(in_double(lambda variant=variant: train(variant, None)))
            weights = [name for name in whole if not name.startswith("sum of")]
            assert_near({name: parts[name] for name in weights}, {name: whole[name] for name in weights})


def test_parts_divide_a_share_into_whole_groups():
    """Groups of 4 of 16 images are {0,4,8,12}, {1,5,9,13}, ...; two parts have two of them each."""
    config = build(
        {
            "name": "t",
            "data": {"source": "digits", "resolution": 8, "channels": 1},
            "training": {"batch": BATCH, "max_batch_per_worker": 8},
        }
    )
    share = Share.of(config, stages(config)[0], torch.device("cpu"))
    assert [part.rows.tolist() for part in share.parts] == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
