"""Networks as bytes: a safetensors file with the weights and, in its header, everything to rebuild the network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from stylegan.config.sections import ModelConfig
from stylegan.errors import DamagedError, StepError, one_line
from stylegan.networks.discriminator import AnyDiscriminator
from stylegan.networks.generator import Generator

# The metadata has a single key: the order of several keys, and so the bytes, would differ from process to process.
GENERATOR_KEY = "stylegan.generator"
DISCRIMINATOR_KEY = "stylegan.discriminator"
MAX_HEADER = 100_000_000  # bytes that safetensors itself allows


def save_generator(generator: Generator, label_names: Sequence[str]) -> bytes:
    """Return the generator as a safetensors file; equal generators give equal bytes.

    Args:
        generator: any resolution, on any device.
        label_names: the classes of the data in the order of their numbers; empty for unlabelled data.

    Raises:
        StepError: the generator is conditional and the number of `label_names` differs from its number of classes.
    """
    return _save(GENERATOR_KEY, generator, label_names)


def save_discriminator(discriminator: AnyDiscriminator, label_names: Sequence[str]) -> bytes:
    """Return the discriminator as a safetensors file; arguments and errors as for `save_generator`."""
    return _save(DISCRIMINATOR_KEY, discriminator, label_names)


def load_generator(data: bytes, origin: str = "generator") -> tuple[Generator, tuple[str, ...]]:
    """Load the generator that `save_generator` wrote, on the CPU, in eval mode and without gradients.

    Args:
        data: the bytes of the file.
        origin: the file that they come from, for the error message.

    Returns:
        The generator and its label names.

    Raises:
        DamagedError: the bytes are cut short, damaged or another kind of file, or a weight is not finite.
    """
    try:
        # Read the file.
        tensors = read_tensors(data)
        header = generator_header(data)
        label_names = tuple(header.pop("label_names"))

        # Rebuild the network. The meta device draws no random weights, so loading leaves the global random state alone.
        with torch.device("meta"):
            generator = Generator(ModelConfig.model_validate(header.pop("model")), **header)

        # Copy the weights into fresh memory, because the layers want some of them in channels_last memory format.
        generator.to_empty(device="cpu").load_state_dict(tensors)
    except MemoryError:
        raise
    except Exception as error:  # damaged and foreign files raise errors of many types
        raise DamagedError(
            f"{origin}: these {len(data)} bytes are not a generator file ({one_line(error, 200)}); "
            "give a generator.safetensors written by this program, or delete its checkpoint and train again"
        ) from error
    return generator.eval().requires_grad_(False), label_names


def generator_header(data: bytes) -> dict[str, Any]:
    """Return what a file of `save_generator` says of its generator; the first `header_bytes(data)` of it are enough.

    The keys are model, resolution, channels, num_labels and label_names. Bytes of another kind raise errors of many types.
    """
    # JSON inside the JSON metadata.
    header: dict[str, Any] = json.loads(json.loads(data[8 : header_bytes(data)])["__metadata__"][GENERATOR_KEY])
    return header


def header_bytes(data: bytes) -> int:
    """Return where the tensors of a safetensors file begin, from its first eight bytes.

    Raises:
        ValueError: no such file has so long a header.
    """
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length} bytes")
    return 8 + length


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by name.

    Raises:
        ValueError: values are not finite; such weights make black images.
        SafetensorError: the bytes are no such file.
    """
    tensors: dict[str, Tensor] = safetensors_torch.load(data)
    require_finite(tensors)
    return tensors


def require_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all values of all tensors are finite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite, as after a training that diverged")


def _save(key: str, network: Generator | AnyDiscriminator, label_names: Sequence[str]) -> bytes:
    """Return a network as a safetensors file whose header is stored under `key`."""
    if network.num_labels and network.num_labels != len(label_names):
        kind = "generator" if isinstance(network, Generator) else "discriminator"
        raise StepError(
            f"label_names: {len(label_names)} names for a {kind} with {network.num_labels} classes; "
            "give one name per class"
        )
    header = {
        "model": network.model.identity(),
        "resolution": network.resolution,
        "channels": network.channels,
        "num_labels": network.num_labels,
        "label_names": list(label_names),
    }
    if not isinstance(network, Generator):
        header["rotation"] = network.rotation is not None
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return safetensors_torch.save(tensors, metadata={key: json.dumps(header)})
