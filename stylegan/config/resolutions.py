"""Tables by resolution, and the batches of StyleGAN's published training script."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")
RESOLUTIONS = tuple(2**k for k in range(2, 11))

# Images per step over all GPUs in StyleGAN's published training script, by number of GPUs; an entry holds up to the next.
OFFICIAL_BATCH: dict[int, dict[int, int]] = {
    1: {4: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4},
    2: {4: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8},
    4: {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16},
    8: {4: 512, 8: 256, 16: 128, 32: 64, 64: 32},
}


def spread(value: Any) -> Any:
    """A plain value stands for all resolutions: `8` becomes `{4: 8}`."""
    return value if isinstance(value, dict) else {4: value}


def known_resolutions(table: dict[int, T]) -> dict[int, T]:
    """The table itself. Raises ValueError if a key is no resolution."""
    unknown = [key for key in table if key not in RESOLUTIONS]
    if unknown:
        raise ValueError(f"{unknown[0]} is no resolution; the keys are powers of two from 4 to 1024")
    return table


def at_resolution(table: dict[int, T], resolution: int) -> T:
    """The entry of the largest key that is not above `resolution` (the smallest entry below the first key)."""
    keys = [key for key in table if key <= resolution]
    return table[max(keys) if keys else min(table)]


def official_batch(resolution: int, workers: int, group: int) -> int:
    """Images per step over all workers as in the official training script.

    For 1, 2, 4 and 8 workers its table; for others the row of the next smaller number. Where the result is not whole
    minibatch-stddev groups of `group` for each worker it is rounded down to that, but never below one group for each.
    """
    batch = at_resolution(at_resolution(OFFICIAL_BATCH, workers), resolution)
    unit = workers * group if workers > 1 else min(group, batch)
    return max(batch // unit, 1) * unit
