"""A tiny data set, a tiny generator and its report, shared by the tests of this folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from stylegan import storage
from stylegan.config.sections import METRICS, DataConfig, EvaluationConfig, ModelConfig
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator

TINY = ModelConfig(latent_size=16, mapping_layers=2, mapping_fmaps=16, fmap_max=8)


def draw_set(folder: Path, num_images: int) -> Path:
    """Draw images with a bright spot in the half that names the class, and a line at the top to show the rotation."""
    generator = torch.Generator().manual_seed(0)
    for number in range(num_images):
        half = ("left", "right")[number % 2]
        x, y, light = (
            int(torch.randint(low, high, (), generator=generator)) for low, high in ((0, 2), (2, 6), (120, 255))
        )
        image = Image.new("L", (8, 8), 40)
        pen = ImageDraw.Draw(image)
        pen.line((0, 0, 7, 0), fill=90)
        pen.rectangle((x + 4 * (half == "right"), y, x + 4 * (half == "right") + 1, y + 1), fill=light)
        (folder / half).mkdir(parents=True, exist_ok=True)
        image.save(folder / half / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a storage root; feature networks in it are trained once for all tests."""
    return str(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, root: str) -> ShardSet:
    """Return shards of two classes of 60 grey 8x8 images each."""
    source = draw_set(tmp_path_factory.mktemp("images"), 120)
    data = DataConfig(source=str(source), resolution=8, channels=1, duplicates="keep")
    return write_shards(open_source(data), data, root)


@pytest.fixture(scope="session")
def unlabelled(shards: ShardSet) -> ShardSet:
    """Return the same images as if they had no labels."""
    return shards.model_copy(update={"label_names": ()})


@pytest.fixture(scope="session")
def evaluation() -> EvaluationConfig:
    """Return settings for all metrics, each on two chunks of samples and one chunk of reals."""
    return EvaluationConfig(
        metrics=tuple(name for name in METRICS if name != "transfer"),  # of another kind of model
        num_images=300,
        num_reals=120,
        ppl_samples=300,
        separability_samples=400,
        bootstrap=20,
        psi=(0.5, 1.0),
    )


def write_checkpoint(
    folder: Path,
    *,
    resolution: int = 8,
    label_names: tuple[str, ...] = (),
    change: Callable[[Generator], object] | None = None,
    **model: Any,
) -> str:
    """Write a tiny generator and return the URI of its folder.

    `model` changes the config of the network, `change` edits the network before it is written.
    """
    torch.manual_seed(0)
    generator = Generator(TINY.model_copy(update=model), resolution=resolution, channels=1, num_labels=len(label_names))
    if change:
        with torch.no_grad():
            change(generator)
    uri = str(folder / f"checkpoint-{resolution}")
    storage.write_bytes(storage.join(uri, "generator.safetensors"), save_generator(generator, label_names))
    return uri


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., str]:
    """Return `checkpoint(resolution=8, label_names=(), change=None)`; see `write_checkpoint`."""
    return partial(write_checkpoint, tmp_path)


@pytest.fixture(scope="session")
def measured(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, tmp_path_factory: pytest.TempPathFactory
) -> Report:
    """Return the report of a tiny generator with all metrics and figures, by plain `map`."""
    from stylegan.evaluation.engine import evaluate

    folder = tmp_path_factory.mktemp("measured")
    return evaluate(write_checkpoint(folder), shards, evaluation, root=root, out_uri=str(folder / "out"))
