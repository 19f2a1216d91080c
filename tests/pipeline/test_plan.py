"""The dry run."""

import pytest

from stylegan.config.file import build
from stylegan.pipeline.plan import make_plan

TREE = {"name": "t", "data": {"source": "digits", "resolution": 32}, "training": {"start_resolution": 8}}


def test_a_plan_names_the_weights_that_are_missing_and_fetches_none(tmp_path, monkeypatch):
    """Nothing is downloaded or written by looking; the small network needs no weights."""
    monkeypatch.setenv("STYLEGAN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(
        "stylegan.evaluation.features.public_weights._download", lambda wanted: pytest.fail(f"downloads {wanted.uri}")
    )
    tree = TREE | {"storage": {"root": str(tmp_path / "root")}}
    plan = make_plan(build(tree | {"evaluation": {"features": "inception", "metrics": ["fid", "pr"]}}))
    assert plan.missing == ("pt_inception-2015-12-05-6726825d.pth (96 MB)", "vgg16-397923af.pth (553 MB)")
    assert make_plan(build(tree | {"evaluation": {"metrics": ["fid"]}})).missing == ()
    assert list(tmp_path.iterdir()) == []
