"""A style transfer as an MLflow model: rows of two image files in, pictures out. MLflow runs this file when it loads the model.

A row holds `content` and `style`, the bytes of two image files (base64 in JSON). Its picture is as large as the content, and
comes as the base64 text of a PNG file, because pictures of different sizes make no array.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image

WEIGHTS = "transfer"  # name of the model's artifact, a transfer.safetensors
COLUMNS = ("content", "style")


def signature() -> ModelSignature:
    """Return the signature: two columns of image files, the parameter alpha, and a column of pictures."""
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, name) for name in COLUMNS]),
        outputs=Schema([ColSpec(DataType.string, "image")]),
        params=ParamSchema([ParamSpec("alpha", DataType.double, 1.0)]),
    )


def example(channels: int) -> pd.DataFrame:
    """Return a row that the model can draw; the registry and MLflow's server show it."""
    buffers = {name: io.BytesIO() for name in COLUMNS}
    for name, direction in zip(COLUMNS, (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180), strict=True):
        ramp = Image.linear_gradient("L").resize((16, 16)).transpose(direction)
        ramp.convert("L" if channels == 1 else "RGB").save(buffers[name], "PNG")
    return pd.DataFrame({name: [buffer.getvalue()] for name, buffer in buffers.items()})


class TransferModel(PythonModel):
    """Draws pictures with the style transfer of a checkpoint."""

    def load_context(self, context: Any) -> None:
        """Load the weights, onto a GPU if the machine has one. MLflow calls it once."""
        from stylegan.networks.style_transfer import load_transfer

        with open(context.artifacts[WEIGHTS], "rb") as file:
            network = load_transfer(file.read())
        self.network = network.to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Draw one picture per row.

        Args:
            context: unused; MLflow passes it.
            model_input: DataFrame with `content` and `style`.
            params: alpha, from 0 (the content) to 1 (the style as far as it goes).

        Returns:
            DataFrame with `image`: PNG files in base64.

        Raises:
            MlflowException: a row cannot be drawn; the message names the row, the value and what is allowed.
        """
        from stylegan.errors import ConfigError
        from stylegan.images import png_bytes
        from stylegan.transfer.apply import check_alpha, read_picture, restyle

        alpha = float((params or {}).get("alpha", 1.0))
        if wrong := check_alpha(alpha, "alpha="):
            raise MlflowException.invalid_parameter_value(wrong)
        drawn = []
        for i, row in enumerate(model_input.to_dict("records")):
            try:
                content, style = (read_picture(row[name], self.network, f"row {i}: {name}") for name in COLUMNS)
            except ConfigError as error:
                raise MlflowException.invalid_parameter_value(str(error)) from None
            drawn.append(base64.b64encode(png_bytes(restyle(self.network, content, style, alpha))).decode())
        return pd.DataFrame({"image": drawn})


mlflow.models.set_model(TransferModel())
