"""The device that images are drawn on."""

from __future__ import annotations

import re

import torch

from stylegan.errors import ConfigError

AUTO = "auto"
ALLOWED = "cpu, cuda, cuda:N or auto"
FORM = re.compile(r"cpu|cuda(?::(\d{1,3}))?", re.ASCII)  # of a device


def choose_device(device: str = AUTO) -> str:
    """Return the torch device of a `--device`: `cpu`, `cuda` or `cuda:N`.

    Args:
        device: one of them, or `auto`: the GPU, if there is one.

    Raises:
        ConfigError: it is none of them, or there is no such GPU.
    """
    there = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == AUTO:
        return "cuda" if there else "cpu"
    match = FORM.fullmatch(device)
    if not match:
        raise ConfigError(f"--device {device}: must be {ALLOWED}")
    if device != "cpu" and int(match[1] or 0) >= there:
        found = f"{there} GPU{'s' * (there > 1)}" if there else "no GPU"
        raise ConfigError(f"--device {device}: torch finds {found} here; leave it out or give cpu")
    return device
