"""Tables by resolution, and the batches of StyleGAN's published training script."""

from __future__ import annotations

import re
from typing import Any, TypeVar

T = TypeVar("T")
_WHOLE = re.compile("[1-9][0-9]{0,8}")
RESOLUTIONS = tuple(2**k for k in range(2, 11))
RESNET_RESOLUTIONS = (32, 64, 128)  # those that the architecture `resnet` is published for

# Images per step over all GPUs in StyleGAN's published training script, by number of GPUs and resolution. An entry
# holds up to the next one.
OFFICIAL_BATCH: dict[int, dict[int, int]] = {
    1: {4: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4},
    2: {4: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8},
    4: {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16},
    8: {4: 512, 8: 256, 16: 128, 32: 64, 64: 32},
}


def spread(value: Any) -> Any:
    """Turn a plain value, which holds for all resolutions, into a table: `8` becomes `{4: 8}`."""
    return whole_keys(value) if isinstance(value, dict) else {4: value}


def whole_keys(table: Any) -> Any:
    """Turn the keys of a table into numbers where they are the text of one, as in JSON: `{"4": 8}` becomes `{4: 8}`.

    Raises ValueError if a resolution is there as number and as text.
    """
    if not isinstance(table, dict):
        return table
    whole = {int(key) if isinstance(key, str) and _WHOLE.fullmatch(key) else key: item for key, item in table.items()}
    if len(whole) < len(table):
        raise ValueError("a resolution is given twice, as a number and as text; remove one")
    return whole


def known_resolutions(table: dict[int, T]) -> dict[int, T]:
    """Return the table itself. Raise ValueError if one of its keys is no resolution."""
    unknown = [key for key in table if key not in RESOLUTIONS]
    if unknown:
        raise ValueError(f"{unknown[0]} is no resolution; the keys are powers of two from 4 to 1024")
    return table


def at_resolution(table: dict[int, T], resolution: int) -> T:
    """Return the entry of the largest key up to `resolution`; below the first key, the first entry."""
    keys = [key for key in table if key <= resolution]
    return table[max(keys) if keys else min(table)]


def official_batch(resolution: int, workers: int, group: int) -> int:
    """Return the images per step over all workers as in the official training script.

    1, 2, 4 and 8 workers have a table of their own; other numbers use the table of the next smaller one. The batch is
    rounded down to whole minibatch-standard-deviation groups per worker, but never below one group per worker.

    Args:
        resolution: of the stage, in pixels.
        workers: of the stage.
        group: images in a group of the minibatch standard deviation.
    """
    batch = at_resolution(at_resolution(OFFICIAL_BATCH, workers), resolution)
    unit = workers * group if workers > 1 else min(group, batch)
    return max(batch // unit, 1) * unit
