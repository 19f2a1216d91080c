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

from stylegan.config.sections import DataConfig, ModelConfig
from stylegan.drawing.perceptual import PerceptualDistance
from stylegan.evaluation.directions import Direction, write_directions
from stylegan.evaluation.features.embedded import METADATA, FeatureFacts, load_features
from stylegan.evaluation.features.spaces import embedded_network
from stylegan.networks.classifier import Classifier
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.serving.app import make_app
from stylegan.serving.models import Found, Models, ProjectionMeans
from stylegan.serving.server import bind, url_of
from stylegan.verbs.project import convert_picture

SIDE = 16
CLASSES = ("cat", "dog & co", "7")
MODEL = ModelConfig(latent_size=16, mapping_layers=2, mapping_fmaps=16, fmap_base=128, fmap_max=16)


def draw_weights(seed: int) -> Generator:
    """Return a generator whose noise, styles and classes all show in its images."""
    torch.manual_seed(seed)
    generator = Generator(MODEL, resolution=SIDE, channels=3, num_labels=len(CLASSES))
    with torch.no_grad():
        for layer in generator.synthesis.layers:
            layer.noise_weight.normal_(std=0.3)
        generator.w_avg.normal_(std=0.1)
    return generator.eval()


def write_features(path: Path) -> None:
    """Write an embedded network, as an evaluation leaves it."""
    torch.manual_seed(0)
    network = Classifier(resolution=SIDE, channels=3, num_classes=len(CLASSES))
    facts = FeatureFacts(
        kind="classifier", resolution=SIDE, channels=3, label_names=CLASSES, accuracy=0.5, dataset_fingerprint="f"
    )
    path.write_bytes(safetensors.torch.save(network.state_dict(), {METADATA: facts.model_dump_json()}))


@dataclass
class Site:
    """The server: its address, its folder, and what its alias names."""

    url: str
    folder: Path
    models: Models
    version: int = 1

    def promote(self) -> None:
        """Let the alias name a new version, with other weights."""
        self.version += 1
        self.models.look()


def write_version(folder: Path, version: int) -> Found:
    """Write the checkpoint and the run of a version, and return what the registry would say of it."""
    place = folder / f"version-{version}"
    place.mkdir(exist_ok=True)
    (place / "generator.safetensors").write_bytes(save_generator(draw_weights(version), CLASSES))
    normals = np.eye(MODEL.latent_size, dtype=np.float32)
    write_directions(str(place), [Direction("smile", normals[0], 1.5, 0.1), Direction("old: 60+", normals[1], 1.5, 0.1)])
    return Found("faces", str(version), "champion", f"run-{version}", str(place), str(place))


@contextmanager
def serve(folder: Path, *, token: str | None = None) -> Iterator[Site]:
    """Serve version 1 of the model until the block ends."""
    write_features(folder / "features.safetensors")
    distance = PerceptualDistance(embedded_network(load_features(str(folder / "features.safetensors"))))
    means = ProjectionMeans(partial(convert_picture, data=DataConfig(source="/none", resolution=SIDE)), distance)
    found = [write_version(folder, 1)]
    models = Models(lambda: found[-1], "cpu", lambda _found, _generator: means)
    with bind("127.0.0.1", 0) as sock:
        site = Site(url_of(sock, "127.0.0.1"), folder, models)

        def look() -> Found:
            if found[-1].version != str(site.version):
                found.append(write_version(folder, site.version))
            return found[-1]

        models.find = look
        server = uvicorn.Server(uvicorn.Config(make_app(models, token=token), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            server.should_exit = True
            thread.join(30)
