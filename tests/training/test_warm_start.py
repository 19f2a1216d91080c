"""Warm start: training goes on with the whole state of a checkpoint on other images, or says why it cannot."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from contents import assert_same, curves, pictures, train_killed, training_state
from PIL import Image
from sklearn.datasets import load_digits

from stylegan import storage
from stylegan.config.file import build
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import ConfigError, DamagedError, StepError
from stylegan.evaluation.engine import evaluate
from stylegan.training import loop
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.schedule import stages
from stylegan.training.state import newest_checkpoint, save_checkpoint, start_stage
from stylegan.training.warm_start import warm_checkpoint, warm_obstacle

CLASSES = ("a", "b")


@pytest.fixture(scope="module")
def trained(job_in, tmp_path_factory):
    """Train both stages, the last one in the folder of a root, and return it and its last checkpoint."""
    return train_both(job_in(tmp_path_factory.mktemp("trained")), tmp_path_factory.mktemp("stages"))


def train_both(job, root, **sections):
    last = job(8, "unused", previous=train_stage(job(4, "below", **sections)), **sections)
    last = last.model_copy(update={"uri": str(root / "stages" / "0008-k")})
    return last, train_stage(last)


@pytest.fixture
def champion(trained, tmp_path):
    """Return that stage and its last checkpoint in a root that belongs to one test."""
    last, origin = trained
    uri = str(tmp_path / "root" / "stages" / "0008-k")
    shutil.copytree(last.uri, uri)
    return last.model_copy(update={"uri": uri}), origin.model_copy(update={"uri": f"{uri}/{storage.name(origin.uri)}"})


def changed(config, origin, kimg=0.04, **sections):
    """Return a config that goes on from a checkpoint; values in `sections` replace its own."""
    tree = config.model_dump(mode="json")
    tree["training"]["warm_start"] = {"checkpoint": origin, "kimg": kimg}
    return build({**tree, **{name: tree[name] | values for name, values in sections.items()}})


def warm_job(champion, folder, kimg=0.04, **sections):
    """Return the job of a warm start in a folder."""
    last, origin = champion
    config = changed(last.config, origin.uri, kimg, **sections)
    update = {"config": config, "stage": stages(config)[0], "uri": str(folder), "key": "w", "previous": origin}
    return last.model_copy(update=update)


def test_the_state_of_the_start_is_that_of_the_checkpoint_to_the_last_bit(champion, tmp_path):
    """G, D, the average with its w_avg, both optimizers and the image count; only the sums for the curves begin anew."""
    job = warm_job(champion, tmp_path / "warm")
    state = start_stage(job.config, job.stage, num_labels=2, previous=job.previous)
    got, expected = state.state_dict(), training_state(job.previous.uri)
    assert (got.pop("sums"), got.pop("steps"), got.pop("measured")) == ({}, 0, {})
    for optimizer in ("opt_G", "opt_D"):
        moments = expected[optimizer]["state"]
        assert moments
        assert_same(got.pop(optimizer)["state"], moments, optimizer)
        del expected[optimizer]
    for name in ("sums", "steps", "measured"):
        del expected[name]
    for network in ("G", "D", "G_ema"):
        got[network] = dict(got[network])
    assert_same(got, expected)
    assert expected["G_ema"]["w_avg"].any()


def test_no_step_resets_the_optimizers(champion, tmp_path):
    """Adam's steps are counted on from those of the checkpoint, and the learning rate is that of the present config."""
    job = warm_job(champion, tmp_path / "warm", kimg=0.012, training={"learning_rate": 0.5})
    before, after = training_state(job.previous.uri), training_state(train_stage(job).uri)
    for optimizer in ("opt_G", "opt_D"):
        old, new = (each[optimizer]["state"] for each in (before, after))
        counted = [(old[number]["step"].item(), new[number]["step"].item()) for number in old]
        assert counted == [(step, step + 3) for step, _ in counted]
        assert after[optimizer]["param_groups"][0]["lr"] == 0.5


def test_one_stage_without_a_fade_goes_on_at_the_images_of_the_checkpoint(champion, tmp_path):
    job = warm_job(champion, tmp_path / "warm")
    (stage,) = stages(job.config)
    assert (stage.resolution, stage.start_nimg, stage.end_nimg, stage.fade_images) == (8, 56, 96, 0)
    assert train_stage(job).nimg == 96
    points = curves(job.uri)
    assert [nimg for nimg, _ in points] == [56 + n for n in (8, 16, 24, 32, 40)]
    assert {values["progress/alpha"] for _, values in points} == {1.0}


def test_interrupted_it_ends_bit_identical_also_without_its_origin(champion, tmp_path, monkeypatch):
    whole, torn = (warm_job(champion, tmp_path / name) for name in ("whole", "torn"))
    train_stage(whole)
    train_killed(torn, monkeypatch)
    assert 56 < newest_checkpoint(torn.uri).nimg < 96
    shutil.rmtree(torn.previous.uri)
    train_stage(torn.model_copy(update={"previous": None}))
    assert_same(training_state(newest_checkpoint(torn.uri).uri), training_state(newest_checkpoint(whole.uri).uri))
    assert (curves(torn.uri), pictures(torn.uri)) == (curves(whole.uri), pictures(whole.uri))


def test_without_checkpoint_and_origin_nothing_is_begun_from_new_networks(champion, tmp_path):
    job = warm_job(champion, tmp_path / "warm").model_copy(update={"previous": None})
    with pytest.raises(StepError, match="its checkpoints are gone; run the same command again"):
        train_stage(job)


def test_the_checkpoint_of_another_time_is_refused(champion, tmp_path):
    job = warm_job(champion, tmp_path / "warm")
    other = job.previous.model_copy(update={"nimg": 52})
    with pytest.raises(
        StepError, match="is of 8x8 at 52 images, but stage 8x8 of this config starts at 56; give another"
    ):
        train_stage(job.model_copy(update={"previous": other}))


def test_a_damaged_origin_is_not_to_be_deleted(champion, tmp_path):
    """It is another run's, perhaps the champion's."""
    job = warm_job(champion, tmp_path / "warm")
    file = Path(job.previous.uri, "training.pt")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DamagedError, match=r"is damaged .*; give another checkpoint to training.warm_start") as caught:
        train_stage(job)
    assert "delete" not in str(caught.value)
    file.unlink()
    with pytest.raises(StepError, match=r"training\.pt is missing; give another checkpoint"):
        train_stage(job)


def test_a_checkpoint_that_fits_has_no_obstacle(champion, tmp_path):
    """Also with another loss, batch, precision, or share of mixed styles: none of them is in the state."""
    last, origin = champion
    assert warm_obstacle(last.config, origin.uri, CLASSES) is None
    assert warm_obstacle(last.config, origin.uri + "/", CLASSES) is None
    tree = last.config.model_dump(mode="json")
    tree["model"]["style_mixing_prob"] = 0.5
    tree["training"] |= {"loss": "hinge", "batch": 8, "precision": "bf16", "penalty_interval": 4}
    config = changed(build(tree), origin.uri)
    assert warm_obstacle(config, origin.uri, CLASSES) is None
    assert warm_checkpoint(config, CLASSES) == origin
    assert warm_checkpoint(last.config, CLASSES) is None


def test_a_moved_checkpoint_is_found_below_the_root(champion, tmp_path):
    """The URI is a hint; its last two parts, below the present root, are what counts."""
    last, origin = champion
    moved = tmp_path / "elsewhere"
    (tmp_path / "root").rename(moved)
    config = changed(last.config, origin.uri, storage={"root": str(moved)})
    found = warm_checkpoint(config, CLASSES)
    assert found == origin.model_copy(update={"uri": f"{moved}/stages/0008-k/checkpoint-000000056"})
    assert warm_obstacle(config, "s3://gone/stages/0008-k/checkpoint-000000056", CLASSES) is None
    assert warm_obstacle(config, "0008-k/checkpoint-000000056", CLASSES) is None
    assert "there is no checkpoint" in warm_obstacle(last.config, origin.uri, CLASSES)


@pytest.mark.parametrize(
    ("sections", "obstacle"),
    [
        ({"model": {"fmap_max": 16}}, "it was trained with model.fmap_max=8, this config has 16"),
        ({"model": {"noise": False}}, "it was trained with model.noise=true, this config has false"),
        ({"model": {"mbstd_group": 2}}, "it was trained with model.mbstd_group=4, this config has 2"),
        ({"model": {"label_scale": 0.2}}, "it was trained with model.label_scale=null, this config has 0.2"),
        ({"model": {"conditional": False}}, "it was trained with model.conditional=true, this config has false"),
        ({"data": {"channels": 1}}, "it was trained with data.channels=3, this config has 1"),
        (
            {"data": {"resolution": 16}},
            "it is a checkpoint of 8x8, but data.resolution=16, and only the last stage goes",
        ),
        ({"training": {"rotation": {}}}, "its D was trained without training.rotation, and this config is with"),
    ],
)
def test_a_checkpoint_of_other_networks_is_refused_in_words(champion, sections, obstacle):
    last, origin = champion
    tree = last.config.model_dump(mode="json")
    warm = tree["training"] | sections.get("training", {}) | {"warm_start": {"checkpoint": origin.uri}}
    config = build({**tree, **{name: tree[name] | values for name, values in sections.items()}, "training": warm})
    assert obstacle in warm_obstacle(config, origin.uri, CLASSES)
    with pytest.raises(ConfigError) as caught:
        warm_checkpoint(config, CLASSES)
    line = str(caught.value)
    assert line.startswith(f"training.warm_start.checkpoint={origin.uri}: {obstacle}")
    assert line.endswith("; give another checkpoint, or remove training.warm_start")
    assert "\n" not in line


def test_other_classes_are_refused(champion):
    last, origin = champion
    assert warm_obstacle(last.config, origin.uri, ("a", "b", "c")) == (
        "it was trained on 2 classes, the images have 3 classes (c is number 2)"
    )
    assert warm_obstacle(last.config, origin.uri, ("b", "a")) == (
        "it was trained on 2 classes (a is number 0), the images have 2 classes (b is number 0)"
    )


def test_unconditional_networks_know_no_classes(job, tmp_path):
    last, origin = train_both(job, tmp_path / "root", model={"conditional": False})
    assert warm_obstacle(last.config, origin.uri, ()) is None
    assert warm_obstacle(last.config, origin.uri, CLASSES) is None


def test_a_rotation_head_that_would_be_lost_is_an_obstacle(job, tmp_path):
    last, origin = train_both(job, tmp_path / "root", training={"rotation": {}})
    assert warm_obstacle(last.config, origin.uri, CLASSES) is None
    without = job(8, "unused").config
    assert warm_obstacle(without, origin.uri, CLASSES) == (
        "its D was trained with training.rotation, and this config is without"
    )


def _edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("spoil", "obstacle"),
    [
        (
            lambda uri: (uri / "checkpoint.json").unlink(),
            "there is no checkpoint, nor stages/0008-k/checkpoint-000000056",
        ),
        (lambda uri: (uri / "checkpoint.json").write_text("{"), "checkpoint.json: is damaged"),
        (lambda uri: _edit(uri / "checkpoint.json", digest="z"), "its checkpoint.json is of another one (stage z, 56"),
        (lambda uri: (uri.parent / "done.json").unlink(), "its stage is not finished"),
        (lambda uri: _edit(uri.parent / "done.json", nimg=60), "its stage ended later, at 60 images"),
        (lambda uri: (uri / "generator.safetensors").unlink(), "it has no generator.safetensors"),
        (lambda uri: (uri / "generator.safetensors").write_bytes(b"x" * 99), "generator.safetensors: is damaged"),
        (lambda uri: (uri / "generator.safetensors").write_bytes(b""), "generator.safetensors: is damaged"),
        (lambda uri: (uri / "training.pt").unlink(), "it has no training.pt, so D and the optimizers are not known"),
        (lambda uri: (uri / "training.pt").write_bytes(b"x" * 99), "training.pt: is damaged (BadZipFile"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(champion, spoil, obstacle):
    last, origin = champion
    spoil(Path(origin.uri))
    assert obstacle in warm_obstacle(last.config, origin.uri, CLASSES)


@pytest.mark.parametrize("uri", ["/x", "models:/tiny@champion", "/r/stages/0008-k", "/r/imported/0008-k/checkpoint-1"])
def test_what_is_no_uri_of_a_checkpoint_is_an_obstacle_and_no_config(job, uri):
    config = job(8, "unused").config
    assert warm_obstacle(config, uri, CLASSES).startswith("it is no checkpoint of a stage")
    with pytest.raises(ConfigError, match=r"training\.warm_start\.checkpoint.*must be the folder of a checkpoint"):
        changed(config, uri)


def test_the_check_reads_little(champion, monkeypatch):
    """Neither the weights nor the moments are read, which may be hundreds of MB."""
    last, origin = champion
    for name in ("read_bytes", "download"):
        read = getattr(storage, name)

        def small(uri, *arguments, read=read):
            assert uri.endswith(".json"), uri
            return read(uri, *arguments)

        monkeypatch.setattr(storage, name, small)
    assert warm_obstacle(last.config, origin.uri, CLASSES) is None


DIGITS = {
    "name": "digits",
    "model": {
        "latent_size": 32,
        "mapping_layers": 2,
        "mapping_fmaps": 32,
        "mapping_lrmul": 0.1,
        "fmap_base": 128,
        "fmap_max": 32,
        "conditional": True,
        "label_scale": 0.2,
    },
    "training": {
        "start_resolution": 4,
        "fade_kimg": 2,
        "stable_kimg": {4: 3, 8: 12},
        "batch": 16,
        "learning_rate": 0.005,
        "r1_gamma": 0.4,
        "penalty_interval": 8,
        "ema_kimg": 1,
    },
    "snapshots": {"checkpoint_kimg": 0.1, "log_kimg": 0.1, "samples_kimg": 10, "grid": 2, "keep": 1},
    "evaluation": {"metrics": ["fid"], "num_images": 1797},
}


def write_digits(folder, number):
    """Write the first scans of scikit-learn's digits as PNG files in class folders."""
    digits = load_digits()
    for index in range(number):
        path = folder / str(digits.target[index]) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[index] * 255 / 16).astype("uint8")).save(path)


@pytest.mark.long
def test_the_distance_does_not_jump(tmp_path, monkeypatch):
    """Going on with new scans, the FID is first exactly the champion's, and in the first kimg at most 1.1 times as large.

    Fresh moments and an average that begins at G (the usual way to continue a GAN) are printed beside it; on networks as
    small as these they do no harm.
    """
    root, source = tmp_path / "root", tmp_path / "scans"

    def config_and_shards(number, **training):
        write_digits(source, number)
        tree = DIGITS | {"data": {"source": str(source), "resolution": 8, "channels": 1}}
        config = build(tree | {"storage": {"root": str(root)}, "training": DIGITS["training"] | training})
        return config, write_shards(open_source(config.data), config.data, str(root))

    # Train a champion.
    config, shards = config_and_shards(1200)
    champion = None
    for stage in stages(config):
        uri, shown = str(root / "stages" / f"{stage.resolution:04d}-k"), {"previous": champion, "stage": stage}
        champion = train_stage(StageJob(config=config, shards=shards, key="k", run_id="r", uri=uri, **shown))

    # Go on with more images.
    config, shards = config_and_shards(1797, warm_start={"checkpoint": champion.uri, "kimg": 1})
    assert warm_checkpoint(config, shards.label_names) == champion
    (stage,) = stages(config)

    def distance(checkpoint):
        return evaluate(checkpoint.uri, shards, config.evaluation, root=str(root)).metrics["fid_classifier"]

    def distances(name):
        """Measure every checkpoint of a training that goes on, every 0.1 kimg."""
        uri, found = str(root / "stages" / f"0008-{name}"), []
        job = StageJob(config=config, stage=stage, shards=shards, key="w", run_id="r", uri=uri, previous=champion)
        train_stage(job, on_checkpoint=lambda _: found.append(distance(newest_checkpoint(uri))))
        return found

    before, warm = distance(champion), distances("warm")
    state = start_stage(config, stage, num_labels=10, previous=champion)
    start = champion.model_copy(update={"uri": str(tmp_path / storage.name(champion.uri))})
    save_checkpoint(start, state.state_dict(), G_ema=copy.deepcopy(state.G_ema), label_names=shards.label_names)
    assert distance(start) == before

    def restart(config, stage, **options):
        state = start_stage(config, stage, **options)
        state.reset_optimizers(config, stage.learning_rate)
        state.G_ema.load_state_dict(state.G.state_dict())
        return state

    with monkeypatch.context() as patch:
        patch.setattr(loop, "start_stage", restart)
        fresh = distances("fresh")
    for name, found in (("warm", warm), ("fresh", fresh)):
        print(f"champion {before:.1f}; {name}:", " ".join(f"{value:.1f}" for value in found))
    assert len(warm) == len(fresh) >= 10
    assert max(warm) <= 1.1 * before
