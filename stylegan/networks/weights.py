"""A generator as bytes: one safetensors file that holds its weights and, in the header, what is needed to rebuild it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from stylegan.config import ModelConfig
from stylegan.errors import StepError
from stylegan.networks.generator import Generator

HEADER = "stylegan.generator"  # one key: the order of several would differ from process to process, and so would the bytes


def save_generator(generator: Generator, label_names: Sequence[str]) -> bytes:
    """The generator as a safetensors file; equal generators give equal bytes.

    Args:
        generator: any resolution, on any device.
        label_names: the classes of the data in the order of their numbers; empty for unlabelled data.

    Raises:
        StepError: the generator is conditional and `label_names` is not as long as it has classes.
    """
    if generator.num_labels and generator.num_labels != len(label_names):
        raise StepError(
            f"label_names: {len(label_names)} names for a generator with {generator.num_labels} classes; give one name per class"
        )
    header = {
        "model": generator.model.model_dump(mode="json"),
        "resolution": generator.resolution,
        "channels": generator.channels,
        "num_labels": generator.num_labels,
        "label_names": list(label_names),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    return safetensors_torch.save(tensors, metadata={HEADER: json.dumps(header)})


def load_generator(data: bytes) -> tuple[Generator, tuple[str, ...]]:
    """The generator that `save_generator` wrote, on the CPU, in eval mode and without gradients, and its label names.

    Raises:
        StepError: the bytes are cut short, damaged or something else.
    """
    try:
        tensors = safetensors_torch.load(data)
        header = _header(data)
        generator = _blank(header)
        generator.load_state_dict(tensors, assign=True)
    except (SafetensorError, ValidationError, LookupError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise StepError(
            f"generator: these {len(data)} bytes are not a generator file ({reason}); give a generator.safetensors written by this program"
        ) from error
    return generator.eval().requires_grad_(False), tuple(header["label_names"])


def _header(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][HEADER])


def _blank(header: dict[str, Any]) -> Generator:
    # On the meta device nothing is drawn: loading leaves the global random state alone.
    with torch.device("meta"):
        return Generator(
            ModelConfig.model_validate(header["model"]),
            resolution=header["resolution"],
            channels=header["channels"],
            num_labels=header["num_labels"],
        )
