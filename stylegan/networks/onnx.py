"""Export of a generator as an ONNX file of standard operators.

The images of every file are compared with torch's before the file is returned.
"""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stylegan.commands import pip_install
from stylegan.errors import StepError
from stylegan.networks.generator import Generator

OPSET = 20
CUTOFF = 8  # number of truncated layers, as in StyleGAN's figures: the layers up to 32x32
TOLERANCE = 1e-4  # largest difference from torch, for images that span [-1, 1]


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file, and how well it reproduces torch's images."""

    data: bytes
    opset: int
    max_difference: float  # largest difference from torch, for images that span [-1, 1]


def to_onnx(generator: Generator, label_names: Sequence[str] = ()) -> OnnxFile:
    """Export a generator with its stored noise, so that equal inputs give equal images.

    The inputs of the file are `z` [N, L]; for a conditional generator `labels` int64 [N]; and for one that has a w `psi`, a
    single number: the truncation of the first 8 layers, where 1 turns it off. The output is `images` [N, C, r, r], nominally in
    [-1, 1], not clamped. N may be any number. Everything but `labels` is in single precision. The metadata contains
    the label names as JSON.

    Args:
        generator: on the CPU, without gradients, as `load_generator` returns it.
        label_names: names of its classes.

    Raises:
        StepError: a package is missing, or onnxruntime computes other images than torch.
    """
    helper, runtime = _packages()

    # Export the graph. A batch of 1 would be traced as a fixed size.
    network = _TensorOnlyGenerator(generator).eval()
    batch = torch.export.Dim("N", min=1)
    inputs = _inputs(generator, 2, 0.7)
    with _quiet():
        program = torch.onnx.export(
            network,
            kwargs=inputs,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["images"],
            dynamic_shapes={name: {0: batch} if value.ndim else None for name, value in inputs.items()},
        )
    assert program is not None

    # Add the label names, then compare with torch.
    proto = program.model_proto
    helper.set_model_props(proto, {"label_names": json.dumps(list(label_names))})
    data = proto.SerializeToString()
    return OnnxFile(data=data, opset=OPSET, max_difference=_compare_with_torch(data, network, runtime))


class _TensorOnlyGenerator(nn.Module):
    """A generator all of whose arguments are tensors, as tracing needs it."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, psi: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        generator = self.generator
        ws = generator.mapping(z, labels)[:, None].expand(-1, generator.num_layers, -1)
        if psi is None:
            return generator.synthesis(ws)
        # Generator.truncate skips psi = 1. A graph cannot branch on an input, but the formula gives w for psi = 1
        # anyway.
        truncated = torch.arange(generator.num_layers)[:, None] < CUTOFF
        return generator.synthesis(torch.where(truncated, generator.w_avg + psi * (ws - generator.w_avg), ws))


def _packages() -> tuple[ModuleType, ModuleType]:
    """Return the modules onnx.helper and onnxruntime, or raise StepError if a package is missing."""
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnx.helper"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise StepError(
            f"ONNX needs a package that is not installed ({error}); run `{pip_install('stylegan-pipeline[onnx]')}`"
        ) from error


def _inputs(generator: Generator, n: int, psi: float) -> dict[str, Tensor]:
    """Return example inputs for n images, the same in every call."""
    random = torch.Generator().manual_seed(n)
    inputs = {"z": torch.randn(n, generator.model.latent_size, generator=random)}
    if generator.num_labels:
        inputs["labels"] = torch.arange(n) % generator.num_labels
    return inputs | {"psi": torch.tensor(psi)} if generator.model.has_w else inputs


@torch.no_grad()
def _compare_with_torch(data: bytes, network: _TensorOnlyGenerator, runtime: Any) -> float:
    """Return the largest difference between onnxruntime's and torch's images, or raise StepError if it is too large."""
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    largest = 0.0
    for n, psi in ((1, 1.0), (3, 0.7)):
        psi = psi if network.generator.model.has_w else 1.0
        inputs = _inputs(network.generator, n, psi)
        expected = network.generator(
            inputs["z"], inputs.get("labels"), truncation_psi=psi, truncation_cutoff=CUTOFF
        ).numpy()
        (images,) = session.run(["images"], {name: value.numpy() for name, value in inputs.items()})
        # Rounding errors grow with the values, so images beyond [-1, 1] are compared relative to their own range.
        span = max(float(np.ptp(expected)) / 2, 1.0)
        largest = max(largest, float(np.abs(images - expected).max()) / span)
    if not largest <= TOLERANCE:  # also true for NaN
        raise StepError(
            f"ONNX: onnxruntime's images differ from torch's by {largest:.2g}, more than {TOLERANCE:g}; "
            "nothing was written"
        )
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter inside this context.

    It warns of packages that are not needed here and of its own internals.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
