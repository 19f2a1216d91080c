"""A generator as an ONNX file of standard operators, compared with torch before anybody gets it."""

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

from stylegan.errors import StepError
from stylegan.networks.generator import Generator

OPSET = 20
CUTOFF = 8  # truncated layers, as in StyleGAN's figures: those up to 32x32
TOLERANCE = 1e-4  # largest difference from torch, for images that span [-1, 1]


@dataclass(frozen=True)
class OnnxFile:
    """`data` is the file; `max_difference` the largest one between its images and torch's, for images that span [-1, 1]."""

    data: bytes
    opset: int
    max_difference: float


def to_onnx(generator: Generator, label_names: Sequence[str] = ()) -> OnnxFile:
    """Export a generator with its stored noise, so equal inputs give equal images.

    The file's inputs are `z` [N, L] and, for a conditional generator, `labels` int64 [N], and `psi`, a single number: the
    truncation of the first 8 layers, 1 is off. Its output is `images` [N, C, r, r], nominally in [-1, 1], not clamped. N is
    free. All but `labels` are single precision. The label names are in its metadata, as JSON.

    Args:
        generator: on the CPU, without gradients, as `load_generator` gives it.
        label_names: of its classes.

    Raises:
        StepError: a package is missing, or onnxruntime gives other images than torch.
    """
    helper, runtime = _packages()
    network = _Network(generator).eval()
    batch = torch.export.Dim("N", min=1)
    inputs = _inputs(generator, 2, 0.7)  # not a batch of 1, which tracing takes for a fixed size
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
    proto = program.model_proto
    helper.set_model_props(proto, {"label_names": json.dumps(list(label_names))})
    data = proto.SerializeToString()
    return OnnxFile(data=data, opset=OPSET, max_difference=_compare(data, network, runtime))


class _Network(nn.Module):
    """The generator as a function of tensors alone."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, psi: Tensor, labels: Tensor | None = None) -> Tensor:
        generator = self.generator
        ws = generator.mapping(z, labels)[:, None].expand(-1, generator.num_layers, -1)
        # Generator.truncate is off at psi = 1, which a graph cannot ask of its input; the formula gives w there all the same.
        truncated = torch.arange(generator.num_layers)[:, None] < CUTOFF
        return generator.synthesis(torch.where(truncated, generator.w_avg + psi * (ws - generator.w_avg), ws))


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        importlib.import_module("onnxscript")
        return importlib.import_module("onnx.helper"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise StepError(
            f"ONNX needs a package that is not installed ({error}); run: pip install 'stylegan-pipeline[onnx]'"
        ) from error


def _inputs(generator: Generator, n: int, psi: float) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(n)
    inputs = {"z": torch.randn(n, generator.model.latent_size, generator=random)}
    if generator.num_labels:
        inputs["labels"] = torch.arange(n) % generator.num_labels
    return inputs | {"psi": torch.tensor(psi)}


@torch.no_grad()
def _compare(data: bytes, network: _Network, runtime: Any) -> float:
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    largest = 0.0
    for n, psi in ((1, 1.0), (3, 0.7)):
        inputs = _inputs(network.generator, n, psi)
        expected = network.generator(
            inputs["z"], inputs.get("labels"), truncation_psi=psi, truncation_cutoff=CUTOFF
        ).numpy()
        (images,) = session.run(["images"], {name: value.numpy() for name, value in inputs.items()})
        # Rounding grows with the numbers: images beyond [-1, 1] count relative to their own range.
        span = max(float(np.ptp(expected)) / 2, 1.0)
        largest = max(largest, float(np.abs(images - expected).max()) / span)
    if not largest <= TOLERANCE:  # nan is not either
        raise StepError(
            f"ONNX: onnxruntime's images differ from torch's by {largest:.2g}, allowed are {TOLERANCE:g}; nothing was written"
        )
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice on packages that it does not need here, and on its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
