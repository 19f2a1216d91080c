"""An empty MLflow database to copy (making one takes seconds), tiny generators and reports."""

import shutil

import pytest
import torch

from stylegan import config_file as config_module
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator
from stylegan.networks.weights import save_generator
from stylegan.registry.server import connect


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """Path of a SQLite file that holds MLflow's tables and nothing else."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


def _tiny_config(root, **sections):
    tree = {
        "name": "tiny",
        "storage": {"root": str(root)},
        "data": {"source": "digits", "resolution": 8, "channels": 1},
        "model": {"latent_size": 6, "mapping_layers": 2, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
        "training": {"batch": 4},
    }
    return config_module.build(tree | sections)


@pytest.fixture(scope="session")
def tiny_config():
    """tiny_config(root, **sections): an 8x8 run whose storage is `root`."""
    return _tiny_config


@pytest.fixture
def make_config(tmp_path, empty_database):
    """A function that gives a config whose embedded MLflow is an empty database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return lambda **sections: _tiny_config(tmp_path, **sections)


def _write_checkpoint(folder, *, seed=0, label_names=()):
    config = _tiny_config(folder)
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
def write_checkpoint():
    """write_checkpoint(folder, seed=, label_names=): a checkpoint folder with a fresh 8x8 generator; its URI."""
    return _write_checkpoint


@pytest.fixture
def make_checkpoint(tmp_path):
    """make_checkpoint(name): the same below this test's folder."""
    return lambda name: _write_checkpoint(tmp_path / name)


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
