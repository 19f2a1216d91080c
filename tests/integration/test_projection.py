"""Projection and edits on real models, by the real command on Ray: every own image comes back, a kill costs nothing twice."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from stylegan.drawing.draw import draw
from stylegan.drawing.project import psnr
from stylegan.evaluation.directions import DIRECTIONS
from stylegan.images import picture
from stylegan.training.state import load_model

pytestmark = pytest.mark.long

CONFIGS = Path(__file__).parents[2] / "configs"
# A short training of a small model on CIFAR-10; the archive of the training images is not part of this repository.
CIFAR = {
    "name": "cifar",
    "data": {"source": os.environ.get("STYLEGAN_TEST_CIFAR10", ""), "resolution": 32},
    "model": {
        "latent_size": 128,
        "mapping_layers": 4,
        "mapping_fmaps": 128,
        "mapping_lrmul": 0.1,
        "fmap_base": 1024,
        "fmap_max": 64,
        "conditional": True,
        "label_scale": 0.2,
    },
    "training": {
        "start_resolution": 8,
        "fade_kimg": 3,
        "stable_kimg": {8: 10, 16: 8, 32: 8},
        "batch": 16,
        "learning_rate": 0.004,
        "r1_gamma": 0.5,
        "penalty_interval": 8,
        "ema_kimg": 1,
    },
    "snapshots": {"checkpoint_kimg": 10, "log_kimg": 2, "samples_kimg": 5, "metrics_kimg": 0},
    "evaluation": {"metrics": ["fid", "separability"], "num_images": 1000, "separability_samples": 2000},
}


@pytest.fixture(scope="module")
def digits(make_place):
    """Return a place with the finished quickstart, and its summary."""
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    config.pop("storage")
    place = make_place(**config)
    return place, place.json("run", str(place.config))


def own_images(summary: dict, folder: Path, number: int) -> list[Path]:
    """Draw images as `sample` does, of a class each, as files of their own size."""
    generator, names = load_model(summary["checkpoints"][-1]["uri"])
    images = draw(generator, range(200, 200 + number), labels=[seed % len(names) for seed in range(number)])
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(number)]
    for path, image in zip(paths, images, strict=True):
        picture(image, cell=1).save(path)
    return paths


def assert_recovered(place, run: str, paths: list[Path]) -> None:
    """Assert the promise of projection: more than 30 dB in w+ within 500 steps, and the latents draw the same image."""
    record = place.json("project", run, str(paths[0].parent), "--out", str(place.folder / "found"))
    assert record["steps"] <= 500
    assert [image["error"] for image in record["images"]] == [""] * len(paths)
    for image, path in zip(record["images"], paths, strict=True):
        figures = image["figures"]
        assert figures["psnr"] > 30, image
        assert figures["distance"] < 0.05 * figures["start_distance"], image
        assert figures["remarks"] == []
        out = place.folder / "again.png"
        place.run("sample", run, "--w", f"{image['folder']}/w.npz", "--out", str(out))
        target, again = (Image.open(file) for file in (path, out))
        again = again.resize(target.size, Image.Resampling.NEAREST)
        assert psnr(*(array(drawn) for drawn in (target, again))) == pytest.approx(figures["psnr"], rel=1e-6)


def array(image: Image.Image):
    import torch

    return torch.tensor(np.asarray(image))


def test_digits_come_back(digits):
    place, summary = digits
    run = f"{place.root}/runs/{summary['run_id']}"
    assert_recovered(place, run, own_images(summary, place.folder / "digits", 4))


def test_a_killed_batch_goes_on_where_it_stopped(digits):
    """No picture twice; and the files are those of a batch that was never killed."""
    place, summary = digits
    run = f"{place.root}/runs/{summary['run_id']}"
    paths = own_images(summary, place.folder / "batch", 6)
    arguments = ("project", run, str(paths[0].parent), "--steps", "150", "--out")
    process = place.start(*arguments, str(place.folder / "killed"))
    deadline = time.monotonic() + 180
    while not list((place.folder / "killed").glob("*/projection.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = list((place.folder / "killed").glob("*/projection.json"))
    assert 1 <= len(done) < 6
    again = place.json(*arguments, str(place.folder / "killed"))
    assert sum(image["cached"] for image in again["images"]) >= len(done)
    place.json(*arguments, str(place.folder / "whole"))
    for path in paths:
        killed, whole = (place.folder / out / path.stem / "w.npz" for out in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()


def test_a_run_keeps_its_directions_and_is_edited_along_them(digits):
    place, summary = digits
    folder = Path(place.root, "runs", summary["run_id"])
    assert (folder / DIRECTIONS).exists()
    client = MlflowClient(f"sqlite:///{place.root}/mlflow.db")
    assert DIRECTIONS in [file.path for file in client.list_artifacts(summary["mlflow_run_id"])]
    out = str(place.folder / "strip.png")
    record = place.json("edit", str(folder), "--attribute", "3", "--label", "8", "--strength", "-2..2", "--out", out)
    assert (record["strengths"], record["label"], len(record["rows"])) == ([-2, -1, 0, 1, 2], "8", 4)

    # A run of an earlier version: its report stays as it is, and the cure that is printed works.
    before, report = (folder / DIRECTIONS).read_bytes(), (folder / "report.json").read_bytes()
    (folder / DIRECTIONS).unlink()
    place.run("edit", str(folder), "--attribute", "3", "--out", out, code=2)
    assert f"evaluate {folder}` fits the hyperplanes of its report again" in place.errors()
    assert place.json("evaluate", str(folder))["cached"]
    assert (folder / DIRECTIONS).read_bytes() == before
    assert (folder / "report.json").read_bytes() == report


@pytest.mark.skipif(not CIFAR["data"]["source"], reason="STYLEGAN_TEST_CIFAR10 names no archive of CIFAR-10")
def test_cifar_comes_back(make_place):
    place = make_place(**CIFAR)
    summary = json.loads(place.run("run", str(place.config), "--json", seconds=3600))  # of training, on a busy machine
    run = f"{place.root}/runs/{summary['run_id']}"
    assert_recovered(place, run, own_images(summary, place.folder / "cifar", 4))
