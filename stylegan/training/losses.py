"""GAN losses of both players and the gradient penalties of D.

StyleGAN uses the non-saturating loss with R1 on FFHQ, and WGAN-GP on CelebA-HQ (Karras et al. 2019, appendix C). The
other losses are those of its published code. Every function returns one number per image unless it says otherwise; the
caller takes means.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegan.config.sections import TrainingConfig
from stylegan.networks.convolution import input_gradients


def generator_nonsaturating(scores_fake: Tensor) -> Tensor:
    """Return -log sigmoid(D(G(z))) of each image, [N] -> [N] (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-scores_fake)


def generator_saturating(scores_fake: Tensor) -> Tensor:
    """Return log(1 - sigmoid(D(G(z)))) of each image, [N] -> [N].

    This is the minimax game (Goodfellow et al. 2014, equation 1).
    """
    return -F.softplus(scores_fake)


def generator_linear(scores_fake: Tensor) -> Tensor:
    """Return -D(G(z)) of each image, [N] -> [N].

    This is G's loss in WGAN (Arjovsky et al. 2017) and with the hinge loss (Lim & Ye 2017).
    """
    return -scores_fake


def discriminator_nonsaturating(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Return -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) of each pair, [N], [N] -> [N]; D of both logistic games."""
    return F.softplus(scores_fake) + F.softplus(-scores_real)


def discriminator_wgan(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Return D(G(z)) - D(x) of each pair, [N], [N] -> [N] (Arjovsky et al. 2017). Something must bound D's slope."""
    return scores_fake - scores_real


def discriminator_hinge(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Return relu(1 + D(G(z))) + relu(1 - D(x)) of each pair, [N], [N] -> [N] (Lim & Ye 2017)."""
    return F.relu(1 + scores_fake) + F.relu(1 - scores_real)


# `training.loss` -> the loss of G and the loss of D.
GENERATOR: dict[str, Callable[[Tensor], Tensor]] = {
    "nonsaturating": generator_nonsaturating,
    "saturating": generator_saturating,
    "wgan": generator_linear,
    "hinge": generator_linear,
}
DISCRIMINATOR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nonsaturating": discriminator_nonsaturating,
    "saturating": discriminator_nonsaturating,
    "wgan": discriminator_wgan,
    "hinge": discriminator_hinge,
}


def r1_penalty(scores: Tensor, images: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """Return the squared norm of the gradient of the scores at each image; differentiable itself.

    At reals this is R1, at fakes R2 (Mescheder et al. 2018, section 4.1). The loss is gamma / 2 times this.

    Args:
        scores: [N], computed from `images`.
        images: [N, C, H, W] with requires_grad.
        scale: see `input_gradients`.

    Returns:
        [N].
    """
    gradient = input_gradients(scores, images, scale)
    return gradient.square().sum((1, 2, 3))


def norm_penalty(
    scores: Tensor, images: Tensor, *, target: float = 1.0, levels_below: int = 0, scale: Tensor | None = None
) -> Tensor:
    """Return (|gradient| - target)^2 / target^2 at each image; differentiable itself.

    This is the penalty of WGAN-GP (Gulrajani et al. 2017, equation 3). Where the gradient is exactly zero, its norm has
    no derivative, and sqrt would give NaN. The subgradient 0 is used there: every direction is as good, and 0 is their
    mean. Such an image has the penalty 1 and moves no weight.

    Args:
        scores: [N], computed from `images`.
        images: [N, C, H, W] with requires_grad.
        target: the wanted norm at 2^levels_below times the resolution of `images`; see `native_gamma`.
        levels_below: the gradient of the enlarged images is 2^-levels_below times as long as that of `images`.
        scale: see `input_gradients`.

    Returns:
        [N].
    """
    gradient = input_gradients(scores, images, scale)
    norm = torch.linalg.vector_norm(gradient, dim=(1, 2, 3)) * 2.0**-levels_below
    return (norm / target - 1).square()


def native_gamma(gamma: float, levels_below: int) -> float:
    """Return the R1 weight for images that are 2^levels_below times smaller than the images that `gamma` is meant for.

    StyleGAN computes R1 at images that are enlarged to the final resolution (nearest neighbour) and averaged down again
    inside D. That divides the squared norm by 4 per level.
    """
    return gamma * 4.0**-levels_below


def inner_scale(scale: Tensor | None, weight: float, num_images: int) -> Tensor | None:
    """Return the factor of the first gradient of a penalty in half precision.

    The first gradient g is computed as s g. The gradient of the loss with respect to s g is then of the size
    scale weight / num_images * 2 g / s, because the penalty is a squared norm. With s = scale both factors would cancel,
    and the small weights of coarse stages would make that gradient vanish. The s returned here gives both the same
    size, so that the range of the number format is used on both sides alike.

    Args:
        scale: the factor of the loss that contains the penalty; None in single precision.
        weight: the factor of the squared norm of g in that loss.
        num_images: the number of images that the loss is the mean of.

    Returns:
        A power of two, by which nothing is rounded; None if `scale` is None.
    """
    return None if scale is None else (scale * (2 * weight / num_images)).log2().div(2).round().exp2()


def penalties(
    training: TrainingConfig,
    levels_below: int,
    scored: dict[str, tuple[Tensor, Tensor]],
    *,
    scale: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the gradient penalties of a step.

    Args:
        training: contains their weights.
        levels_below: of the stage, see `native_gamma`.
        scored: images [N, C, H, W] with requires_grad and their scores [N], for each active penalty: r1 (at reals), r2
            (at fakes) and gp (between the two); at least one.
        scale: the factor that the caller gives the total in half precision, see `inner_scale`.

    Returns:
        The weighted sum of all penalties, a number; and for the curves the mean of each penalty without its weight (r1
        and r2: of the squared norm at these images), by metric name.
    """
    weights = {
        "r1": native_gamma(training.r1_gamma, levels_below) / 2,
        "r2": native_gamma(training.r2_gamma, levels_below) / 2,
        "gp": training.gp_weight,
    }
    means: dict[str, Tensor] = {}
    for name, (images, scores) in scored.items():
        if name == "gp":
            weight = native_gamma(training.gp_weight, levels_below) / training.gp_target**2  # of the squared norm
            inner = inner_scale(scale, weight, len(scores))
            means[name] = norm_penalty(
                scores, images, target=training.gp_target, levels_below=levels_below, scale=inner
            ).mean()
        else:
            means[name] = r1_penalty(scores, images, scale=inner_scale(scale, weights[name], len(scores))).mean()
    total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
    return total, {f"loss/{name}": mean for name, mean in means.items()}
