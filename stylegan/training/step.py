"""One step of each player (Karras et al. 2019, section 4 and appendix C), with the losses and penalties of the config.

A step reads the state and its `StepInputs`, and decides nothing by what it computes. So it can be recorded and replayed
(`graphs.py`), and it waits for no GPU.

The share of a rank may go through the networks in several parts, one after the other, whose gradients are added. Each
part counts for the same number of images, and no minibatch-stddev group is divided, so that the sum is that of the
whole share but for rounding.

Two choices equal the official code on one GPU: style mixing is decided once per global minibatch, and the running
average of w follows the mean over all ranks (the official code keeps one average per GPU and saves the first).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.config.sections import ModelConfig, TrainingConfig
from stylegan.config.tree import Config
from stylegan.images import to_float
from stylegan.networks.generator import Generator, mix
from stylegan.networks.ops import fade, fades
from stylegan.training import distributed, losses
from stylegan.training.schedule import Stage, ema_beta
from stylegan.training.selfsupervision import rotation_only, with_turned_fakes, with_turned_reals
from stylegan.training.state import TrainState
from stylegan.training.step_inputs import Share, StepInputs, discriminator_inputs, generator_inputs
from stylegan.training.update import add_sums, loss_scale, update, update_average

Metrics = dict[str, Tensor]


def process_reals(images: Tensor, *, alpha: float | Tensor, flips: Tensor | None = None) -> Tensor:
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
    if fades(alpha):
        coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
        x = fade(coarse, x, alpha)
    return x


def generate(G: Generator, model: ModelConfig, inputs: StepInputs) -> tuple[Tensor, Tensor | None]:
    """Compute images of G in training mode: with style mixing and fresh noise, where it has them.

    Returns:
        Images [n, C, r, r], and the mean w [L] before style mixing, without a graph; None of a `resnet`.
    """
    if model.is_resnet:
        return G.synthesis(G.mapping(inputs.z, inputs.labels)[:, None]), None

    # Map both latents of every image in one pass: small matrix products wait for the weights to arrive from memory.
    z, labels = inputs.z, inputs.labels
    if inputs.mixed_z is not None:
        z = torch.cat([z, inputs.mixed_z])
        labels = None if labels is None else labels.repeat(2)
    w = G.mapping(z, labels)
    w1, w2 = w[: len(inputs.z)], w[-len(inputs.z) :]

    # Synthesise.
    ws = mix(w1, w2, inputs.cutoff, G.num_layers)
    images = G.synthesis(ws, alpha=inputs.alpha, noise=lambda layer, n, resolution: inputs.noise[layer])
    return images, w1.detach().mean(0)


def discriminator_step(
    state: TrainState,
    config: Config,
    stage: Stage,
    reals: Tensor,
    labels: Tensor | None,
    *,
    share: Share | None = None,
) -> None:
    """Make one D update and one update of the average of G.

    Args:
        state: changed in place; the losses are added to its `sums`.
        config: that of the run.
        stage: the present one.
        reals: this rank's images, uint8 [batch / ranks, C, r, r].
        labels: their classes, int64 [batch / ranks], None if unconditional.
        share: of this rank, where it is known.
    """
    share = share or Share.of(config, stage, state.device)
    inputs = discriminator_inputs(config, stage, state.nimg, share, reals, labels, static=False)
    update_discriminator(state, config, stage, share, inputs, has_penalty=stage.has_penalty(state.nimg))


def update_discriminator(
    state: TrainState, config: Config, stage: Stage, share: Share, inputs: StepInputs, *, has_penalty: bool
) -> None:
    """Make the D step of `discriminator_step` from its inputs.

    With `training.penalty_interval` above 1, every so many steps the gradient penalties are a second update of D after
    the first, with as much more weight (StyleGAN2's lazy regularisation, Karras et al. 2020, section 3.1 and appendix
    B).

    Args:
        has_penalty: whether this step has gradient penalties.
    """
    training, pieces = config.training, [inputs.part(part) for part in share.parts]
    lazy = training.penalty_interval > 1

    # Reals and fakes.
    with torch.no_grad():
        reals = [process_reals(_reals(piece), alpha=piece.alpha, flips=piece.flips) for piece in pieces]
        generated = [generate(state.G, config.model, piece) for piece in pieces]
        update_w_avg(state, [mean_w for _, mean_w in generated], config.model.w_avg_beta)
    fakes = [images for images, _ in generated]
    found: list[Metrics] = []  # of each part

    def main_loss(number: int) -> Tensor:
        """Compute the loss of a part: GAN loss, drift, the penalties that are no update of their own, rotation."""
        piece, score = pieces[number], _score(state, pieces[number])

        # Scores. Images with a penalty in this update must require gradients before they are scored.
        points = {} if lazy else penalty_points(training, reals[number], fakes[number], piece.between)
        scores_real, scores_fake = score(reals[number]), score(fakes[number])

        # GAN loss, and the drift penalty on the scores of reals.
        loss = losses.DISCRIMINATOR[training.loss](scores_real, scores_fake).mean()
        metrics = {"loss/d": loss, "scores/real": scores_real.mean(), "scores/fake": scores_fake.mean()}
        total = loss
        if training.drift_weight:
            total = total + training.drift_weight * scores_real.square().mean()

        # Gradient penalties in the same update.
        if points:
            known_scores = {"r1": scores_real, "r2": scores_fake}
            scored = {name: (x, known_scores[name] if name in known_scores else score(x)) for name, x in points.items()}
            scale = loss_scale(state, "D", training, weight=1 / len(pieces))
            penalty, means = losses.penalties(training, stage.levels_below, scored, scale=scale)
            total, metrics = total + penalty, metrics | means

        # Self-supervision.
        turned = share.parts[number].turned
        total, means = with_turned_reals(
            total, state.D, training, reals=reals[number], turned=turned, alpha=piece.alpha
        )
        found.append(metrics | means)
        return total

    def penalty_loss(number: int) -> Tensor:
        """Compute the gradient penalties of a part alone."""
        points = penalty_points(training, reals[number], fakes[number], pieces[number].between)
        score, weight = _score(state, pieces[number]), training.penalty_interval
        scale = loss_scale(state, "D", training, weight=weight / len(pieces))
        scored = {name: (x, score(x)) for name, x in points.items()}
        penalty, means = losses.penalties(training, stage.levels_below, scored, scale=scale)
        found[number] |= means
        return weight * penalty

    # Update of D, and of the gradient penalties in an update of their own.
    update(state, "D", map(main_loss, _each(state, pieces)), training, parts=len(pieces))
    if lazy and has_penalty and not rotation_only(training):
        losses_of_parts = map(penalty_loss, _each(state, pieces))
        update(state, "D", losses_of_parts, training, parts=len(pieces), kind="D by its penalties")

    # Average of G, and sums for the curves.
    update_average(state, ema_beta(stage.batch, training.ema_kimg))
    add_sums(state, _mean_metrics(found))


def generator_step(
    state: TrainState, config: Config, stage: Stage, label_table: Tensor | None, *, share: Share | None = None
) -> None:
    """Make one G update.

    Args:
        state: changed in place; the losses are added to its `sums`.
        config: that of the run.
        stage: the present one.
        label_table: the labels of the data set, int64 [num_images], from which labels are drawn; None if unconditional.
        share: of this rank, where it is known.
    """
    share = share or Share.of(config, stage, state.device)
    inputs = generator_inputs(config, stage, state.nimg, share, label_table, static=False)
    update_generator(state, config, share, inputs)


def update_generator(state: TrainState, config: Config, share: Share, inputs: StepInputs) -> None:
    """Make the G step of `generator_step` from its inputs."""
    pieces, training = [inputs.part(part) for part in share.parts], config.training
    found: list[Metrics] = []  # of each part
    mean_ws: list[Tensor | None] = []

    def loss_of(number: int) -> Tensor:
        """Compute the loss of a part: GAN loss and rotation."""
        piece = pieces[number]
        fakes, mean_w = generate(state.G, config.model, piece)
        mean_ws.append(mean_w)
        loss = losses.GENERATOR[training.loss](_score(state, piece)(fakes)).mean()
        total, means = with_turned_fakes(
            loss,
            state.D,
            training,
            fakes=fakes,
            turned=share.parts[number].turned,
            alpha=piece.alpha,
            weight=piece.turned_weight,
        )
        found.append({"loss/g": loss} | means)
        return total

    # Update of G, without gradients for the weights of D.
    state.D.requires_grad_(False)
    update(state, "G", map(loss_of, _each(state, pieces)), training, parts=len(pieces))
    state.D.requires_grad_(True)

    # Average of w, and sums for the curves.
    update_w_avg(state, mean_ws, config.model.w_avg_beta)
    add_sums(state, _mean_metrics(found))


def penalty_points(training: TrainingConfig, reals: Tensor, fakes: Tensor, between: Tensor | None) -> Metrics:
    """Return the images at which the active gradient penalties measure D's slope, with requires_grad.

    These are the reals for r1 and the fakes for r2 (the tensors themselves), and for gp the point on the line between
    each pair at `between`, [n] in [0, 1].
    """
    points = {}
    if training.r1_gamma:
        points["r1"] = reals
    if training.r2_gamma:
        points["r2"] = fakes
    if training.gp_weight and between is not None:
        points["gp"] = torch.lerp(reals, fakes, between[:, None, None, None].to(reals.dtype))
    return {name: images.requires_grad_() for name, images in points.items()}


def update_w_avg(state: TrainState, mean_ws: Sequence[Tensor | None], beta: float) -> None:
    """Move the average of w towards the mean over parts and ranks, where there is a w."""
    of_parts = [mean_w for mean_w in mean_ws if mean_w is not None]
    if not of_parts:
        return
    mean_w = of_parts[0] if len(of_parts) == 1 else torch.stack(of_parts).mean(0)
    distributed.mean_([mean_w])
    state.G.update_w_avg(mean_w, beta)


def _each(state: TrainState, pieces: Sequence[StepInputs]) -> Iterator[int]:
    """Yield the numbers of the parts. D's buffers, which its passes change, are the same at the start of each.

    These are the vectors of spectral normalisation. A whole share would pass through D as often as one part does.
    """
    buffers: list[Tensor] = list(state.D.buffers()) if len(pieces) > 1 else []
    before = [buffer.clone() for buffer in buffers]
    for number in range(len(pieces)):
        if number and buffers:
            torch._foreach_copy_(buffers, before)
        yield number


def _score(state: TrainState, piece: StepInputs) -> Callable[[Tensor], Tensor]:
    return partial(state.D, labels=piece.labels, alpha=piece.alpha)


def _reals(piece: StepInputs) -> Tensor:
    assert piece.reals is not None
    return piece.reals


def _mean_metrics(found: list[Metrics]) -> Metrics:
    """Return the mean of each metric over the parts."""
    if len(found) == 1:
        return found[0]
    return {name: torch.stack([metrics[name].detach() for metrics in found]).mean() for name in found[0]}
