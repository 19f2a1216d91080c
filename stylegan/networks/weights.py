"""A network as bytes: one safetensors file that holds its weights and, in the header, what is needed to rebuild it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from stylegan.config.sections import ModelConfig
from stylegan.errors import StepError, one_line
from stylegan.networks.discriminator import Discriminator
from stylegan.networks.generator import Generator

# One key: the order of several would differ from process to process, and so would the bytes.
HEADER = "stylegan.generator"
DISCRIMINATOR_HEADER = "stylegan.discriminator"
Net = TypeVar("Net", Generator, Discriminator)


def save_generator(generator: Generator, label_names: Sequence[str]) -> bytes:
    """The generator as a safetensors file; equal generators give equal bytes.

    Args:
        generator: any resolution, on any device.
        label_names: the classes of the data in the order of their numbers; empty for unlabelled data.

    Raises:
        StepError: the generator is conditional and `label_names` is not as long as it has classes.
    """
    return _save(HEADER, generator, label_names)


def load_generator(data: bytes) -> tuple[Generator, tuple[str, ...]]:
    """The generator that `save_generator` wrote, on the CPU, in eval mode and without gradients, and its label names.

    Raises:
        StepError: the bytes are cut short, damaged or something else.
    """
    return _load(data, HEADER, Generator)


def save_discriminator(discriminator: Discriminator, label_names: Sequence[str]) -> bytes:
    """The discriminator as a safetensors file; arguments and errors as for `save_generator`."""
    return _save(DISCRIMINATOR_HEADER, discriminator, label_names)


def load_discriminator(data: bytes) -> tuple[Discriminator, tuple[str, ...]]:
    """The discriminator that `save_discriminator` wrote; as `load_generator`."""
    return _load(data, DISCRIMINATOR_HEADER, Discriminator)


def _save(key: str, network: Net, label_names: Sequence[str]) -> bytes:
    kind = _kind(key)
    if network.num_labels and network.num_labels != len(label_names):
        raise StepError(
            f"label_names: {len(label_names)} names for a {kind} with {network.num_labels} classes; give one name per class"
        )
    header = {
        "model": network.model.model_dump(mode="json"),
        "resolution": network.resolution,
        "channels": network.channels,
        "num_labels": network.num_labels,
        "label_names": list(label_names),
    }
    if isinstance(network, Discriminator):
        header["rotation"] = network.rotation is not None
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return safetensors_torch.save(tensors, metadata={key: json.dumps(header)})


def _load(data: bytes, key: str, make: Callable[..., Net]) -> tuple[Net, tuple[str, ...]]:
    try:
        tensors = safetensors_torch.load(data)
        header = _header(data, key)
        label_names = tuple(header.pop("label_names"))
        # On the meta device nothing is drawn: loading leaves the global random state alone.
        with torch.device("meta"):
            network = make(ModelConfig.model_validate(header.pop("model")), **header)
        network.to_empty(device="cpu").load_state_dict(
            tensors
        )  # copies: in memory the weights lie as the layers want them
    except (
        SafetensorError,
        ValidationError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        reason, kind = one_line(error, 200), _kind(key)
        raise StepError(
            f"{kind}: these {len(data)} bytes are not a {kind} file ({reason}); give a {kind}.safetensors written by this program"
        ) from error
    return network.eval().requires_grad_(False), label_names


def _header(data: bytes, key: str) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"][key])


def _kind(key: str) -> str:
    return key.rpartition(".")[2]
