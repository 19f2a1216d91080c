"""Finds the batch statistics of the averaged generator, which has none of its own.

G trains on the statistics of each batch. Its average is used in evaluation mode, where an image must not depend on those
beside it, and neither the statistics of G nor an average of them fits its weights. So before it draws or is stored, some
batches go through it, and it takes the mean of their statistics: the standing statistics of Brock et al. 2019 (appendix
B). The latents are the same every time, so the statistics are a function of the weights, and nothing of them is a state
of training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan.config.tree import Config
from stylegan.networks.normalisation import of_batch, settle
from stylegan.training.schedule import Stage
from stylegan.training.state import TrainState

BATCHES = 16


def settle_average(state: TrainState, config: Config, stage: Stage, label_table: Tensor | None) -> None:
    """Set the statistics of `state.G_ema`, if it normalises over batches. Every rank finds the same ones by itself.

    Args:
        state: whose average is meant.
        config: that of the run.
        stage: the present one, whose batches are as large.
        label_table: the labels of the data set on the device, int64 [num_images]; None if unconditional.
    """
    layers, G = of_batch(state.G_ema), state.G_ema
    if not layers:
        return
    random = torch.Generator().manual_seed(config.seed)

    def passes() -> None:
        for _ in range(BATCHES):
            z = torch.randn(stage.batch, config.model.latent_size, generator=random).to(state.device)
            labels = None
            if label_table is not None:
                drawn = torch.randint(len(label_table), (stage.batch,), generator=random)
                labels = label_table[drawn.to(state.device)]
            G.synthesis(G.mapping(z, labels)[:, None])

    settle(G, layers, passes)
