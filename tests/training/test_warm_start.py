"""Training that goes on from a model: the whole state, no reset, the same after a kill; keys; what is refused beforehand."""

import json
import re
import shutil
from pathlib import Path

import pytest
from contents import assert_same, curves, training_state

from stylegan import storage
from stylegan.config.file import build, dump
from stylegan.data.shardset import ShardSet
from stylegan.errors import ConfigError
from stylegan.networks.weights import read_description
from stylegan.pipeline.keys import make_keys, stage_keys
from stylegan.training.graphs import StepRunner
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import stages
from stylegan.training.state import start_stage
from stylegan.training.stop import StageStopped
from stylegan.training.warm_start import find_warm_checkpoint, require_warm_start, warm_obstacle

NAME = "0008-0123456789"
CLASSES = ("a", "b")


@pytest.fixture
def model(job, tmp_path):
    """The end of a trained 8x8 stage in a storage root; its URI, and the job that made it."""
    below = train_stage(job(4, "first"))
    last = job(8, "first", previous=below)
    trained = train_stage(last)
    stage = tmp_path / "root" / "stages" / NAME
    shutil.copytree(last.uri, stage)
    return str(stage / storage.name(trained.uri)), last


def warm_config(job, uri, tmp_path, **sections):
    config = job.config.model_dump(mode="json")
    config["storage"]["root"] = str(tmp_path / "root")
    config["training"] |= {"warm_start": {"checkpoint": uri, "kimg": 0.024}}
    for name, values in sections.items():
        config[name] |= values
    return build(config)


def warm_job(model, tmp_path, name="warm", **sections):
    uri, last = model
    config = warm_config(last, uri, tmp_path, **sections)
    (stage,) = stages(config)
    return StageJob(
        config=config,
        stage=stage,
        shards=last.shards,
        key="w",
        run_id="r",
        uri=str(tmp_path / name),
        previous=find_warm_checkpoint(config),
    )


def test_a_warm_start_is_one_stage_that_begins_at_the_image_count_of_its_checkpoint(model, tmp_path):
    job = warm_job(model, tmp_path)
    assert (job.stage.resolution, job.stage.start_nimg, job.stage.end_nimg, job.stage.fade_images) == (8, 56, 80, 0)
    assert job.is_warm
    assert job.config.resolutions == (8,)


def test_the_state_is_that_of_the_checkpoint_to_the_last_bit(model, tmp_path):
    """G, D, the average and its w_avg, and both Adams with their steps."""
    job = warm_job(model, tmp_path)
    state = start_stage(job.config, job.stage, num_labels=2, previous=job.previous).state_dict()
    saved = training_state(job.previous.uri)
    for part in ("G", "D", "G_ema", "log2_scale"):
        assert_same(dict(state[part]), dict(saved[part]), part)
    for part in ("opt_G", "opt_D"):
        assert_same(state[part]["state"], saved[part]["state"], part)
    assert float(next(iter(state["opt_G"]["state"].values()))["step"]) > 0
    assert (state["nimg"], state["steps"], state["sums"]) == (56, 0, {})


def test_no_optimizer_is_reset(model, tmp_path, monkeypatch):
    """A fresh Adam moves every weight by about the learning rate; one that goes on knows the sizes of the gradients."""
    job = warm_job(model, tmp_path)
    monkeypatch.setattr(StepRunner, "reset_optimizers", lambda _: pytest.fail("resets Adam"))
    train_stage(job)
    steps = {
        float(values["step"]) for values in training_state(f"{job.uri}/checkpoint-000000080")["opt_D"]["state"].values()
    }
    before = {float(values["step"]) for values in training_state(job.previous.uri)["opt_D"]["state"].values()}
    assert max(steps) > max(before)


def test_a_stage_that_is_killed_and_repeated_ends_with_the_same_bits(model, tmp_path):
    whole = warm_job(model, tmp_path, "whole")
    end = train_stage(whole)
    cut = warm_job(model, tmp_path, "cut")
    asked = iter([False] * 4 + [True] * 100)
    with pytest.raises(StageStopped):
        train_stage(cut, stop=lambda: next(asked))
    assert train_stage(cut.model_copy(update={"previous": None})).nimg == end.nimg  # the model is not needed any more
    assert_same(
        training_state(f"{whole.uri}/{storage.name(end.uri)}")["G"],
        training_state(f"{cut.uri}/{storage.name(end.uri)}")["G"],
    )
    assert curves(whole.uri) == curves(cut.uri)


def test_the_average_is_the_model_itself_so_its_metrics_are_the_same(model, tmp_path):
    job = warm_job(model, tmp_path)
    state = start_stage(job.config, job.stage, num_labels=2, previous=job.previous)
    assert_same(dict(state.G_ema.state_dict()), training_state(job.previous.uri)["G_ema"])


# --- identity ---


def keys_of(config):
    shards = ShardSet(uri="x", fingerprint="f", num_images=9, resolutions=(4, 8), label_names=CLASSES, num_rejected=0)
    return stage_keys(config, shards), make_keys(config, shards).run_id


def test_the_key_knows_the_model_wherever_its_root_is(model, tmp_path):
    uri, last = model
    keys = keys_of(warm_config(last, uri, tmp_path))
    assert keys_of(warm_config(last, f"s3://elsewhere/stages/{NAME}/{storage.name(uri)}", tmp_path)) == keys
    assert keys_of(warm_config(last, f"{tmp_path}/stages/0008-9876543210/{storage.name(uri)}", tmp_path)) != keys
    assert keys_of(warm_config(last, f"{tmp_path}/stages/{NAME}/checkpoint-000000044", tmp_path)) != keys
    assert keys_of(last.config) != keys
    longer = warm_config(last, uri, tmp_path, training={"warm_start": {"checkpoint": uri, "kimg": 0.1}})
    assert keys_of(longer) != keys


def test_settings_of_lower_stages_stay_legal(model, tmp_path):
    uri, last = model
    config = warm_config(last, uri, tmp_path, training={"stages": {4: {"batch": 8}}, "warm_start": {"checkpoint": uri}})
    assert config.resolutions == (8,)


def test_a_checkpoint_is_found_below_the_present_root(model, tmp_path):
    uri, last = model
    config = warm_config(last, f"/gone/stages/{NAME}/{storage.name(uri)}", tmp_path)
    assert find_warm_checkpoint(config).uri == uri


# --- what is refused before anything is made ---


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("/tmp/x", "must be a folder of a stage"),
        ("models:/digits@champion", "must be a folder of a stage"),
        ("/tmp/stages/0008-0123456789", "must be a folder of a stage"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_the_config(uri, says, job):
    config = job(8, "x").config.model_dump(mode="json")
    config["training"]["warm_start"] = {"checkpoint": uri, "kimg": 1.0}
    with pytest.raises(ConfigError, match=says):
        build(config)


@pytest.mark.parametrize(
    ("sections", "classes", "says"),
    [
        ({}, CLASSES, None),
        ({"model": {"fmap_max": 4}}, CLASSES, r"its networks have model\.fmap_max=8, this config has 4"),
        ({"model": {"style_mixing_prob": 0.5}}, CLASSES, None),
        ({"data": {"channels": 1}}, CLASSES, r"its images have 3 channel\(s\), data\.channels is 1"),
        ({"data": {"resolution": 16}}, CLASSES, "it is of 8x8, this config ends at 16x16"),
        ({}, ("a", "c"), r"it knows 2 class\(es\), which are not the 2 of these images"),
        ({"model": {"conditional": False}}, CLASSES, r"model\.conditional=True"),
    ],
)
def test_other_networks_are_refused_in_words(model, tmp_path, sections, classes, says):
    uri, last = model
    config = warm_config(last, uri, tmp_path, **sections)
    obstacle = warm_obstacle(config, uri, classes)
    if says is None:
        assert obstacle is None
        require_warm_start(config, classes)
        return
    assert re.search(says, obstacle)
    with pytest.raises(ConfigError, match=r"training\.warm_start\.checkpoint=.*give another one"):
        require_warm_start(config, classes)


def test_a_model_that_is_gone_or_cut_is_refused_in_words(model, tmp_path):
    uri, last = model
    config = warm_config(last, uri, tmp_path)
    Path(uri, "generator.safetensors").write_bytes(b"cut")
    assert "is no generator file" in warm_obstacle(config, uri, CLASSES)
    Path(uri, "training.pt").unlink()
    assert "it is gone, or holds no state of training" in warm_obstacle(config, uri, CLASSES)
    shutil.rmtree(uri)
    assert "it is gone" in warm_obstacle(config, uri, CLASSES)


def test_a_head_for_rotations_must_be_there_if_it_is_asked_for(model, tmp_path):
    uri, last = model
    record = json.loads(Path(uri, "checkpoint.json").read_text())
    run = tmp_path / "root" / "runs" / record["run_id"]
    run.mkdir(parents=True)
    run.joinpath("config.yaml").write_text(dump(last.config))
    config = warm_config(last, uri, tmp_path, training={"warm_start": {"checkpoint": uri}, "rotation": {}})
    assert "its discriminator has no head for rotations" in warm_obstacle(config, uri, CLASSES)


def test_the_description_is_read_without_the_weights(model, monkeypatch):
    uri, _ = model
    monkeypatch.setattr(storage, "read_bytes", lambda *_: pytest.fail("reads a whole file"))
    found = read_description(f"{uri}/generator.safetensors")
    assert (found["resolution"], found["channels"], found["label_names"]) == (8, 3, ["a", "b"])
