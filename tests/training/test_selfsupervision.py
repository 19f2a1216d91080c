"""The rotation loss: which images are turned, what the right answers are, and which weights the loss moves."""

import numpy as np
import pytest
import torch
from ranks import in_double, on_two_ranks
from sklearn.datasets import load_digits

from stylegan.config.file import build
from stylegan.config.sections import RotationConfig
from stylegan.training import distributed
from stylegan.training.schedule import stages
from stylegan.training.selfsupervision import rotation_loss, turn_all_ways, turned_positions, weight_g
from stylegan.training.state import start_stage
from stylegan.training.step import discriminator_step, generator_step

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
    "training": {"start_resolution": 8, "batch": 16, "fade_kimg": 0.064, "stable_kimg": 0.064, "r1_gamma": 10},
}
LABELS = torch.arange(16) % 3


def make(rotation, *, model=None, **training):
    config = build(
        TREE
        | {"model": TREE["model"] | (model or {}), "training": TREE["training"] | {"rotation": rotation} | training}
    )
    stage = stages(config)[0]
    return config, stage, start_stage(config, stage, num_labels=3, previous=None)


def reals(count=16, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8))


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(one, other):
    """Assert that the tensors that both have are equal to the last bit."""
    common = one.keys() & other.keys()
    assert len(common) > 5
    for name in common:
        assert torch.equal(one[name], other[name]), name


def test_turns_are_those_of_numpy():
    """One block of the batch for each of k = 0, 1, 2, 3 quarter turns counter-clockwise."""
    images = torch.randn(3, 2, 8, 8)
    expected = np.concatenate([np.rot90(images.numpy(), k, axes=(2, 3)) for k in range(4)])
    np.testing.assert_array_equal(turn_all_ways(images).numpy(), expected)


def test_loss_is_the_cross_entropy_of_the_right_turn():
    """Image by image, the right answer for an image turned by k quarters is k."""
    _, _, state = make({})
    images = torch.randn(3, 1, 8, 8)
    loss, accuracy = rotation_loss(state.D, images, alpha=1.0)
    chosen, right = [], []
    for image in images:
        turned_by = [torch.from_numpy(np.rot90(image.numpy(), k, axes=(1, 2)).copy()) for k in range(4)]
        probabilities = state.D.rotation_logits(torch.stack(turned_by)).softmax(1)
        chosen += [probabilities[k, k].log() for k in range(4)]
        right += [float(probabilities[k].argmax() == k) for k in range(4)]
    torch.testing.assert_close(loss, -torch.stack(chosen).mean())
    assert accuracy == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("decay_kimg", "nimg", "expected"),
    [(None, 10**9, 0.2), (10, 0, 0.2), (10, 2_500, 0.15), (10, 10_000, 0), (10, 11_000, 0)],
)
def test_weight_of_g_falls_linearly_to_zero(decay_kimg, nimg, expected):
    assert weight_g(RotationConfig(decay_kimg=decay_kimg), nimg) == pytest.approx(expected)


@pytest.mark.parametrize(("group", "fraction"), [(4, 0.25), (4, 0.5), (4, 1.0), (2, 0.25), (1, 0.25), (16, 0.25)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_turns_equally_many_and_all_ranks_the_same_images_as_one(monkeypatch, group, fraction, ranks):
    config, stage, _ = make({"fraction": fraction}, model={"mbstd_group": group})
    whole = turned_positions(config, stage, torch.arange(16)).tolist()
    assert len(whole) == 16 * fraction
    if group * ranks > 16:
        return  # ranks take whole groups only
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = distributed.own_share(16, group)
        parts.append(set(share[turned_positions(config, stage, share)].tolist()))
    assert {len(part) for part in parts} == {len(whole) // ranks}
    assert set.union(*parts) == set(whole)


def test_a_fraction_of_one_in_a_group_turns_the_last_images_of_the_batch():
    config, stage, _ = make({"fraction": 0.25})
    assert turned_positions(config, stage, torch.arange(16)).tolist() == [12, 13, 14, 15]


def test_each_player_changes_only_its_own_weights():
    """Turned reals move D and its head but not G; turned fakes move G but not D."""
    config, stage, state = make({"only": True})
    g, d = weights(state.G), weights(state.D)
    discriminator_step(state, config, stage, reals(), LABELS)
    assert {name for name, value in state.G.state_dict().items() if not torch.equal(value, g[name])} == {"w_avg"}
    moved = {name for name, value in state.D.state_dict().items() if not torch.equal(value, d[name])}
    assert moved == set(d) - {"head.dense1.weight", "head.dense1.bias", "from_rgb.0.weight", "from_rgb.0.bias"}
    g, d = weights(state.G), weights(state.D)
    generator_step(state, config, stage, LABELS)
    assert_equal(d, state.D.state_dict())
    assert not torch.equal(g["synthesis.to_rgb.1.weight"], state.G.state_dict()["synthesis.to_rgb.1.weight"])


@pytest.mark.parametrize("only", [True, False])
def test_rotation_alone_teaches_d_nothing_about_fakes(only):
    """Without the GAN losses, D's update does not depend on G's images; with them it does."""
    after = []
    for shift in (0.0, 1.0):
        config, stage, state = make({"only": only})
        with torch.no_grad():
            state.G.synthesis.to_rgb[-1].bias += shift
        discriminator_step(state, config, stage, reals(), LABELS)
        after.append(weights(state.D))
    assert all(torch.equal(value, after[1][name]) for name, value in after[0].items()) == only


def test_rotation_alone_teaches_g_nothing_about_reals():
    """If reals do not move D, G's update does not depend on them."""
    after = []
    for seed in (0, 1):
        config, stage, state = make({"only": True})
        start = weights(state.G)
        state.opt_D.param_groups[0]["lr"] = 0.0
        discriminator_step(state, config, stage, reals(seed=seed), LABELS)
        generator_step(state, config, stage, LABELS)
        after.append(weights(state.G))
    assert_equal(*after)
    assert not torch.equal(start["synthesis.to_rgb.1.weight"], after[0]["synthesis.to_rgb.1.weight"])


def test_turned_images_enter_neither_the_gan_loss_nor_the_penalty():
    """With weight 0 both updates equal those of a GAN without rotation; with any weight the measured losses do."""
    for rotation in ({"weight_d": 0, "weight_g": 0}, {}):
        config, stage, state = make(rotation)
        plain_config, _, plain = make(None)
        for one, what in ((plain, plain_config), (state, config)):
            discriminator_step(one, what, stage, reals(), LABELS)
            if rotation:  # twice, because Adam's first step depends on signs only
                discriminator_step(one, what, stage, reals(), LABELS)
                generator_step(one, what, stage, LABELS)
                generator_step(one, what, stage, LABELS)
        assert plain.sums["loss/r1"] > 0
        for name, value in plain.sums.items():
            assert torch.equal(value, state.sums[name]), name
        if rotation:
            assert_equal(plain.D.state_dict(), state.D.state_dict())
            assert_equal(plain.G.state_dict(), state.G.state_dict())
        else:
            before, after = plain.D.state_dict(), state.D.state_dict()
            assert not torch.equal(before["head.conv.weight"], after["head.conv.weight"])


def test_rotation_alone_has_no_gan_loss_for_g():
    """Without the GAN loss and with weight 0 for turned fakes, G does not move."""
    config, stage, state = make({"only": True, "weight_g": 0})
    before = {name: value.clone() for name, value in state.G.named_parameters()}
    generator_step(state, config, stage, LABELS)
    assert_equal(before, dict(state.G.named_parameters()))


@pytest.mark.parametrize("interval", [1, 2])
def test_rotation_alone_has_no_penalty(interval):
    """The weight of R1, in the same update or in one of its own, does not change D's updates."""
    after = []
    for gamma in (1, 1000):
        config, stage, state = make({"only": True}, r1_gamma=gamma, penalty_interval=interval)
        for _ in range(2):
            discriminator_step(state, config, stage, reals(), LABELS)
        after.append(weights(state.D))
    assert_equal(*after)


def test_g_follows_rotation_until_its_weight_is_zero():
    """Before decay_kimg G moves differently than without rotation, after it the same."""
    moved = {}
    for rotation, name in ((None, "plain"), ({"decay_kimg": 1}, "early"), ({"decay_kimg": 0.016}, "late")):
        config, stage, state = make(rotation)
        state.nimg = 16
        generator_step(state, config, stage, LABELS)
        generator_step(state, config, stage, LABELS)  # again: Adam's first step depends on signs only
        moved[name] = weights(state.G)
        if rotation:
            assert state.sums["rotation/weight_g"] / 2 == pytest.approx(weight_g(config.training.rotation, 16))
    assert_equal(moved["late"], moved["plain"])
    assert any(not torch.equal(value, moved["plain"][name]) for name, value in moved["early"].items())


def test_the_head_is_part_of_the_state_and_survives_growing():
    config, _, state = make({})
    head = state.state_dict()["D"]["rotation.weight"].clone()
    assert any(value is state.D.rotation.weight for value in state.opt_D.param_groups[0]["params"])
    state.grow(config)
    assert torch.equal(state.D.rotation.weight, head)
    assert state.D.rotation_logits(torch.randn(8, 1, 16, 16), alpha=0.5).shape == (8, 4)
    assert "rotation.weight" not in make(None)[2].D.state_dict()


def digits():
    """Return all digits, uint8 [1797, 1, 8, 8]."""
    return torch.from_numpy((load_digits().images * (255 / 16)).round().astype(np.uint8))[:, None]


def test_rotation_alone_trains_a_classifier():
    """After a few dozen steps D recognises the turns of unseen digits far more often than once in four."""
    tree = TREE | {
        "data": {"source": "digits", "resolution": 8, "channels": 1},
        "model": TREE["model"] | {"fmap_max": 32, "fmap_base": 256},
        "training": TREE["training"] | {"rotation": {"only": True, "fraction": 1.0}, "learning_rate": 0.003},
    }
    config = build(tree)
    stage = stages(config)[0]
    state = start_stage(config, stage, num_labels=3, previous=None)
    images = digits()
    unseen = images[1000:1400].float() * (2 / 255) - 1
    with torch.no_grad():
        before = rotation_loss(state.D, unseen, alpha=1.0)[1]
    for step in range(40):
        discriminator_step(state, config, stage, images[step * 16 : step * 16 + 16], LABELS)
        state.nimg += stage.batch
    with torch.no_grad():
        after = rotation_loss(state.D, unseen, alpha=1.0)[1]
    assert before < 0.45
    assert after > 0.5


def train_three_steps():
    config, stage, state = make({"decay_kimg": 0.1})
    share, data = distributed.own_share(stage.batch, config.model.mbstd_group), reals(48)
    for start in range(0, 48, 16):
        batch = start + share
        discriminator_step(state, config, stage, data[batch], batch % 3)
        generator_step(state, config, stage, LABELS)
        state.nimg += stage.batch
    distributed.mean_(state.sums[name] for name in sorted(state.sums))
    return state.state_dict()


def test_two_ranks_train_like_one(tmp_path):
    """Weights agree to 1e-5 after 3 steps of each player; metrics averaged over ranks agree with those of one rank."""
    one, (two, _) = in_double(train_three_steps), on_two_ranks(train_three_steps, tmp_path)
    for network in ("G", "D"):
        for name, value in one[network].items():
            torch.testing.assert_close(
                two[network][name], value, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert "rotation/accuracy_fake" in one["sums"]
    for name, value in one["sums"].items():
        torch.testing.assert_close(
            two["sums"][name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
