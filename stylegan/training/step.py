"""One step of each player (Karras et al. 2019, section 4 and appendix C), with the losses and penalties of the config.

Every random number of a step is drawn for the global batch, from a generator seeded by (seed, stage, nimg, player), and
then cut to this rank's share. So a resumed run repeats the draws of the killed one, and the number of ranks changes
nothing but rounding. That holds for devices of one kind: a CPU and GPUs of other models draw other numbers from the same
seed. Among mixed GPUs every rank then has a global batch of its own to cut from, and the samples are as independent as
ever, but a run cannot be repeated on other machines.

Drawing the global batch on every rank costs little: noise has 2.7 times as many numbers as the image has pixels, and
the networks take thousands of operations for each of them. Ranks that drew their share only could not draw the same
numbers for another number of ranks.

Two choices follow from that. Both equal the official code on one GPU: style mixing is decided once per global
minibatch, and the running average of w follows the mean over all ranks (the official code keeps one average per GPU and
saves the first).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.config.sections import TrainingConfig
from stylegan.config.tree import Config
from stylegan.images import to_float
from stylegan.networks.generator import mix
from stylegan.training import distributed, losses
from stylegan.training.schedule import Stage, ema_beta
from stylegan.training.selfsupervision import rotation_only, with_turned_fakes, with_turned_reals
from stylegan.training.state import TrainState
from stylegan.training.update import add_sums, loss_scale, update, update_average

PLAYERS = ("D", "G")


@dataclass
class Draws:
    """The random numbers of one player's step, for the samples of this rank."""

    batch: int  # size of the global batch
    share: Tensor  # positions of this rank's samples in it
    device: torch.device
    tensors: torch.Generator
    host: np.random.Generator  # for decisions that the host makes

    @classmethod
    def of(cls, config: Config, stage: Stage, nimg: int, player: str, device: torch.device) -> Draws:
        """Return the draws of a step, which depend on (config.seed, stage, nimg, player) alone."""
        seeds = np.random.SeedSequence([config.seed, stage.resolution, nimg, PLAYERS.index(player)]).spawn(2)
        tensors = torch.Generator(device).manual_seed(int(seeds[0].generate_state(1, np.uint64)[0] >> 1))
        share = distributed.own_share(stage.batch, config.model.mbstd_group).to(device)
        return cls(stage.batch, share, device, tensors, np.random.default_rng(seeds[1]))

    def normal(self, *shape: int) -> Tensor:
        """Draw from N(0, 1), [own share, *shape]."""
        return torch.randn(self.batch, *shape, generator=self.tensors, device=self.device)[self.share]

    def uniform(self) -> Tensor:
        """Draw from U(0, 1), [own share]."""
        return torch.rand(self.batch, generator=self.tensors, device=self.device)[self.share]

    def noise(self, layer: int, n: int, resolution: int) -> Tensor:
        """Draw fresh noise for one layer, [n, 1, resolution, resolution]."""
        return self.normal(1, resolution, resolution)


def process_reals(images: Tensor, *, alpha: float, flips: Tensor | None = None) -> Tensor:
    """Prepare reals for D: scale them to [-1, 1], mirror them where `flips` is true, and fade them like G's output.

    Args:
        images: uint8 [N, C, r, r].
        alpha: weight of the resolution r; the rest is the mean of each 2x2 pixels.
        flips: bool [N]; None mirrors nothing.

    Returns:
        [N, C, r, r] in [-1, 1].
    """
    x = to_float(images, torch.get_default_dtype())
    if flips is not None:
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
    if alpha < 1:
        coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
        x = torch.lerp(coarse, x, alpha)
    return x


def generate(state: TrainState, config: Config, labels: Tensor | None, *, alpha: float, draws: Draws) -> Tensor:
    """Compute images of G in training mode: with style mixing and fresh noise. Updates the running average of w."""
    G, model = state.G, config.model

    # Draw the latents, and decide whether and from which layer on to mix styles.
    z, cutoff = draws.normal(model.latent_size), G.num_layers
    if model.styles and draws.host.random() < model.style_mixing_prob:
        cutoff = int(draws.host.integers(1, G.num_layers))

    # Map both latents of every image in one pass: small matrix products wait for the weights to arrive from memory.
    if cutoff < G.num_layers:
        z = torch.cat([z, draws.normal(model.latent_size)])
        labels = None if labels is None else labels.repeat(2)
    w = G.mapping(z, labels)
    w1, w2 = w[: len(draws.share)], w[-len(draws.share) :]

    # Update the average of w.
    mean_w = w1.detach().mean(0)
    distributed.mean_([mean_w])
    G.update_w_avg(mean_w, model.w_avg_beta)

    # Synthesise.
    return G.synthesis(mix(w1, w2, cutoff, G.num_layers), alpha=alpha, noise=draws.noise)


def discriminator_step(state: TrainState, config: Config, stage: Stage, reals: Tensor, labels: Tensor | None) -> None:
    """Make one D update and one update of the average of G.

    With `training.penalty_interval` above 1, every so many steps the gradient penalties are a second update of D after
    the first, with as much more weight (StyleGAN2's lazy regularisation, Karras et al. 2020, section 3.1 and appendix
    B).

    Args:
        state: changed in place; the losses are added to its `sums`.
        reals: this rank's images, uint8 [batch / ranks, C, r, r].
        labels: their classes, int64 [batch / ranks], None if unconditional.
    """
    training, alpha = config.training, stage.alpha(state.nimg)
    lazy = training.penalty_interval > 1
    score = partial(state.D, labels=labels, alpha=alpha)

    # Reals and fakes.
    draws = Draws.of(config, stage, state.nimg, "D", state.device)
    flips = draws.uniform() < 0.5 if training.mirror else None
    with torch.no_grad():
        images = process_reals(reals.to(state.device, non_blocking=True), alpha=alpha, flips=flips)
        fakes = generate(state, config, labels, alpha=alpha, draws=draws)

    # Scores. Images with a penalty in this update must require gradients before they are scored.
    points = {} if lazy else penalty_points(training, images, fakes, draws)
    scores_real, scores_fake = score(images), score(fakes)

    # GAN loss.
    loss = losses.DISCRIMINATOR[training.loss](scores_real, scores_fake).mean()
    metrics = {"loss/d": loss, "scores/real": scores_real.mean(), "scores/fake": scores_fake.mean()}
    total = loss

    # Drift penalty on the scores of reals.
    if training.drift_weight:
        total = total + training.drift_weight * scores_real.square().mean()

    # Gradient penalties in the same update.
    if points:
        known_scores = {"r1": scores_real, "r2": scores_fake}
        scored = {name: (x, known_scores[name] if name in known_scores else score(x)) for name, x in points.items()}
        penalty, means = losses.penalties(training, stage.levels_below, scored, scale=loss_scale(state, "D", training))
        total, metrics = total + penalty, metrics | means

    # Self-supervision.
    total, rotation_metrics = with_turned_reals(total, state, config=config, stage=stage, reals=images)

    # Update of D.
    update(state, "D", total, training)

    # Gradient penalties in an update of their own.
    if lazy and stage.has_penalty(state.nimg) and not rotation_only(training):
        scored = {name: (x, score(x)) for name, x in penalty_points(training, images, fakes, draws).items()}
        weight, scale = training.penalty_interval, loss_scale(state, "D", training)
        scale = None if scale is None else weight * scale
        penalty, means = losses.penalties(training, stage.levels_below, scored, scale=scale)
        update(state, "D", weight * penalty, training, kind="D by its penalties")
        metrics |= means

    # Average of G, and sums for the curves.
    update_average(state, ema_beta(stage.batch, training.ema_kimg))
    add_sums(state, metrics | rotation_metrics)


def penalty_points(training: TrainingConfig, reals: Tensor, fakes: Tensor, draws: Draws) -> dict[str, Tensor]:
    """Return the images at which the active gradient penalties measure D's slope, with requires_grad.

    These are the reals for r1 and the fakes for r2 (the tensors themselves), and for gp a random point on the line
    between each pair.
    """
    points = {}
    if training.r1_gamma:
        points["r1"] = reals
    if training.r2_gamma:
        points["r2"] = fakes
    if training.gp_weight:
        points["gp"] = torch.lerp(reals, fakes, draws.uniform()[:, None, None, None].to(reals.dtype))
    return {name: images.requires_grad_() for name, images in points.items()}


def generator_step(state: TrainState, config: Config, stage: Stage, label_table: Tensor | None) -> None:
    """Make one G update.

    Args:
        state: changed in place; the losses are added to its `sums`.
        label_table: the labels of the data set, int64 [num_images], from which labels are drawn; None if unconditional.
    """
    alpha = stage.alpha(state.nimg)

    # Labels.
    draws = Draws.of(config, stage, state.nimg, "G", state.device)
    labels = None
    if label_table is not None:
        labels = label_table[(draws.uniform() * len(label_table)).long()]

    # GAN loss, without gradients for the weights of D.
    state.D.requires_grad_(False)
    fakes = generate(state, config, labels, alpha=alpha, draws=draws)
    loss = losses.GENERATOR[config.training.loss](state.D(fakes, labels, alpha=alpha)).mean()

    # Self-supervision.
    total, rotation_metrics = with_turned_fakes(loss, state, config=config, stage=stage, fakes=fakes)

    # Update of G, and sums for the curves.
    update(state, "G", total, config.training)
    state.D.requires_grad_(True)
    add_sums(state, {"loss/g": loss} | rotation_metrics)
