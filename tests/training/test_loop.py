"""A stage in one process without Ray: what it leaves in storage, and that an interruption changes nothing."""

import json
from pathlib import Path

import pytest
import torch

from stylegan import storage
from stylegan.config_file import build
from stylegan.data.shards import write_shards
from stylegan.data.sources import open_source
from stylegan.errors import StepError
from stylegan.training import loop
from stylegan.training.loop import StageJob, read_rows, train_stage
from stylegan.training.schedule import stages
from stylegan.training.state import checkpoints, load_model, newest_checkpoint, read_checkpoint

TREE = {
    "name": "t",
    "data": {"resolution": 8, "channels": 3},
    "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8, "conditional": True},
    "training": {"start_resolution": 4, "batch": 4, "fade_kimg": 0.024, "stable_kimg": 0.016},
    "snapshots": {"checkpoint_kimg": 0.012, "log_kimg": 0.008, "samples_kimg": 0.016, "grid": 2, "keep": 2},
}


@pytest.fixture
def job(tmp_path, draw_images):
    """job(resolution, name, previous=None, **sections): a stage on 12 images of two classes, kept in folder `name`."""
    source = draw_images(tmp_path / "images", [f"{c}/{i}.png" for c in "ab" for i in range(6)])
    data = TREE["data"] | {"source": str(source)}
    config = build(TREE | {"data": data})
    shards = write_shards(open_source(config.data), config.data, str(tmp_path / "root"))

    def make(resolution, name, previous=None, **sections):
        config = build(TREE | {"data": data} | sections)
        stage = next(stage for stage in stages(config) if stage.resolution == resolution)
        uri = str(tmp_path / name / str(resolution))
        return StageJob(config=config, stage=stage, shards=shards, key="k", run_id="r", uri=uri, previous=previous)

    return make


def training_state(uri):
    return torch.load(Path(uri, "training.pt"), weights_only=True)


def assert_same(one, other):
    """Two saved states are equal to the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def curves(uri):
    """The points without the clock's metrics."""
    rows = read_rows(f"{uri}/stats.jsonl")
    return [(row["nimg"], {k: v for k, v in row["metrics"].items() if not k.startswith("time/")}) for row in rows]


def test_a_stage_leaves_one_checkpoint_curves_grids_and_its_record(job):
    first = job(4, "one")
    record = train_stage(first)
    assert (record.nimg, record.resolution, record.digest) == (16, 4, "k")
    assert checkpoints(first.uri) == [record.uri]
    assert read_checkpoint(record.uri) == record
    assert [row["nimg"] for row in read_rows(f"{first.uri}/stats.jsonl")] == [8, 16]
    assert set(storage.names(f"{first.uri}/samples")) == {"000000.png", "reals.png"}
    assert storage.read_json(f"{first.uri}/done.json")["img_per_sec"] > 0
    generator, names = load_model(record.uri)
    assert names == ("a", "b")
    assert generator.resolution == 4


def test_growing_keeps_the_old_weights_and_starts_with_the_old_picture(job):
    below = train_stage(job(4, "one"))
    above = job(8, "one", previous=below)
    state = loop.start_stage(above.config, above.stage, num_labels=2, previous=below)
    old = training_state(below.uri)
    for network in ("G", "D", "G_ema"):
        grown = getattr(state, network).state_dict()
        kept = [name for name in old[network] if name in grown]
        assert len(kept) > 5
        assert all(torch.equal(grown[name], old[network][name]) for name in kept), network
    assert state.nimg == 16
    fresh = set(state.G_ema.state_dict()) - set(old["G_ema"])
    assert fresh
    assert all(torch.equal(state.G_ema.state_dict()[name], state.G.state_dict()[name]) for name in fresh)


class Killed(BaseException):
    """Stands for a process that ends between two lines."""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_interrupted_at_any_checkpoint_it_ends_bit_identical(job, after):
    """In the fade and after it: weights, optimizer state and curves equal those of an uninterrupted stage."""
    previous = train_stage(job(4, "below"))
    whole = job(8, "whole", previous=previous)
    expected = train_stage(whole)
    torn = job(8, "torn", previous=previous)
    seen = []

    def stop(_):
        seen.append(newest_checkpoint(torn.uri).nimg)
        if len(seen) == after:
            raise Killed

    with pytest.raises(Killed):
        train_stage(torn, on_checkpoint=stop)
    assert seen[-1] < expected.nimg
    record = train_stage(torn)
    assert record.nimg == expected.nimg
    assert_same(training_state(record.uri), training_state(expected.uri))
    assert curves(torn.uri) == curves(whole.uri)


def test_points_beyond_the_newest_checkpoint_are_made_again_not_twice(job):
    whole = job(4, "whole")
    record = train_stage(whole)
    expected = curves(whole.uri)
    Path(whole.uri, "done.json").unlink()
    rows = read_rows(f"{whole.uri}/stats.jsonl")
    rows.append({"nimg": 999, "resolution": 4, "metrics": {}})
    Path(whole.uri, "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path(record.uri, "checkpoint.json").unlink()  # as if the kill came before the marker: the stage starts over
    assert train_stage(whole) == record
    assert curves(whole.uri) == expected


def test_unfinished_stages_keep_the_newest_checkpoints_only(job):
    previous = train_stage(job(4, "one"))
    stage = job(8, "one", previous=previous)
    kept = []
    train_stage(stage, on_checkpoint=lambda _: kept.append(len(checkpoints(stage.uri))))
    assert max(kept) == 2
    assert len(checkpoints(stage.uri)) == 1


def test_checkpoint_of_another_config_is_refused(job):
    stage = job(4, "one")
    record = train_stage(stage)
    storage.write_json(f"{record.uri}/checkpoint.json", record.model_dump() | {"digest": "other"})
    with pytest.raises(StepError, match=r"belongs to another config \(key other, this config gives k\)"):
        train_stage(stage)


def test_damaged_checkpoint_is_named_and_runs_no_code(job):
    stage = job(4, "one")
    record = train_stage(stage)
    Path(record.uri, "training.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(StepError, match=r"training\.pt is damaged"):
        train_stage(stage)


def test_previous_stage_of_another_length_is_refused(job):
    below = train_stage(job(4, "one"))
    longer = TREE["training"] | {"stages": {4: {"stable_kimg": 0.02}}}
    with pytest.raises(StepError, match="belongs to another config"):
        train_stage(job(8, "two", previous=below, training=longer))


def test_storage_that_refuses_a_checkpoint_ends_in_one_line(job, tmp_path):
    """A regular file stands where the stage's folder would have to be made."""
    (tmp_path / "one").write_text("in the way")
    with pytest.raises(StepError, match="storage: cannot"):
        train_stage(job(4, "one"))
