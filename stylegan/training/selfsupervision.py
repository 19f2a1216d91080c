"""Self-supervision of SS-GAN (Chen et al. 2019, "Self-Supervised GANs via Auxiliary Rotation Loss", section 3).

D also classifies by which multiple of 90 degrees an image was turned. It cannot forget that while G changes:

    L_D = L_D(GAN) + beta  * cross-entropy on turned reals     moves D only
    L_G = L_G(GAN) + alpha * cross-entropy on turned fakes     moves G only

(The paper prints both with the opposite sign of the GAN's value; these are the losses that its code minimises.)

A part of the batch is turned, each image by all four angles, and goes through D once more. Turned images enter neither
the GAN loss nor the gradient penalties, and they do not change the minibatch standard deviation of the GAN's batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.config.sections import RotationConfig, TrainingConfig
from stylegan.config.tree import Config
from stylegan.networks.discriminator import TURNS, Discriminator
from stylegan.training import distributed
from stylegan.training.schedule import Stage
from stylegan.training.state import TrainState

Metrics = dict[str, Tensor]


def with_turned_reals(
    loss: Tensor, state: TrainState, *, config: Config, stage: Stage, reals: Tensor
) -> tuple[Tensor, Metrics]:
    """Add the term for turned reals to the loss of D. Without `training.rotation` the loss stays as it is.

    Args:
        loss: GAN loss and penalties, a number.
        reals: this rank's images as D sees them, [batch / ranks, C, r, r] in [-1, 1].

    Returns:
        The loss with the term, and the metrics of the term.
    """
    rotation = config.training.rotation
    if rotation is None:
        return loss, {}
    images = reals.detach()[turned_positions(config, stage).to(reals.device)]
    term, accuracy = rotation_loss(state.D, images, alpha=stage.alpha(state.nimg))
    metrics = {"loss/rotation_d": term, "rotation/accuracy_real": accuracy}
    return loss * _gan_weight(config.training) + rotation.weight_d * term, metrics


def with_turned_fakes(
    loss: Tensor, state: TrainState, *, config: Config, stage: Stage, fakes: Tensor
) -> tuple[Tensor, Metrics]:
    """Add the term for turned fakes to the loss of G. Without `training.rotation` the loss stays as it is.

    Args:
        loss: GAN loss, a number.
        fakes: this rank's images, [batch / ranks, C, r, r], with their graph back to G.

    Returns:
        The loss with the term, and the metrics of the term.
    """
    rotation = config.training.rotation
    if rotation is None:
        return loss, {}
    weight = weight_g(rotation, state.nimg)
    images = fakes[turned_positions(config, stage).to(fakes.device)]
    with torch.set_grad_enabled(weight > 0):  # with the weight 0 the term is only a metric
        term, accuracy = rotation_loss(state.D, images, alpha=stage.alpha(state.nimg))
    metrics = {
        "loss/rotation_g": term,
        "rotation/accuracy_fake": accuracy,
        "rotation/weight_g": torch.full_like(term, weight),
    }
    return loss * _gan_weight(config.training) + weight * term, metrics


def rotation_only(training: TrainingConfig) -> bool:
    """Return whether the GAN losses, and the penalties that belong to them, are dropped."""
    return training.rotation is not None and training.rotation.only


def _gan_weight(training: TrainingConfig) -> float:
    """Return the weight of the GAN losses.

    A dropped loss is multiplied by 0, not left out: so every weight still has a gradient, and Adam a state for it.
    """
    return 0.0 if rotation_only(training) else 1.0


def weight_g(rotation: RotationConfig, nimg: int) -> float:
    """Return the paper's alpha after `nimg` images of the run: constant, or falling linearly to 0 at `decay_kimg`."""
    if rotation.decay_kimg is None:
        return rotation.weight_g
    return rotation.weight_g * max(1 - nimg / (1000 * rotation.decay_kimg), 0.0)


def turned_positions(config: Config, stage: Stage) -> Tensor:
    """Return the positions of the turned images in this rank's share, int64, ascending.

    Turned images are spread evenly over the global batch, in the order in which ranks share it: one whole
    minibatch-stddev group after the other. Their choice depends on the batch alone, and every rank has equally many. If
    the fraction is one part in `mbstd_group`, they are the last such part of the batch, as in the paper's code.
    """
    rotation, batch = config.training.rotation, stage.batch
    if rotation is None:
        return torch.empty(0, dtype=torch.int64)
    share, group = distributed.own_share(batch, config.model.mbstd_group), min(config.model.mbstd_group, batch)
    groups, count = batch // group, rotation.num_turned(batch)
    order = share % groups * group + share // groups  # position of each sample in the order of whole groups
    return torch.nonzero((order + 1) * count // batch > order * count // batch).squeeze(1)


def rotation_loss(D: Discriminator, images: Tensor, *, alpha: float) -> tuple[Tensor, Tensor]:
    """Turn upright images [n, C, r, r] by all angles and classify the turns.

    Returns:
        Cross-entropy of D's answers, and the share of right answers; both are numbers.
    """
    logits = D.rotation_logits(turn_all_ways(images), alpha=alpha)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    angles = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    right = logits.detach().argmax(1) == angles
    return F.cross_entropy(logits, angles), right.to(logits.dtype).mean()


def turn_all_ways(images: Tensor) -> Tensor:
    """Turn images [n, C, r, r] by all four angles.

    Returns:
        [4n, C, r, r]: all images upright, then all turned counter-clockwise by 90 degrees, by 180, by 270.
    """
    return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(TURNS)])
