"""Random streams that are named instead of shared, and arithmetic without shortcuts: what makes two evaluations agree."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def stream(*key: str | int, device: str = "cpu") -> torch.Generator:
    """A fresh random generator that depends on its name alone, e.g. stream(seed, "fid", chunk, "z")."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    return torch.Generator(device).manual_seed(seed)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Full float32 convolutions and products, and the same result every time, also on GPUs.

    TF32 keeps 10 bits of mantissa: images that differ by `ppl_epsilon` = 1e-4 would not differ any more.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
