"""Directions of attributes: what an evaluation keeps beside its report, without a change of the report."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stylegan.config.sections import EvaluationConfig
from stylegan.data.shardset import ShardSet
from stylegan.errors import DamagedError
from stylegan.evaluation.directions import (
    DIRECTIONS,
    Direction,
    lacks_directions,
    read_directions,
    write_directions,
)
from stylegan.evaluation.engine import evaluate, fit_directions
from stylegan.evaluation.report import Report

RNG = np.random.default_rng(0)


def some() -> list[Direction]:
    normals = RNG.standard_normal((2, 5)).astype(np.float32)
    return [
        Direction(name, normal / np.linalg.norm(normal), scale, 0.25)
        for name, normal, scale in zip(("smile", 'with "quotes" and \u00fcmlaut'), normals, (1.5, 0.2), strict=True)
    ]


def test_directions_come_back_as_they_were_written(tmp_path: Path) -> None:
    directions = some()
    write_directions(str(tmp_path), directions)
    found = read_directions(str(tmp_path))
    assert list(found) == directions
    for one, other in zip(found, directions, strict=True):
        assert np.array_equal(one.normal, other.normal)
    content = (tmp_path / DIRECTIONS).read_bytes()
    write_directions(str(tmp_path), directions)
    assert (tmp_path / DIRECTIONS).read_bytes() == content


def test_a_folder_without_the_file_has_none(tmp_path: Path) -> None:
    assert read_directions(str(tmp_path)) == ()


def test_damage_is_one_line_with_the_file_and_the_cure(tmp_path: Path) -> None:
    write_directions(str(tmp_path), some())
    path = tmp_path / DIRECTIONS
    whole = path.read_bytes()
    nan = whole[:-4] + np.float32("nan").tobytes()
    for wrong in (
        b"",
        b"{}",
        whole[:40],
        whole[:-8],
        bytes(range(256)),
        whole.replace(b'version\\": 1', b'version\\": 9'),
        nan,
    ):
        path.write_bytes(wrong)
        with pytest.raises(DamagedError, match="is damaged") as caught:
            read_directions(str(tmp_path))
        assert str(path) in str(caught.value)
        assert "delete it" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def both(
    shards: ShardSet, root: str, tmp_path_factory: pytest.TempPathFactory, measured: Report
) -> tuple[Report, EvaluationConfig, Path]:
    """Return a report of separability alone, its settings, and its folder."""
    evaluation = EvaluationConfig(metrics=("separability",), separability_samples=400, num_images=100)
    folder = tmp_path_factory.mktemp("separability")
    report = evaluate(measured.checkpoint_uri, shards, evaluation, root=root, out_uri=str(folder))
    return report, evaluation, folder


def test_an_evaluation_keeps_the_hyperplanes_of_its_attributes(both: tuple[Report, EvaluationConfig, Path]) -> None:
    """They tell the attributes apart as the report says, and their scale is the deviation of w along them."""
    report, _, folder = both
    found = read_directions(str(folder))
    scored = {name: facts for name, facts in report.attributes.items() if facts["entropy_w"] is not None}
    assert {one.name: one.entropy for one in found} == {name: facts["entropy_w"] for name, facts in scored.items()}
    assert found
    for one in found:
        assert np.linalg.norm(one.normal) == pytest.approx(1, rel=1e-5)
        assert one.scale > 0
    assert not lacks_directions(report, str(folder))


def test_the_report_is_the_same_with_and_without_them(
    both: tuple[Report, EvaluationConfig, Path], shards: ShardSet, root: str
) -> None:
    report, evaluation, _ = both
    without = evaluate(report.checkpoint_uri, shards, evaluation, root=root)
    assert without.model_dump(exclude={"figures"}) == report.model_dump(exclude={"figures"})
    assert "directions" not in json.dumps(report.model_dump(mode="json"))


def test_those_that_are_gone_are_fitted_again_as_they_were(
    both: tuple[Report, EvaluationConfig, Path], shards: ShardSet, root: str, tmp_path: Path
) -> None:
    """Also beside the settings of an evaluation by many metrics, of which the others are not measured."""
    report, evaluation, folder = both
    assert lacks_directions(report, str(tmp_path))
    many = evaluation.model_copy(update={"metrics": ("fid", "separability", "pr")})
    fit_directions(report.checkpoint_uri, shards, many, root=root, out_uri=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [DIRECTIONS]
    assert (tmp_path / DIRECTIONS).read_bytes() == (folder / DIRECTIONS).read_bytes()


def test_an_evaluation_without_attributes_keeps_none(
    shards: ShardSet, root: str, checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    evaluation = EvaluationConfig(metrics=("kid",), num_images=100, kid_subset_size=50)
    report = evaluate(checkpoint(), shards, evaluation, root=root, out_uri=str(tmp_path / "out"))
    assert not (tmp_path / "out" / DIRECTIONS).exists()
    assert not lacks_directions(report, str(tmp_path / "out"))
