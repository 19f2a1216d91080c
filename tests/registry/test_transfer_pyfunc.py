"""A registered style transfer, as MLflow loads it."""

import base64
import io
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import infer_and_parse_data, predictions_to_json
from PIL import Image

from stylegan.networks.classifier import Classifier
from stylegan.networks.style_transfer import StyleTransfer, encoder_of, save_transfer, shape_of
from stylegan.registry import versions as store
from stylegan.tracking.connection import connect, resolve_uri
from stylegan.transfer.apply import read_picture, restyle


def network() -> StyleTransfer:
    torch.manual_seed(0)
    source = Classifier(resolution=16, channels=3, num_classes=2).eval()
    shape = shape_of(source, channels=3, depth=1, resolution=16)
    return StyleTransfer(shape, encoder_of(source, shape)).eval()


def png(size: tuple[int, int], seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def loaded(make_config, make_report, shards, tmp_path):
    """Return the model that MLflow loads after it was registered."""
    config = make_config(
        transfer={"depth": 1}, model={}, training={}, evaluation={"features": "rotation", "metrics": ["transfer"]},
        registry={"gate": {"metric": "transfer_loss"}},
    )  # fmt: skip
    checkpoint = tmp_path / "checkpoint-000001000"
    checkpoint.mkdir()
    (checkpoint / "transfer.safetensors").write_bytes(save_transfer(network()))
    client = connect(resolve_uri(config))
    experiment = client.create_experiment("x", artifact_location=f"{tmp_path}/mlartifacts")
    run_id = client.create_run(experiment).info.run_id
    store.register(
        config, mlflow_run_id=run_id, checkpoint=str(checkpoint), shards=shards, report=make_report(), key="k"
    )
    version = client.get_model_version_by_alias(config.model_name, "challenger")
    assert "stylegan transfer CONTENT STYLE" in version.description
    assert "style transfer by AdaIN" in version.description
    return mlflow.pyfunc.load_model(version.source)


def test_it_draws_as_the_verb_does_and_answers_by_mlflows_server(loaded):
    files = {"content": png((20, 15), 0), "style": png((9, 30), 1)}
    answer = loaded.predict(pd.DataFrame([files, files]), params={"alpha": 0.5})["image"]
    content, style = (read_picture(data, network(), name) for name, data in files.items())
    expected = restyle(network(), content, style, 0.5)
    for text in answer:
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), np.asarray(expected))

    # As JSON, through what MLflow's server does.
    row = {name: base64.b64encode(data).decode() for name, data in files.items()}
    data = infer_and_parse_data({"dataframe_records": [row]}, loaded.metadata.get_input_schema())
    out = io.StringIO()
    predictions_to_json(loaded.predict(data, params={"alpha": 0.5}), out)
    (told,) = json.loads(out.getvalue())["predictions"]
    assert told["image"] == answer[0]


def test_mistakes_name_the_row_and_the_value(loaded):
    good = {"content": png((8, 8), 0), "style": png((8, 8), 1)}
    with pytest.raises(MlflowException, match="alpha=2: must be a number from 0"):
        loaded.predict(pd.DataFrame([good]), params={"alpha": 2.0})
    with pytest.raises(MlflowException, match="row 1: style: cannot be used as a picture"):
        loaded.predict(pd.DataFrame([good, good | {"style": b"no picture"}]))
