"""The dry run."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stylegan import storage
from stylegan.config.file import build, load
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError, StepError
from stylegan.pipeline.plan import make_plan
from stylegan.pipeline.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"


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


@pytest.mark.parametrize("name", ["ffhq-1024", "cifar10"])
def test_data_out_of_reach_is_planned_for_a_number_of_images(monkeypatch, tmp_path, name):
    """Nobody has credentials here, and there is no such folder; neither is looked at."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("stylegan.pipeline.plan.open_source", lambda *_: pytest.fail("looks at the source"))
    monkeypatch.setattr("stylegan.pipeline.plan.check_root", lambda *_: pytest.fail("looks at storage"))
    config = load(CONFIGS / f"{name}.yaml", ["ray.gpus_per_worker=1"])
    plan = make_plan(config, images=70_000)
    assert (plan.assumed_images, plan.run_id, plan.steps[0].images) == (70_000, None, 70_000)
    trained = [step for step in plan.steps if step.name.startswith("train")]
    assert len(trained) == len(config.resolutions)
    assert all(step.images and step.seconds and step.memory_gib for step in trained)
    with pytest.raises(StepError, match="holds 3 images, fewer than the largest batch"):
        make_plan(config, images=3)


def test_a_plan_says_how_often_g_is_updated(monkeypatch):
    monkeypatch.setattr("stylegan.pipeline.plan.open_source", lambda *_: pytest.fail("looks at the source"))
    tree = TREE | {"model": {"architecture": "resnet", "width": 0.02}, "evaluation": {"metrics": ["fid"]}}
    training = {"batch": 16, "total_kimg": 0.16}
    plain, several = (
        make_plan(build(tree | {"training": training | more}), images=100) for more in ({}, {"d_steps": 3})
    )
    (before,), (after,) = ([step for step in plan.steps if step.name.startswith("train")] for plan in (plain, several))
    assert (before.name, before.images) == (after.name, after.images) == ("train 32x32", 160)
    assert after.reason == f"{before.reason}; 10 updates of D with 16 images each, 3 of G"
    assert after.seconds < before.seconds


def fake_gpu(monkeypatch, name, gib):
    """Describe a machine with one GPU."""
    facts = SimpleNamespace(name=name, total_memory=gib * 2**30, major=8, minor=0, uuid="GPU-1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: facts)


def test_a_plan_knows_the_gpu_and_what_it_costs(monkeypatch):
    """Hours of GPUs add up over the stages that train on some; a GPU that is not used is named."""
    ray = {"gpus_per_worker": 1, "workers": 2, "stages": {8: {"gpus_per_worker": 0, "workers": 1}}}
    tree = TREE | {"training": {"start_resolution": 8, "batch": 32}}
    plan = make_plan(build(tree | {"ray": ray}), images=100)
    trained = {step.name: step for step in plan.steps if step.name.startswith("train")}
    assert trained["train 8x8"].gpu_hours is None
    assert trained["train 32x32"].gpu_hours == pytest.approx(2 * trained["train 32x32"].seconds / 3600)
    evaluate = next(step for step in plan.steps if step.name == "evaluate")
    assert evaluate.gpu_hours == pytest.approx(2 * evaluate.seconds / 3600)  # both workers of the last stage measure
    parts = [trained["train 16x16"].gpu_hours, trained["train 32x32"].gpu_hours, evaluate.gpu_hours]
    assert plan.gpu_hours == pytest.approx(sum(parts))
    assert (plan.cost, plan.priced(0).cost) == (None, 0)
    assert plan.priced(2.5).cost == pytest.approx(2.5 * plan.gpu_hours)
    assert plan.notes == ("GPU: this machine has none",)
    assert make_plan(build(tree), images=100).gpu_hours is None

    fake_gpu(monkeypatch, "NVIDIA A100-SXM4-40GB", 40)
    plan = make_plan(build(tree | {"ray": ray}), images=100)
    assert plan.notes[0] == "GPU: NVIDIA A100-SXM4-40GB of this machine, 40.0 GiB"
    assert any("estimated, nothing was measured on NVIDIA A100-SXM4-40GB" in speed for speed in plan.speeds)
    unused = make_plan(build(tree), images=100)
    assert unused.notes == ("ray.gpus_per_worker=0 leaves the GPU of this machine unused: NVIDIA A100-SXM4-40GB",)
    fake_gpu(monkeypatch, "NVIDIA L4", 24)
    plan = make_plan(build(tree | {"ray": {"gpus_per_worker": 1}}), images=100)
    assert plan.notes[-1].startswith("nothing is known of the speed of NVIDIA L4")
    assert (plan.speeds, plan.gpu_hours) == ((), None)


def test_each_stage_is_planned_for_its_own_gpus_and_the_most_workers_of_a_range():
    """A GPU with half the bandwidth takes longer; a range of workers is shown, and its most workers reserve GPUs."""
    tree = TREE | {"training": {"start_resolution": 8, "batch": 32}}

    def planned(**ray):
        cluster = {"address": "1.2.3.4:5", "gpus_per_worker": 1, "accelerator_type": "H200", **ray}
        steps = make_plan(build(tree | {"ray": cluster}), images=100).steps
        return {step.name: step for step in steps}

    plain, other = planned(), planned(stages={32: {"accelerator_type": "V100"}})
    assert other["train 32x32"].seconds > plain["train 32x32"].seconds
    assert other["evaluate"].seconds > plain["evaluate"].seconds  # on the nodes of the last stage
    assert other["train 16x16"] == plain["train 16x16"]
    assert [other[f"train {side}"].accelerator_type for side in ("16x16", "32x32")] == ["H200", "V100"]
    wide = planned(workers={"min": 2, "max": 8})["train 32x32"]
    assert wide.workers == (2, 8)
    assert wide.gpu_hours == pytest.approx(8 * wide.seconds / 3600)
    unknown = planned(stages={32: {"accelerator_type": "L4"}})
    assert unknown["train 32x32"].seconds is unknown["evaluate"].seconds is None
    assert unknown["train 16x16"].seconds


def test_a_plan_refuses_a_stage_that_the_gpu_of_this_machine_cannot_train(monkeypatch):
    fake_gpu(monkeypatch, "NVIDIA A100-SXM4-40GB", 1)
    config = build(TREE | {"training": {"batch": 512}, "ray": {"gpus_per_worker": 1}})
    with pytest.raises(
        ConfigError, match=r"^train 16x16: needs about \d+\.\d GiB .* for 512 images at a time.* has 1\.0 GiB"
    ):
        make_plan(config, images=1000)


def test_data_that_is_not_found_names_the_way_to_plan_without_it(tmp_path):
    tree = TREE | {
        "storage": {"root": str(tmp_path / "root")},
        "data": {"source": str(tmp_path / "x"), "resolution": 32},
    }
    with pytest.raises(ConfigError, match=r"no such folder or file.*`\S*stylegan plan CONFIG --images N` plans for N"):
        make_plan(build(tree))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "there is no checkpoint, nor stages/0008-k/checkpoint-000001000 below storage.root"),
        ({"checkpoint-000001000/checkpoint.json": 1000}, "its stage is not finished"),
        ({"checkpoint-000001000/checkpoint.json": 1000, "done.json": 2000}, "its stage ended later, at 2000 images"),
    ],
)
def test_a_plan_refuses_a_warm_start_that_cannot_go_on_and_writes_nothing(tmp_path, image_folder, files, says):
    """Before the images are sharded, and afterwards."""
    root, stage = tmp_path / "root", tmp_path / "other" / "stages" / "0008-k"
    uri = str(stage / "checkpoint-000001000")
    for name, nimg in files.items():
        record = {"uri": uri, "run_id": "r", "resolution": 8, "digest": "k", "nimg": nimg}
        storage.write_json(str(stage / name), record)
    tree = {"storage": {"root": str(root)}, "data": {"source": str(image_folder), "resolution": 8}}
    config = build(TREE | tree | {"training": {"batch": 4, "warm_start": {"checkpoint": uri}}})
    line = re.escape(f"training.warm_start.checkpoint={uri}: {says}; give another checkpoint")

    with pytest.raises(ConfigError, match=line):
        make_plan(config)
    assert not root.exists()

    write_shards(open_source(config.data), config.data, str(root))
    before = sorted(root.rglob("*"))
    with pytest.raises(ConfigError, match=line):
        make_plan(config)
    assert sorted(root.rglob("*")) == before
