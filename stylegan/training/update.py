"""What follows a player's loss: gradients, their mean over ranks, the optimizer's step, and the average of G.

Nothing here waits for a GPU: whether a gradient was finite stays on the device, and Adam reads it there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylegan.config.sections import TrainingConfig
from stylegan.errors import DivergedError
from stylegan.training import distributed
from stylegan.training.state import TrainState

MAX_SKIPPED = 50  # updates of one player in a row without a finite gradient before the stage gives up
CHECK_EVERY = 16  # steps between two looks at that number, which wait for the device
# Dynamic loss scaling for fp16 as in the official code: the exponent of two grows slowly and falls by one at each overflow.
SCALE_GROWTH, SCALE_FALL = 0.0005, 1.0


def loss_scale(state: TrainState, player: str, training: TrainingConfig) -> Tensor | None:
    """What the loss is multiplied by so that small gradients survive in fp16, a number on the device; None elsewhere."""
    return state.log2_scale[player].exp2() if training.precision == "fp16" else None


def update(state: TrainState, player: str, loss: Tensor, training: TrainingConfig) -> None:
    """One step of a player's optimizer; on all ranks it is skipped and counted if a gradient is not finite.

    Args:
        state: changed in place.
        player: "D" or "G".
        loss: of this rank, a number.
        training: says the precision.
    """
    network, optimizer = (state.D, state.opt_D) if player == "D" else (state.G, state.opt_G)
    scale = loss_scale(state, player, training)
    optimizer.zero_grad(set_to_none=True)
    (loss if scale is None else loss * scale).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    distributed.mean_(gradients)
    failed = (~torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()).float()
    for name, value in {
        "grad_scale": scale,
        "found_inf": failed,
    }.items():  # fused Adam divides by the one and obeys the other
        setattr(optimizer, name, value)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state.skipped[player] = (state.skipped[player] + failed) * failed
    if scale is not None:
        state.log2_scale[player] += SCALE_GROWTH - failed * (SCALE_GROWTH + SCALE_FALL)
    add_sums(state, {"optim/skipped": failed})


def check_divergence(state: TrainState) -> None:
    """Raises DivergedError if a player's updates have been skipped for too long; the same on all ranks."""
    for player, skipped in state.skipped.items():
        if skipped >= MAX_SKIPPED:
            raise DivergedError(
                f"training diverged at {state.nimg} images: {int(skipped)} updates of {player} in a row had gradients that are not finite; "
                "lower training.learning_rate or raise training.r1_gamma"
            )


@torch.no_grad()
def update_average(state: TrainState, beta: float) -> None:
    """G_ema follows G; buffers (w_avg, noise) are copied."""
    averaged: list[Tensor] = list(state.G_ema.parameters())
    current: list[Tensor] = list(state.G.parameters())
    torch._foreach_lerp_(averaged, current, 1 - beta)
    for mean, now in zip(state.G_ema.buffers(), state.G.buffers(), strict=True):
        mean.copy_(now)


def add_sums(state: TrainState, values: dict[str, Tensor]) -> None:
    """Add to the running sums of the next point of the curves."""
    for name, value in values.items():
        state.sums[name] = state.sums.get(name, torch.zeros((), device=state.device)) + value.detach()
