"""The figures of an evaluation."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylegan import storage
from stylegan.config.sections import EvaluationConfig
from stylegan.data.loading.loader import load_images
from stylegan.data.shardset import ShardSet
from stylegan.evaluation.features.spaces import Spaces
from stylegan.evaluation.figures import draw_extremes, draw_grid, draw_neighbours, draw_truncation
from stylegan.evaluation.generate import Subject, read_generator, sha256
from stylegan.evaluation.metrics.precision_recall import Manifold
from stylegan.evaluation.report import Report
from stylegan.networks.generator import Generator


def cells(uri: str, columns: int = 8) -> np.ndarray:
    """Return the images of a grid of grey 8x8 images, which are drawn at 64x64, as int [rows, columns, 8, 8]."""
    sheet = np.asarray(Image.open(io.BytesIO(storage.read_bytes(uri)))).astype(int)
    rows, left = sheet.shape[0] // 67, sheet.shape[1] - columns * 67
    if uri.endswith("grid.png"):  # two grids side by side, each with a gutter around it
        sheet, left = np.delete(sheet, np.s_[3 + 8 * 67 : 6 + 8 * 67], axis=1), 3
    body = sheet[sheet.shape[0] - rows * 67 :, left:].reshape(rows, 67, columns, 67)
    return body[:, :64:8, :, :64:8].swapaxes(1, 2)


def make_subject(
    shards: ShardSet, evaluation: EvaluationConfig, uri: str = "", images: ShardSet | None = None
) -> Subject:
    """Return the subject of an evaluation of a checkpoint or of images."""
    generator = storage.join(uri, "generator.safetensors") if uri else ""
    return Subject(
        generator, sha256(read_generator(generator)) if uri else "", images, shards, (), Spaces({}), evaluation, "cpu"
    )


def test_an_evaluation_draws_what_it_has_measured(measured: Report) -> None:
    assert {name: storage.name(uri) for name, uri in measured.figures.items()} == {
        name: f"{name}.png" for name in ("grid", "best", "worst", "neighbours", "truncation")
    }
    assert cells(measured.figures["best"]).shape == (2, 8, 8, 8)


def test_the_grid_shows_reals_on_the_left_and_fakes_on_the_right(
    shards: ShardSet, evaluation: EvaluationConfig, checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    def brighten(generator: Generator) -> None:
        generator.synthesis.to_rgb[-1].bias.fill_(0.5)  # type: ignore[union-attr,operator]

    uri = draw_grid(make_subject(shards, evaluation, checkpoint(change=brighten)), str(tmp_path / "out"), map)
    assert uri == f"{tmp_path}/out/grid.png"
    sheet, reals = cells(uri, 16), load_images(shards, 8).images
    assert sheet.shape == (8, 16, 8, 8)
    assert np.array_equal(sheet[0, 1], reals[1, 0])
    assert np.array_equal(sheet[1, 0], reals[8, 0])
    assert sheet[:, 8:].mean() > 150 > sheet[:, :8].mean()


def test_the_best_image_comes_first_and_the_worst_too(
    shards: ShardSet, evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    realism = np.random.default_rng(0).permutation(120).astype(float)
    uris = draw_extremes(make_subject(shards, evaluation, images=shards), realism, str(tmp_path), map)
    images = load_images(shards, 8).images
    assert np.array_equal(cells(uris["best"])[0, 0], images[realism.argmax(), 0])
    assert np.array_equal(cells(uris["best"])[1, 0], images[realism.argsort()[::-1][8], 0])
    assert np.array_equal(cells(uris["worst"])[0, 0], images[realism.argmin(), 0])


def test_extremes_of_a_generator_are_drawn_again_as_they_were(
    shards: ShardSet, evaluation: EvaluationConfig, checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    """The grid shows the first 64 images by number."""
    subject = make_subject(shards, evaluation, checkpoint())
    grid = cells(draw_grid(subject, str(tmp_path), map), 16)[:, 8:]
    best = cells(draw_extremes(subject, -np.arange(300.0), str(tmp_path), map)["best"])
    assert np.abs(best - grid[:2]).max() <= 1


def test_neighbours_are_the_reals_that_are_nearest_in_features(
    shards: ShardSet, evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    """The images of highest realism come first. Measured against itself, each image is its own nearest real, at distance 0."""
    reals = load_images(shards, 8).images
    features = reals.reshape(len(reals), -1).astype(np.float32)
    realism = np.random.default_rng(0).permutation(len(reals)).astype(float)
    subject = make_subject(shards, evaluation, images=shards)
    uri = draw_neighbours(subject, realism, features, Manifold.of(features), str(tmp_path), map)
    sheet = cells(uri, 6)
    numbers = [*np.argsort(-realism)[:4], *[n for n in range(8) if n not in np.argsort(-realism)[:4]][:4]]
    for row, number in enumerate(numbers):
        distances = np.square(features - features[number]).sum(1)
        distances[number] = -1
        assert np.array_equal(sheet[row, 0], reals[number, 0])
        assert np.array_equal(sheet[row, 1:], reals[np.argsort(distances, kind="stable")[:5], 0])


def test_truncation_has_a_row_of_the_same_latents_for_each_psi(
    shards: ShardSet, evaluation: EvaluationConfig, checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    """At psi = 0 all images are the average one, up to their noise; at psi = 1 they are the images of the grid."""
    subject = make_subject(shards, evaluation.model_copy(update={"psi": (0.0, 1.0)}), checkpoint())
    sheet = cells(draw_truncation(subject, str(tmp_path), map))
    grid = cells(draw_grid(subject, str(tmp_path), map), 16)[0, 8:]
    assert np.abs(sheet[1] - grid).max() <= 1
    assert np.ptp(sheet[0], axis=0).mean() < np.ptp(sheet[1], axis=0).mean()


@pytest.mark.parametrize(("resolution", "columns"), [(8, 8), (256, 8), (1024, 2)])
def test_sheets_stay_within_2048_pixels(resolution: int, columns: int) -> None:
    from stylegan.evaluation.figures import _columns

    assert _columns(resolution) == columns
