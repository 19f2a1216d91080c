"""Applies a player's loss: gradients, their mean over ranks, the optimizer's step, and the average of G.

Nothing here waits for a GPU: the flag for a gradient that is not finite stays on the device, and Adam reads it there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from stylegan.config.sections import TrainingConfig
from stylegan.errors import DivergedError
from stylegan.networks.convolution import prepared_weights
from stylegan.training import distributed
from stylegan.training.background import HostCopy
from stylegan.training.state import TrainState

MAX_SKIPPED = 50  # updates of one kind in a row without a finite gradient, after which the stage ends
CHECK_EVERY = 16  # steps between two checks of that number
# Dynamic loss scaling for fp16 as in the official code: the exponent of two grows slowly and falls by one at each
# overflow.
SCALE_GROWTH, SCALE_FALL = 0.0005, 1.0


def loss_scale(state: TrainState, player: str, training: TrainingConfig, *, weight: float = 1.0) -> Tensor | None:
    """Return the factor of the loss that keeps small gradients from vanishing in fp16, times `weight`.

    Returns:
        A number on the device; None in any other precision.
    """
    return state.log2_scale[player].exp2() * weight if training.precision == "fp16" else None


def update(
    state: TrainState,
    player: str,
    losses: Iterable[Tensor],
    training: TrainingConfig,
    *,
    parts: int = 1,
    kind: str | None = None,
) -> None:
    """Make one step of a player's optimizer. If a gradient is not finite, all ranks skip the step and count it.

    Args:
        state: changed in place.
        player: "D" or "G".
        losses: of each part of this rank's share, a number each. Each is computed when the gradients of the one before
            are there, so that its layer outputs take the place of the others.
        training: contains the precision.
        parts: the number of losses, whose mean is meant.
        kind: the kind of update, for people. Each kind counts its own skipped updates, so that an update that works
            does not hide one that never does. Unset: the player's main update.
    """
    network, optimizer = (state.D, state.opt_D) if player == "D" else (state.G, state.opt_G)
    scale = loss_scale(state, player, training)

    # Gradients, averaged over ranks.
    optimizer.zero_grad(set_to_none=True)
    remaining = iter(losses)
    for _ in range(parts):
        with prepared_weights():
            loss = next(remaining)
            scaled_loss = loss if scale is None else loss * scale
            (scaled_loss if parts == 1 else scaled_loss / parts).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    distributed.mean_(gradients)

    # 1 if a gradient is not finite, otherwise 0.
    failed = (~torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()).float()

    # Fused Adam divides the gradients by `grad_scale` and skips the step if `found_inf` is 1.
    optimizer.grad_scale, optimizer.found_inf = scale, failed  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    # Skipped updates of this kind in a row: one more after a failure, otherwise 0.
    kind = kind or player
    if kind not in state.skipped:
        state.skipped[kind] = torch.zeros_like(failed)
    state.skipped[kind].add_(failed).mul_(failed)

    # The exponent of the scale: down after a failure, otherwise up.
    if scale is not None:
        state.log2_scale[player] += SCALE_GROWTH - failed * (SCALE_GROWTH + SCALE_FALL)
    add_sums(state, {"optim/skipped": failed})


class DivergenceCheck:
    """Ends a stage whose updates are skipped again and again. All ranks end it or none.

    On a GPU it reads the counts of the check before, which have long arrived, so that it waits for nothing.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self._before: HostCopy[dict[str, Tensor]] | None = None

    def check(self, *, last: bool = False) -> None:
        """Raise DivergedError if too many updates of one kind in a row were skipped; if `last`, by the present counts."""
        now = HostCopy(self.state.skipped, self.state.device)
        known, self._before = now if last or self.state.device.type == "cpu" else self._before, now
        for kind, skipped in known.get().items() if known else ():
            if skipped >= MAX_SKIPPED:
                raise DivergedError(
                    f"training diverged at {self.state.nimg} images: {int(skipped)} updates of {kind} in a row had "
                    "gradients that are not finite; lower training.learning_rate or raise training.r1_gamma"
                )


@torch.no_grad()
def update_average(state: TrainState, beta: float) -> None:
    """Move the weights of G_ema towards G, with decay `beta`. Buffers (w_avg, noise) are copied."""
    averaged: list[Tensor] = list(state.G_ema.parameters())
    current: list[Tensor] = list(state.G.parameters())
    torch._foreach_lerp_(averaged, current, 1 - beta)
    for mean, now in zip(state.G_ema.buffers(), state.G.buffers(), strict=True):
        mean.copy_(now)


def add_sums(state: TrainState, values: dict[str, Tensor]) -> None:
    """Add metrics to the running sums of the next point of the curves, in place."""
    for name in values.keys() - state.sums.keys():
        state.sums[name] = torch.zeros((), device=state.device)
    sums = [state.sums[name] for name in values]
    torch._foreach_add_(sums, [value.detach().to(sums[0].dtype) for value in values.values()])
