"""Tests of the yardstick alone; the tests of networks and training compare its numbers with the product's."""

import torch
from benchmarks.plain import Draws, PlainDiscriminator, PlainGenerator, PlainTraining

from stylegan.config.sections import ModelConfig

MODEL = ModelConfig(latent_size=8, mapping_layers=1, mapping_fmaps=8, fmap_base=64, fmap_max=8)


def test_random_draws_are_those_of_training() -> None:
    """Check that every cutoff occurs, that one step in ten is not mixed, and that layers have noise for each image."""
    G = PlainGenerator(MODEL, resolution=16, channels=1)
    draws = [Draws.random(G, 4) for _ in range(200)]
    assert {draw.cutoff for draw in draws} == {1, 2, 3, 4, 5, 6}
    assert 0.02 < sum(draw.cutoff == 6 for draw in draws) / 200 < 0.2
    assert [noise.shape for noise in draws[0].noise] == [(4, 1, 4 << i // 2, 4 << i // 2) for i in range(6)]
    assert not torch.equal(draws[0].z1, draws[0].z2)


def test_it_trains() -> None:
    """Check that D's loss falls on a single batch, and that both networks and the average change."""
    torch.manual_seed(0)
    G, D = PlainGenerator(MODEL, resolution=8, channels=1), PlainDiscriminator(MODEL, resolution=8, channels=1)
    training, reals, draws = PlainTraining(G, D, learning_rate=0.01), torch.randn(8, 1, 8, 8), Draws.random(G, 8)
    before = [list(network.parameters())[-1].clone() for network in (training.G, training.D, training.G_ema)]
    losses = []
    for _ in range(20):
        losses.append(training.d_step(reals, None, draws).item())
        training.g_step(None, Draws.random(G, 8))
    assert losses[-1] < losses[0]
    assert all(
        not torch.equal(old, list(network.parameters())[-1])
        for old, network in zip(before, (G, D, training.G_ema), strict=True)
    )
