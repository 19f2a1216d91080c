"""Losses of StyleGAN's FFHQ set-up: non-saturating logistic loss (Goodfellow et al. 2014) with R1 (Mescheder et al. 2018).

Every function gives one number per image; the caller takes means.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_nonsaturating(scores_fake: Tensor) -> Tensor:
    """-log sigmoid(D(G(z))) of each image, [N] -> [N]."""
    return F.softplus(-scores_fake)


def discriminator_nonsaturating(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """-log sigmoid(D(x)) - log(1 - sigmoid(D(G(z)))) of each pair, [N], [N] -> [N]."""
    return F.softplus(scores_fake) + F.softplus(-scores_real)


def r1_penalty(scores_real: Tensor, reals: Tensor) -> Tensor:
    """Squared norm of the gradient of the scores at each real image; itself differentiable. The loss is gamma / 2 times this.

    Args:
        scores_real: [N], computed from `reals`.
        reals: [N, C, H, W] with requires_grad.

    Returns:
        [N].
    """
    (gradient,) = torch.autograd.grad(scores_real.sum(), reals, create_graph=True)
    return gradient.square().sum((1, 2, 3))


def native_gamma(gamma: float, levels_below: int) -> float:
    """The R1 weight for images that are 2^levels_below times smaller than those that `gamma` is meant for.

    StyleGAN takes R1 on images that are nearest upscaled to the final resolution and then averaged down again inside D, which
    divides the squared norm by 4 per level.
    """
    return gamma * 4.0**-levels_below
