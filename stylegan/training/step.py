"""One step of each player (StyleGAN v1: non-saturating loss, R1 on reals; Karras et al. 2019, section 4 and appendix C).

Every random number of a step is drawn for the global batch from a generator seeded by (seed, stage, nimg, player) and then
cut to this rank's share: a killed run repeats the same draws, and the number of ranks changes nothing but rounding.
Two choices follow, both equal to the official code on one GPU: style mixing is decided once per global minibatch, and the
running average of w follows the mean over all ranks (the official code keeps one per GPU and saves the first).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegan.config import Config
from stylegan.errors import DivergedError
from stylegan.networks.generator import mix
from stylegan.training import distributed, losses
from stylegan.training.schedule import Stage, ema_beta
from stylegan.training.state import TrainState

MAX_SKIPPED = 50  # updates in a row without a finite gradient before the stage gives up
PLAYERS = ("D", "G")


@dataclass
class Draws:
    """The random numbers of one player's step, for the samples of this rank."""

    batch: int  # global
    share: Tensor  # which of them are ours
    device: torch.device
    tensors: torch.Generator
    host: np.random.Generator  # for decisions that the host needs

    @classmethod
    def of(cls, config: Config, stage: Stage, nimg: int, player: str, device: torch.device) -> Draws:
        """Seeded by (config.seed, stage, nimg, player) alone."""
        seeds = np.random.SeedSequence([config.seed, stage.resolution, nimg, PLAYERS.index(player)]).spawn(2)
        tensors = torch.Generator(device).manual_seed(int(seeds[0].generate_state(1, np.uint64)[0] >> 1))
        share = distributed.own_share(stage.batch, config.model.mbstd_group).to(device)
        return cls(stage.batch, share, device, tensors, np.random.default_rng(seeds[1]))

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1), [own share, *shape]."""
        return torch.randn(self.batch, *shape, generator=self.tensors, device=self.device)[self.share]

    def uniform(self) -> Tensor:
        """U(0, 1), [own share]."""
        return torch.rand(self.batch, generator=self.tensors, device=self.device)[self.share]

    def noise(self, layer: int, n: int, resolution: int) -> Tensor:
        """Fresh noise for one layer, [n, 1, resolution, resolution]."""
        return self.normal(1, resolution, resolution)


def process_reals(images: Tensor, *, alpha: float, flips: Tensor | None = None) -> Tensor:
    """uint8 [N, C, r, r] to [-1, 1], mirrored where `flips`, faded like the generator's output."""
    x = images.to(torch.get_default_dtype()) * (2 / 255) - 1
    if flips is not None:
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
    if alpha < 1:
        coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
        x = torch.lerp(coarse, x, alpha)
    return x


def generate(state: TrainState, config: Config, labels: Tensor | None, *, alpha: float, draws: Draws) -> Tensor:
    """Images of G in training mode: style mixing, fresh noise, and the running average of w is updated."""
    G, model = state.G, config.model
    w = G.mapping(draws.normal(model.latent_size), labels)
    mean_w = w.detach().mean(0)
    distributed.mean_([mean_w])
    G.update_w_avg(mean_w, model.w_avg_beta)
    cutoff = G.num_layers
    if model.styles and draws.host.random() < model.style_mixing_prob:
        cutoff = int(draws.host.integers(1, G.num_layers))
    w2 = G.mapping(draws.normal(model.latent_size), labels) if cutoff < G.num_layers else w
    return G.synthesis(mix(w, w2, cutoff, G.num_layers), alpha=alpha, noise=draws.noise)


def discriminator_step(state: TrainState, config: Config, stage: Stage, reals: Tensor, labels: Tensor | None) -> None:
    """One D update and one update of the average of G.

    Args:
        state: changed in place; its `sums` receive the losses.
        reals: this rank's images, uint8 [batch / ranks, C, r, r].
        labels: their classes, int64 [batch / ranks], None if unconditional.
    """
    alpha = stage.alpha(state.nimg)
    draws = Draws.of(config, stage, state.nimg, "D", state.device)
    flips = draws.uniform() < 0.5 if config.training.mirror else None
    with torch.no_grad():
        images = process_reals(reals.to(state.device, non_blocking=True), alpha=alpha, flips=flips)
        fakes = generate(state, config, labels, alpha=alpha, draws=draws)
    gamma = losses.native_gamma(config.training.r1_gamma, stage.levels_below)
    images.requires_grad_(gamma > 0)
    scores_real = state.D(images, labels, alpha=alpha)
    scores_fake = state.D(fakes, labels, alpha=alpha)
    loss = losses.discriminator_nonsaturating(scores_real, scores_fake).mean()
    penalty = losses.r1_penalty(scores_real, images).mean() if gamma else torch.zeros_like(loss)
    _update(state, state.D, state.opt_D, loss + gamma / 2 * penalty)
    _update_average(state, ema_beta(stage.batch, config.training.ema_kimg))
    _add(state, {"loss/d": loss, "loss/r1": penalty, "scores/real": scores_real.mean(), "scores/fake": scores_fake.mean()})


def generator_step(state: TrainState, config: Config, stage: Stage, label_table: Tensor | None) -> None:
    """One G update; labels are drawn from the data set's (`label_table`, int64 [num_images], None if unconditional)."""
    alpha = stage.alpha(state.nimg)
    draws = Draws.of(config, stage, state.nimg, "G", state.device)
    labels = None
    if label_table is not None:
        labels = label_table[(draws.uniform() * len(label_table)).long()]
    state.D.requires_grad_(False)
    fakes = generate(state, config, labels, alpha=alpha, draws=draws)
    loss = losses.generator_nonsaturating(state.D(fakes, labels, alpha=alpha)).mean()
    _update(state, state.G, state.opt_G, loss)
    state.D.requires_grad_(True)
    _add(state, {"loss/g": loss})


def _update(state: TrainState, network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Gradients averaged over ranks; an update with a gradient that is not finite is skipped on all of them."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    distributed.mean_(gradients)
    finite = torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()
    if finite:
        optimizer.step()
        state.skipped = 0
    else:
        state.skipped += 1
        _add(state, {"optim/skipped": torch.ones((), device=state.device)})
    optimizer.zero_grad(set_to_none=True)
    if state.skipped >= MAX_SKIPPED:
        raise DivergedError(
            f"training diverged at {state.nimg} images: {MAX_SKIPPED} updates in a row had gradients that are not finite; "
            "lower training.learning_rate or raise training.r1_gamma"
        )


def _update_average(state: TrainState, beta: float) -> None:
    """G_ema follows G; buffers (w_avg, noise) are copied."""
    with torch.no_grad():
        averaged: list[Tensor] = list(state.G_ema.parameters())
        current: list[Tensor] = list(state.G.parameters())
        torch._foreach_lerp_(averaged, current, 1 - beta)
        for mean, now in zip(state.G_ema.buffers(), state.G.buffers(), strict=True):
            mean.copy_(now)


def _add(state: TrainState, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        state.sums[name] = state.sums.get(name, torch.zeros((), device=state.device)) + value.detach()
