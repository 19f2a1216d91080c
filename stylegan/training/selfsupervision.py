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
from stylegan.networks.discriminator import AnyDiscriminator
from stylegan.networks.layers import TURNS
from stylegan.training.schedule import Stage

Metrics = dict[str, Tensor]


def with_turned_reals(
    loss: Tensor, D: AnyDiscriminator, training: TrainingConfig, *, reals: Tensor, turned: Tensor, alpha: float | Tensor
) -> tuple[Tensor, Metrics]:
    """Add the term for turned reals to the loss of D. Without `training.rotation` the loss stays as it is.

    Args:
        loss: GAN loss and penalties, a number.
        D: the discriminator.
        training: contains the weight.
        reals: images as D sees them, [n, C, r, r] in [-1, 1].
        turned: the positions of those that are turned, int64.
        alpha: weight of D's newest block.

    Returns:
        The loss with the term, and the metrics of the term.
    """
    if training.rotation is None:
        return loss, {}
    term, accuracy = rotation_loss(D, reals.detach().index_select(0, turned), alpha=alpha)
    metrics = {"loss/rotation_d": term, "rotation/accuracy_real": accuracy}
    return loss * _gan_weight(training) + training.rotation.weight_d * term, metrics


def with_turned_fakes(
    loss: Tensor,
    D: AnyDiscriminator,
    training: TrainingConfig,
    *,
    fakes: Tensor,
    turned: Tensor,
    alpha: float | Tensor,
    weight: float | Tensor,
) -> tuple[Tensor, Metrics]:
    """Add the term for turned fakes to the loss of G. Without `training.rotation` the loss stays as it is.

    Args:
        loss: GAN loss, a number.
        D: the discriminator.
        training: contains whether the GAN loss is dropped.
        fakes: images [n, C, r, r], with their graph back to G.
        turned: the positions of those that are turned, int64.
        alpha: weight of D's newest block.
        weight: of the term. With the number 0 it is only a metric.

    Returns:
        The loss with the term, and the metrics of the term.
    """
    if training.rotation is None:
        return loss, {}
    with torch.set_grad_enabled(isinstance(weight, Tensor) or weight > 0):
        term, accuracy = rotation_loss(D, fakes.index_select(0, turned), alpha=alpha)
    metrics = {
        "loss/rotation_g": term,
        "rotation/accuracy_fake": accuracy,
        "rotation/weight_g": torch.ones_like(term) * weight,
    }
    return loss * _gan_weight(training) + weight * term, metrics


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


def turned_positions(config: Config, stage: Stage, positions: Tensor) -> Tensor:
    """Return which of the samples at these positions of the global batch are turned, int64, ascending.

    Turned images are spread evenly over the global batch, in the order in which ranks share it: one whole
    minibatch-stddev group after the other. Their choice depends on the batch alone, and every rank has equally many. If
    the fraction is one part in `mbstd_group`, they are the last such part of the batch, as in the paper's code.
    """
    rotation, batch = config.training.rotation, stage.batch
    if rotation is None:
        return torch.empty(0, dtype=torch.int64)
    group = min(config.model.group, batch)
    groups, count = batch // group, rotation.num_turned(batch)
    order = positions % groups * group + positions // groups  # position of each sample in the order of whole groups
    return torch.nonzero((order + 1) * count // batch > order * count // batch).squeeze(1)


def rotation_loss(D: AnyDiscriminator, images: Tensor, *, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """Turn upright images [n, C, r, r] by all angles and classify the turns.

    Returns:
        Cross-entropy of D's answers, and the share of right answers; both are numbers.
    """
    logits = D.rotation_logits(turn_all_ways(images), alpha=alpha)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    angles = torch.arange(TURNS * len(images), device=images.device) // len(images)
    right = logits.detach().argmax(1) == angles
    return F.cross_entropy(logits, angles), right.to(logits.dtype).mean()


def turn_all_ways(images: Tensor) -> Tensor:
    """Turn images [n, C, r, r] by all four angles.

    Returns:
        [4n, C, r, r]: all images upright, then all turned counter-clockwise by 90 degrees, by 180, by 270.
    """
    return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(TURNS)])
