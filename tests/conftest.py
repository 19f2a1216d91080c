"""Fixtures for all tests: servers on this machine, small drawn images, a tiny config, a private cache."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from message_service import MessageService, serve_messages
from s3_faults import Faults, faulty

from stylegan.config.places import VARIABLES

# cuBLAS reads this at its first product, and tests of exact resume on a GPU need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# A slow or busy machine is no fault.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set $STYLEGAN_CACHE to a temporary folder, for this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLEGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _outside_a_stack() -> Iterator[None]:
    """Remove the places of a stack: the shell may have read `infra/stack.env`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Let torch use one thread: small tensors are slower on several threads, and much slower on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Callable[[], str]]:
    """Return a function that makes an empty bucket on a real S3 server and returns its URL.

    The environment variables of this process and its children name the server.
    """
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": host,
    }
    numbers = count()

    def fresh_bucket() -> str:
        import boto3

        name = f"bucket-{next(numbers)}"
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}"

    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        yield fresh_bucket
    server.stop()


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Callable[[], str]]:
    """Return a function that makes an empty bucket on a server of Google's JSON API and returns its URL.

    The environment variables of this process and its children name the server.
    """
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    host, port = server._api._httpd.server_address
    numbers = count()

    def fresh_bucket() -> str:
        import gcsfs

        name = f"gcs-bucket-{next(numbers)}"
        gcsfs.GCSFileSystem(skip_instance_cache=True).mkdir(name)
        return f"gs://{name}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks another API, by gRPC
        patch.setenv("NO_PROXY", host)
        yield fresh_bucket
    server.stop()


@pytest.fixture(scope="session")
def faulty_s3(s3_server: Callable[[], str]) -> Callable[..., AbstractContextManager[Faults]]:
    """Return a context manager, used as `with faulty_s3(seed=1, rate=0.3) as faults`.

    In its block this process and its children reach the S3 server through a proxy that injects faults.
    """
    import os

    upstream = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")

    def forget_connections() -> None:
        from s3fs import S3FileSystem

        S3FileSystem.clear_instance_cache()

    @contextmanager
    def proxied(**options: object) -> Iterator[Faults]:
        faults = Faults(upstream, **options)  # type: ignore[arg-type]
        with faulty(faults) as url, pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", url)
            forget_connections()
            try:
                yield faults
            finally:
                forget_connections()

    return proxied


@pytest.fixture
def message_service() -> Iterator[MessageService]:
    """Return a running service that keeps the messages that it was sent; `retrain.notify` names its `url()`."""
    with serve_messages() as service:
        yield service


@pytest.fixture(scope="session")
def draw_images() -> Callable[..., Path]:
    """Return `draw_images(folder, names, size=(24, 20), mode="RGB")`, which draws a different PNG for each name."""

    def draw(folder: Path, names: list[str], *, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Path:
        from PIL import Image, ImageDraw

        for number, name in enumerate(names):
            image = Image.new("RGB", size, (40 + 7 * number % 200, 90, 250 - 11 * number % 200))
            left, top = number % (size[0] // 2), (3 * number) % (size[1] // 2)
            ImageDraw.Draw(image).ellipse(
                (left, top, left + size[0] // 3, top + size[1] // 3), fill=(250, 20 * number % 256, 10)
            )
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.convert(mode).save(folder / name)
        return folder

    return draw


@pytest.fixture
def image_folder(tmp_path: Path, draw_images: Callable[..., Path]) -> Path:
    """Return a folder with the class folders `cat` (7 images) and `dog` (5 images) of 24x20 RGB PNGs."""
    names = [f"cat/{i}.png" for i in range(7)] + [f"dog/{i}.png" for i in range(5)]
    return draw_images(tmp_path / "images", names)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a SQLite file with MLflow's empty tables. It is shared, because making one takes seconds."""
    from stylegan.tracking.connection import connect

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


def _tiny_config(root: str | Path, **sections: object) -> Any:
    """Build the config of an 8x8 run whose storage is `root`; `sections` replace whole sections."""
    from stylegan.config.file import build

    tree = {
        "name": "tiny",
        "storage": {"root": str(root)},
        "data": {"source": "digits", "resolution": 8, "channels": 1},
        "model": {"latent_size": 6, "mapping_layers": 2, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
        "training": {"batch": 4},
    }
    return build(tree | sections)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """Return `tiny_config(root, **sections)`, which builds the config of an 8x8 run whose storage is `root`."""
    return _tiny_config


@pytest.fixture
def make_config(tmp_path: Path, empty_database: Path) -> Callable[..., Any]:
    """Return `make_config(**sections)`, which builds a tiny config whose embedded MLflow is an empty database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return lambda **sections: _tiny_config(tmp_path, **sections)


# `make test-fast` leaves out tests that start an engine and files that train, export or measure for long.
ENGINE_FOLDERS = ("integration", "flows", "tracking", "registry", "cluster", "verbs")
ENGINE_FIXTURES = {"s3_server", "gcs_server", "faulty_s3", "empty_database"}
SLOW_FILES = {
    "test_ablations.py",
    "test_against_plain.py",
    "test_attributes.py",
    "test_bench_gpu.py",
    "test_distributed.py",
    "test_engine.py",
    "test_faithful.py",
    "test_figures.py",
    "test_hardware.py",
    "test_inception.py",
    "test_kid.py",
    "test_lazy.py",
    "test_loader.py",
    "test_loop.py",
    "test_metric_table.py",
    "test_official.py",
    "test_onnx.py",
    "test_precision_recall.py",
    "test_probe.py",
    "test_projections.py",
    "test_resume.py",
    "test_selfsupervision.py",
    "test_spaces.py",
    "test_spectral_norm.py",
    "test_step.py",
    "test_stop.py",
    "test_variants.py",
    "test_vgg.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start an engine (by folder, fixture or parameter `s3`) and tests of slow files."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        fixtures = ENGINE_FIXTURES & set(getattr(item, "fixturenames", ()))
        if folder in ENGINE_FOLDERS or fixtures or "[s3" in item.name or "[gcs" in item.name:
            item.add_marker("engine")
        if item.path.name in SLOW_FILES:
            item.add_marker("slow")
