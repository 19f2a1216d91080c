"""Rows and pictures to log, and what a run in MLflow has of them."""

import io

from PIL import Image

from stylegan.data.shardset import ShardSet

SHARDS = ShardSet(
    uri="/nowhere/datasets/f",
    fingerprint="f" * 64,
    num_images=5,
    resolutions=(4, 8),
    label_names=("a", "b"),
    num_rejected=0,
)


def row(kimg, loss=0.0, **metrics):
    return {"nimg": round(kimg * 1000), "resolution": 8, "metrics": {"loss/g": loss, **metrics}}


def points(run, key="loss/g"):
    return [(point.step, point.value) for point in run.client.get_metric_history(run.mlflow_run_id, key)]


def png(shade=0):
    buffer = io.BytesIO()
    Image.new("L", (16, 16), shade).save(buffer, format="PNG")
    return buffer.getvalue()


def images(run):
    return sorted(file.path.split("+timestamp")[0] for file in run.client.list_artifacts(run.mlflow_run_id, "images"))
