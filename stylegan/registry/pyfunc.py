"""The generator as an MLflow model: rows in, images out. MLflow runs this file when it loads the model ("models from code").

A row holds `seed` (an integer from which z is drawn) or `z` itself, and for a conditional generator `label`, the index
of the class. Every row is drawn by itself, so its image does not depend on the rows beside it, to the last bit.

Images are an array of numbers, or with the parameter `encoding=png` one base64 text of a PNG file each: over HTTP a
1024x1024 image takes less than 2 MB then, and 12 MB as numbers.
"""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

if TYPE_CHECKING:
    from stylegan.networks.generator import Generator

ENCODINGS = ("array", "png")
WEIGHTS = "generator"  # name of the model's artifact, a generator.safetensors


def signature(generator: Generator) -> ModelSignature:
    """Return the signature: columns `seed`, `z`, `label` (checked row by row), parameters, and uint8 images [N, H, W, C].

    Truncation is a parameter of generators that have a w, the seed of the noise one of those that have noise.

    With `encoding=png` the output is texts instead; a signature has one form of output, and MLflow does not check it.
    """
    side = generator.resolution
    params = []
    if generator.model.has_w:
        params += [ParamSpec("truncation_psi", DataType.double, 1.0), ParamSpec("truncation_cutoff", DataType.long, 8)]
    if generator.model.has_noise:
        params.append(ParamSpec("noise_seed", DataType.long, 0))
    params.append(ParamSpec("encoding", DataType.string, ENCODINGS[0]))
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.long, "seed", required=False),
                ColSpec(Array(DataType.double), "z", required=False),
                ColSpec(DataType.long, "label", required=False),
            ]
        ),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, side, side, generator.channels))]),
        params=ParamSchema(params),
    )


def example(conditional: bool) -> pd.DataFrame:
    """Return rows that the generator can draw; the registry and MLflow's server show them."""
    return pd.DataFrame({"seed": [0, 1], "label": [0, 0]} if conditional else {"seed": [0, 1]})


class GeneratorModel(PythonModel):
    """Draws images with the averaged generator of a checkpoint."""

    def load_context(self, context: Any) -> None:
        """Load the weights, onto a GPU if the machine has one. MLflow calls it once."""
        from stylegan.networks.weights import load_generator

        with open(context.artifacts[WEIGHTS], "rb") as file:
            generator, label_names = load_generator(file.read())
        self.classes = label_names if generator.num_labels else ()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator = generator.to(self.device)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray | list[str]:
        """Draw one image per row.

        Args:
            context: unused; MLflow passes it.
            model_input: DataFrame with `seed` or `z` (`z` wins where a row has both), and `label` for a conditional
                model.
            params: truncation_psi (1 = off), truncation_cutoff (number of layers that are truncated), noise_seed (seed
                of the noise of every image of the call), encoding (`array` or `png`).

        Returns:
            uint8 [N, H, W, C]; for `png` a base64 text of a PNG file for each image.

        Raises:
            MlflowException: a row cannot be drawn; the message names the row, the value and what is allowed.
        """
        rows = model_input.to_dict("records")
        if not rows:
            raise _bad("the input has no row with `seed` or `z`; give at least one")
        given = params or {}
        encoding = given.get("encoding", ENCODINGS[0])
        if encoding not in ENCODINGS:
            raise _bad(f"encoding={encoding}: must be {' or '.join(ENCODINGS)}")
        images = (self._draw(*self._latent(i, row), given) for i, row in enumerate(rows))
        return [_png(image) for image in images] if encoding == "png" else np.stack(list(images))

    def _latent(self, i: int, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return z [1, L] and label [1] of a row."""
        size = self.generator.model.latent_size
        if not _missing(row.get("z")):
            z = torch.tensor(np.asarray(row["z"], dtype=np.float32))
            # Squares must be finite too: z is divided by its length.
            if z.shape != (size,) or not torch.isfinite(z.square().sum()):
                raise _bad(f"row {i}: z has shape {list(z.shape)}; it must be {size} finite numbers, nominally N(0, 1)")
        elif not _missing(row.get("seed")):
            z = torch.randn(size, generator=torch.Generator().manual_seed(int(row["seed"])))
        else:
            raise _bad(f"row {i}: has neither `seed` nor `z`; give an integer `seed`, or `z` with {size} numbers")
        return z[None].to(self.device), self._label(i, row.get("label"))

    def _label(self, i: int, label: Any) -> torch.Tensor | None:
        names, given = self.classes, not _missing(label)
        if given and not names:
            raise _bad(f"row {i}: label {int(label)} given, but this generator has no classes; leave `label` out")
        if names and not (given and 0 <= label < len(names)):
            allowed = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
            raise _bad(
                f"row {i}: label {int(label) if given else 'is missing'}; this generator's classes are {allowed}"
            )
        return torch.tensor([int(label)], device=self.device) if names else None

    @torch.no_grad()
    def _draw(self, z: torch.Tensor, label: torch.Tensor | None, params: dict[str, Any]) -> np.ndarray:
        """Draw one image, uint8 [H, W, C]."""
        from stylegan.images import quantise
        from stylegan.networks.generator import MAX_PSI, is_psi, random_noise

        psi = float(params.get("truncation_psi", 1.0))
        if not is_psi(psi):
            raise _bad(f"truncation_psi={psi:g}: must be a number from -{MAX_PSI:g} to {MAX_PSI:g}")
        if psi != 1 and not self.generator.model.has_w:
            raise _bad(
                f"truncation_psi={psi:g}: this generator has no w to truncate (model.architecture: resnet); leave it out"
            )
        cutoff = int(params.get("truncation_cutoff", 8))
        if cutoff < 0:
            raise _bad(f"truncation_cutoff={cutoff}: must be a number of layers, 0 (no truncation) or more")
        # Noise is drawn on the CPU, so that every machine draws the same.
        source = torch.Generator().manual_seed(int(params.get("noise_seed", 0)))
        images = self.generator(
            z,
            label,
            noise=random_noise(source, self.device),
            truncation_psi=None if psi == 1.0 else psi,
            truncation_cutoff=cutoff,
        )
        return quantise(images)[0].permute(1, 2, 0).cpu().numpy()


def _png(image: np.ndarray) -> str:
    """Encode an image [H, W, C]."""
    from stylegan.images import picture, png_bytes

    return base64.b64encode(png_bytes(picture(image.transpose(2, 0, 1), cell=image.shape[0]))).decode()


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _bad(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(GeneratorModel())
