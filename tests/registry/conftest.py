"""Tiny generators in checkpoints, and reports."""

import pytest
import torch

from stylegan.data.shardset import ShardSet
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator


def _write_checkpoint(config, folder, *, seed=0, label_names=()):
    torch.manual_seed(seed)
    generator = Generator(config.model, resolution=8, channels=1, num_labels=len(label_names))
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "noise_weight" in name:  # zero at the start of training, which would hide the noise from these tests
                parameter.fill_(0.5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generator.safetensors").write_bytes(save_generator(generator, label_names))
    return str(folder)


@pytest.fixture(scope="session")
def write_checkpoint(tiny_config):
    """write_checkpoint(folder, seed=, label_names=): a checkpoint folder with a fresh 8x8 generator; its URI."""
    return lambda folder, **options: _write_checkpoint(tiny_config(folder), folder, **options)


@pytest.fixture
def make_checkpoint(tmp_path, write_checkpoint):
    """make_checkpoint(name): the same below this test's folder."""
    return lambda name: write_checkpoint(tmp_path / name)


@pytest.fixture(scope="session")
def shards():
    """A data set of 1,797 images of two classes, of which no file exists."""
    return ShardSet(
        uri="s3://b/d", fingerprint="f1", num_images=1797, resolutions=(4, 8), label_names=("a", "b"), num_rejected=0
    )


@pytest.fixture(scope="session")
def make_report():
    """A function that gives a report with the FID asked for."""

    def make(fid=10.0, *, checkpoint="s3://b/checkpoint-000001000", protocol="p1", images="f1", **metrics):
        return Report(
            protocol=protocol,
            dataset_fingerprint=images,
            checkpoint_uri=checkpoint,
            metrics={"fid_classifier": fid, **metrics},
            figures={},
            skipped={},
        )

    return make
