"""A real server of a small model with classes, attributes and projection, for tests of what browsers see."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import uvicorn
from served_models import write_model

from stylegan.config.sections import DataConfig
from stylegan.drawing.perceptual import PerceptualDistance
from stylegan.evaluation.directions import Direction, write_directions
from stylegan.evaluation.features.embedded import METADATA, FeatureFacts, load_features
from stylegan.evaluation.features.spaces import embedded_network
from stylegan.networks.classifier import Classifier
from stylegan.serving.app import make_app
from stylegan.serving.models import Found, Models, ProjectionMeans
from stylegan.serving.server import bind, url_of
from stylegan.verbs.project import convert_picture

SIDE = 16
CLASSES = ("cat", "dog & co", "7")
ATTRIBUTES = ("smile", "old: 60+")


@dataclass
class Site:
    """A server whose alias can be moved. Version N has its weights in `folder / "N"`."""

    url: str
    folder: Path
    models: Models

    def promote(self) -> None:
        """Let the alias name a new version, with other weights."""
        found = write_version(self.folder, int(self.models.current.version) + 1)
        self.models.find = lambda: found
        self.models.look()


def write_version(folder: Path, number: int) -> Found:
    """Write a version of the model and its attributes, and return what the registry would say of it."""
    found = write_model(folder / str(number), seed=number - 1, labels=CLASSES, resolution=SIDE)
    normals = np.eye(6, dtype=np.float32)
    assert found.run_uri is not None
    write_directions(
        found.run_uri, [Direction(name, normal, 1.5, 0.1) for name, normal in zip(ATTRIBUTES, normals, strict=False)]
    )
    return found


def projection_means(folder: Path) -> ProjectionMeans:
    """Write an embedded network, as an evaluation leaves it, and return what projects with it."""
    torch.manual_seed(0)
    network = Classifier(resolution=SIDE, channels=3, num_classes=len(CLASSES))
    facts = FeatureFacts(
        kind="classifier", resolution=SIDE, channels=3, label_names=CLASSES, accuracy=0.5, dataset_fingerprint="f"
    )
    path = folder / "features.safetensors"
    path.write_bytes(safetensors.torch.save(network.state_dict(), {METADATA: facts.model_dump_json()}))
    distance = PerceptualDistance(embedded_network(load_features(str(path))))
    return ProjectionMeans(partial(convert_picture, data=DataConfig(source="/none", resolution=SIDE)), distance)


@contextmanager
def serve(folder: Path, *, token: str | None = None) -> Iterator[Site]:
    """Serve version 1 of the model until the block ends."""
    found, means = write_version(folder, 1), projection_means(folder)
    models = Models(lambda: found, "cpu", lambda _found, _generator: means)
    with bind("127.0.0.1", 0) as sock:
        server = uvicorn.Server(uvicorn.Config(make_app(models, token=token), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            yield Site(url_of(sock, "127.0.0.1"), folder, models)
        finally:
            server.should_exit = True
            thread.join(30)
