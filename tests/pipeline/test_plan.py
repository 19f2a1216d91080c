"""The dry run."""

import pytest

from stylegan import storage
from stylegan.config.file import build
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.pipeline.plan import make_plan
from stylegan.pipeline.run import Run


def test_a_plan_leaves_out_what_nothing_needs(tmp_path, image_folder):
    """A finished stage needs none of those below it; one that is under way needs none either, and is not finished."""
    tree = {
        "name": "t",
        "storage": {"root": str(tmp_path / "root")},
        "data": {"source": str(image_folder), "resolution": 16},
        "training": {"start_resolution": 4, "batch": 4},
    }
    config = build(tree)
    shards = write_shards(open_source(config.data), config.data, config.storage.root)
    run = Run(config, shards)

    def stages() -> list[tuple[str, str]]:
        steps = make_plan(config).steps
        return [(step.name, step.state) for step in steps if step.name.startswith("train")]

    names = ["train 4x4", "train 8x8", "train 16x16"]
    assert stages() == [(name, "run") for name in names]
    last = run.stages[-1]
    record = {"uri": f"{run.stage_uri(last)}/checkpoint-001000000", "run_id": "r", "resolution": 16}
    record |= {"digest": run.stage_key(last), "nimg": 1_000_000}
    storage.write_json(f"{record['uri']}/checkpoint.json", record)
    assert stages() == list(zip(names, ["not needed", "not needed", "run"], strict=True))
    storage.write_json(f"{run.stage_uri(last)}/done.json", record)
    assert stages() == list(zip(names, ["not needed", "not needed", "cached"], strict=True))


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
