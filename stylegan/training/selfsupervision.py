"""Self-supervision of SS-GAN (Chen et al. 2019, "Self-Supervised GANs via Auxiliary Rotation Loss", section 3).

D also tells by which multiple of 90 degrees an image was turned, which it cannot forget while G changes:

    L_D = L_D(GAN) + beta  * cross-entropy on turned reals     moves D only
    L_G = L_G(GAN) + alpha * cross-entropy on turned fakes     moves G only

(The paper prints both with the opposite sign of the GAN's value; these are the losses that its code minimises.) A part of the
batch is turned, each of its images by all four angles, and goes through D once more: turned images enter neither the GAN loss
nor the gradient penalties, and the minibatch standard deviation of the GAN's batch does not know of them.
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
    """The loss of D with its term for turned reals, and the metrics of that; the loss as it is without `training.rotation`.

    Args:
        loss: GAN loss and penalties, a number.
        reals: this rank's images as D sees them, [batch / ranks, C, r, r] in [-1, 1].
    """
    rotation = config.training.rotation
    if rotation is None:
        return loss, {}
    images = reals.detach()[turned(config, stage).to(reals.device)]
    term, accuracy = rotation_loss(state.D, images, alpha=stage.alpha(state.nimg))
    return loss * (not rotation_only(config.training)) + rotation.weight_d * term, {
        "loss/rotation_d": term,
        "rotation/accuracy_real": accuracy,
    }


def with_turned_fakes(
    loss: Tensor, state: TrainState, *, config: Config, stage: Stage, fakes: Tensor
) -> tuple[Tensor, Metrics]:
    """The loss of G with its term for turned fakes, and the metrics of that; the loss as it is without `training.rotation`.

    Args:
        loss: GAN loss, a number.
        fakes: this rank's images with their way back to G, [batch / ranks, C, r, r].
    """
    rotation = config.training.rotation
    if rotation is None:
        return loss, {}
    weight = weight_g(rotation, state.nimg)
    images = fakes[turned(config, stage).to(fakes.device)]
    with torch.set_grad_enabled(weight > 0):  # without a weight it is a mere measurement
        term, accuracy = rotation_loss(state.D, images, alpha=stage.alpha(state.nimg))
    metrics = {
        "loss/rotation_g": term,
        "rotation/accuracy_fake": accuracy,
        "rotation/weight_g": torch.full_like(term, weight),
    }
    return loss * (not rotation_only(config.training)) + weight * term, metrics


def rotation_only(training: TrainingConfig) -> bool:
    """Whether the GAN losses and the penalties that belong to them are dropped."""
    return training.rotation is not None and training.rotation.only


def weight_g(rotation: RotationConfig, nimg: int) -> float:
    """alpha of the paper after `nimg` images of the run: constant, or falling linearly to 0 at `decay_kimg`."""
    if rotation.decay_kimg is None:
        return rotation.weight_g
    return rotation.weight_g * max(1 - nimg / (1000 * rotation.decay_kimg), 0.0)


def turned(config: Config, stage: Stage) -> Tensor:
    """Which images of this rank's share are turned: positions in it, int64, ascending.

    They are spread evenly over the global batch in the order in which ranks share it out, whole minibatch-stddev groups one
    after the other. Which images these are depends on the batch alone, and every rank has equally many of them. At a fraction
    of one part in `mbstd_group` it is the last such part of the batch, as in the paper's code.
    """
    rotation, batch = config.training.rotation, stage.batch
    if rotation is None:
        return torch.empty(0, dtype=torch.int64)
    share, group = distributed.own_share(batch, config.model.mbstd_group), min(config.model.mbstd_group, batch)
    groups, count = batch // group, rotation.num_turned(batch)
    order = share % groups * group + share // groups
    return torch.nonzero((order + 1) * count // batch > order * count // batch).squeeze(1)


def rotation_loss(D: Discriminator, images: Tensor, *, alpha: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of D's answers on upright images [n, C, r, r] and on their turns, and the share of right answers."""
    logits = D.rotation_logits(turns(images), alpha=alpha)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    angles = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
    right = logits.detach().argmax(1) == angles
    return F.cross_entropy(logits, angles), right.to(logits.dtype).mean()


def turns(images: Tensor) -> Tensor:
    """[n, C, r, r] to [4n, C, r, r]: all as they are, all turned by 90 degrees counter-clockwise, by 180, by 270."""
    return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(TURNS)])
