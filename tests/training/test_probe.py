"""The linear probe of D's features: what it measures, that it repeats, that D stays unchanged, and when it runs."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stylegan.config.file import build
from stylegan.config.sections import ModelConfig
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.sources.open_source import open_source
from stylegan.errors import StepError
from stylegan.networks.discriminator import Discriminator, make_discriminator
from stylegan.training.curves import read_rows
from stylegan.training.job import StageJob
from stylegan.training.loop import train_stage
from stylegan.training.probe import MAP_FEATURES, average, compute_features, probe, probe_indices
from stylegan.training.schedule import stages
from stylegan.training.step import process_reals

DATA = load_digits()
IMAGES = torch.from_numpy((DATA.images * (255 / 16)).round().astype(np.uint8))[:600, None]
LABELS = torch.from_numpy(DATA.target.astype(np.int64))[:600]


def discriminator(**model):
    torch.manual_seed(0)
    return Discriminator(ModelConfig(**({"fmap_max": 32, "fmap_base": 256} | model)), resolution=8, channels=1)


def probe_digits(D, images=IMAGES, labels=LABELS, **changes):
    return probe(D, images, labels, **({"alpha": 1.0, "seed": 0, "batch": 64} | changes))


def test_digits_are_told_apart_on_random_features_twice_the_same():
    """Far above chance (0.1) even untrained, equal to the last bit at every call, and different with another seed."""
    metrics = probe_digits(discriminator())
    assert list(metrics) == ["probe/accuracy", "probe/accuracy/block1"]
    assert min(metrics.values()) > 0.7
    assert probe_digits(discriminator()) == metrics
    assert any(probe_digits(discriminator(), seed=seed) != metrics for seed in (1, 2, 3))


def test_labels_without_meaning_cannot_be_predicted():
    """The classifier is scored on other images than it was fitted to."""
    shuffled = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))]
    assert max(probe_digits(discriminator(), labels=shuffled).values()) < 0.2


def test_probe_leaves_everything_as_it_was():
    D = discriminator().train()
    before = {name: value.clone() for name, value in D.state_dict().items()}
    random = torch.get_rng_state()
    probe_digits(D)
    assert all(torch.equal(value, before[name]) for name, value in D.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in D.parameters())
    assert D.training
    assert torch.equal(torch.get_rng_state(), random)


@pytest.fixture
def resnet():
    """The discriminator of Miyato et al. for 32x32, with few channels, spectrally normalised, in training."""
    torch.manual_seed(0)
    model = ModelConfig(architecture="resnet", width=0.1, spectral_norm=True)
    return make_discriminator(model, resolution=32, channels=1, rotation=True).train()


def test_every_block_of_a_resnet_is_probed_and_its_power_method_does_not_move(resnet):
    images = IMAGES.repeat_interleave(4, 2).repeat_interleave(4, 3)[:200]
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    metrics = probe_digits(resnet, images, LABELS[:200])
    assert list(metrics) == ["probe/accuracy", *(f"probe/accuracy/block{number}" for number in (1, 2, 3, 4))]
    assert min(metrics.values()) > 0.5
    assert len(set(metrics.values())) > 1
    assert resnet.training
    assert any(name.endswith("._u") for name in before)
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert probe_digits(resnet, images, LABELS[:200]) == metrics


def test_the_forgetting_curve_is_that_of_the_last_features_alone():
    """So a curve that began before there were others goes on."""
    D = discriminator(mbstd_group=1).eval()
    with torch.no_grad():
        features = D.features(process_reals(IMAGES, alpha=1.0)).double().numpy()
    order = np.random.default_rng(0).permutation(len(LABELS))
    by_class = order[np.argsort(LABELS.numpy()[order], kind="stable")]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=100))
    classifier.fit(features[by_class[::2]], LABELS[by_class[::2]])
    assert probe_digits(D)["probe/accuracy"] == classifier.score(features[by_class[1::2]], LABELS[by_class[1::2]])


@pytest.mark.parametrize(("shape", "side"), [((128, 16), 4), ((128, 4), 4), ((4, 16), 16), ((3000, 4), 1)])
def test_maps_are_averaged_no_further_than_they_must(shape, side):
    channels, height = shape
    maps = torch.rand(2, channels, height, height).bfloat16()
    averaged = average(maps)
    assert averaged.shape == (2, channels * side**2)
    assert averaged.dtype == torch.float32
    assert side == 1 or averaged.shape[1] <= MAP_FEATURES
    corner = maps[0, 0, : height // side, : height // side].float().mean()
    assert averaged[0, 0] == pytest.approx(corner.item(), rel=1e-5)


def test_features_belong_to_their_images():
    """Without a minibatch statistic, the features of an image do not depend on the order or the size of batches."""
    D, order = discriminator(mbstd_group=1), np.random.default_rng(0).permutation(50)
    computed, block = compute_features(D, IMAGES[:50], alpha=0.5, order=order, batch=16)
    with torch.no_grad():
        reals = [process_reals(image[None], alpha=0.5) for image in IMAGES[:50]]
        expected = torch.cat([D.features(one, alpha=0.5) for one in reals])
        (maps,) = zip(*(D.layer_maps(one, alpha=0.5) for one in reals), strict=True)
    np.testing.assert_allclose(computed, expected.double().numpy(), atol=1e-5)
    np.testing.assert_allclose(block, torch.cat(maps).flatten(1).numpy(), atol=1e-5)


def test_every_image_is_seen_in_a_full_group():
    """The last batch is filled up from the first: of 18 images in batches of 8, the 17th too is in a group of four."""
    D, order = discriminator(), np.arange(18)
    computed, _ = compute_features(D, IMAGES[:18], alpha=1.0, order=order, batch=8)
    with torch.no_grad():
        last = D.features(process_reals(IMAGES[[16, 17, 0, 1, 2, 3, 4, 5]], alpha=1.0))
    np.testing.assert_allclose(computed[16:], last[:2].double().numpy(), atol=1e-5)


def test_the_same_images_at_every_probe():
    chosen = probe_indices(1000, count=50, seed=3)
    assert np.array_equal(chosen, probe_indices(1000, count=50, seed=3))
    assert len(set(chosen.tolist())) == 50
    assert chosen.max() > 500  # not simply the first
    assert not np.array_equal(chosen, probe_indices(1000, count=50, seed=4))
    assert probe_indices(7, count=50, seed=0).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.full((600,), -1),
            r"^snapshots\.probe_kimg: 600 of the 600 images [^\n]* no label; [^\n]*unset snapshots\.probe_kimg$",
        ),
        (torch.zeros(600, dtype=torch.int64), r"^snapshots\.probe_kimg: [^\n]*fewer than two classes; [^\n]*$"),
    ],
)
def test_data_that_cannot_be_probed_is_an_error_of_one_line(labels, message):
    with pytest.raises(StepError, match=message):
        probe_digits(discriminator(), labels=labels)


class Killed(BaseException):
    """Simulates a kill between two lines."""


@pytest.fixture
def job(tmp_path, draw_images):
    """Return job(name, labels=True), which makes an 8x8 stage of 48 images.

    It has a probe every 16 images, a point every 8 and a checkpoint every 12.
    """

    def make(name, labels=True):
        folders = "ab" if labels else [""]
        source = draw_images(
            tmp_path / f"images-{name}", [f"{c}/{i}.png".lstrip("/") for c in folders for i in range(12)]
        )
        tree = {
            "name": "t",
            "data": {"source": str(source), "resolution": 8},
            "model": {"latent_size": 8, "mapping_layers": 1, "mapping_fmaps": 8, "fmap_base": 64, "fmap_max": 8},
            "training": {"batch": 4, "stable_kimg": 0.048, "rotation": {}},
            "snapshots": {
                "checkpoint_kimg": 0.012,
                "log_kimg": 0.008,
                "samples_kimg": 1,
                "grid": 2,
                "probe_kimg": 0.016,
                "probe_images": 20,
            },
        }
        config = build(tree)
        shards = write_shards(open_source(config.data), config.data, str(tmp_path / "root"))
        return StageJob(
            config=config,
            stage=stages(config)[0],
            shards=shards,
            key="k",
            run_id="r",
            uri=str(tmp_path / name),
            previous=None,
        )

    return make


def probed(job):
    """Return the accuracies of all points that have one, by image count."""
    rows = read_rows(f"{job.uri}/stats.jsonl")
    return {row["nimg"]: row["metrics"]["probe/accuracy"] for row in rows if "probe/accuracy" in row["metrics"]}


@pytest.mark.parametrize("after", [1, 2])
def test_a_stage_is_probed_once_in_every_interval_even_when_it_is_resumed(job, after):
    whole, torn, calls = job("whole"), job("torn"), []
    train_stage(whole)
    assert list(probed(whole)) == [16, 32, 48]

    def stop(_):
        calls.append(1)
        if len(calls) == after:
            raise Killed

    with pytest.raises(Killed):
        train_stage(torn, on_checkpoint=stop)
    train_stage(torn)
    assert probed(torn) == probed(whole)


def test_a_stage_without_labels_is_not_probed(job):
    with pytest.raises(StepError, match=r"^snapshots\.probe_kimg: [^\n]*no label; [^\n]*$"):
        train_stage(job("unlabelled", labels=False))
