"""Whole evaluations of a tiny generator with the embedded network, and of images."""

import io
import math
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from resnets import make_resnet, write_features, write_resnet

from stylegan import storage
from stylegan.config.sections import DataConfig, EvaluationConfig
from stylegan.data.index import read_level
from stylegan.data.loading import loader
from stylegan.data.loading.loader import LoaderSettings, load_images
from stylegan.data.sharding.write_shards import write_shards
from stylegan.data.shardset import ShardSet
from stylegan.data.sources.open_source import open_source
from stylegan.drawing.figures import FigureRequest, draw_figures
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation import engine, figures, generate
from stylegan.evaluation.directions import DIRECTIONS
from stylegan.evaluation.engine import evaluate, evaluate_images, redraw
from stylegan.evaluation.features.embedded import obtain_features
from stylegan.evaluation.metrics.fid import Moments, frechet_distance
from stylegan.evaluation.metrics.numerics import Estimate
from stylegan.evaluation.page.html import render
from stylegan.evaluation.report import Report
from stylegan.images import to_float
from stylegan.networks.generator import Generator

IMAGE_VALUES = {"fid", "kid", "is", "is_std", "precision", "recall", "density", "coverage"}
GENERATOR_VALUES = {"ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend", "separability_w", "separability_z"}


class Workers:
    """A map that pickles requests and answers them in reverse order; `passes` records the pass of each request."""

    def __init__(self) -> None:
        self.passes: list[str] = []

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        requests = list(items)
        self.passes += [
            request.source.name if hasattr(request, "source") else type(request).__name__ for request in requests
        ]
        letters = [pickle.dumps((function, item)) for item in requests]
        assert all(len(letter) < 10_000 for letter in letters)
        answers = [letter[0](letter[1]) for letter in map(pickle.loads, reversed(letters))]
        return answers[::-1]


def brighten(generator: Generator) -> None:
    """Change a generator visibly."""
    generator.synthesis.to_rgb[-1].bias.fill_(0.5)  # type: ignore[union-attr,operator]


def only(evaluation: EvaluationConfig, *metrics: str, **changes: Any) -> EvaluationConfig:
    """Return the settings with these metrics only, and with further changes."""
    return evaluation.model_copy(update={"metrics": metrics, **changes})


def same(first: Report, second: Report) -> bool:
    """Return whether all values of two reports agree to 1e-6: batches of other sizes round differently."""
    assert first.metrics.keys() == second.metrics.keys()
    return all(
        math.isclose(first.metrics[key], second.metrics[key], rel_tol=1e-6, abs_tol=1e-9) for key in first.metrics
    )


def pixels(uri: str) -> np.ndarray:
    """Return the pixels of a PNG file."""
    return np.asarray(Image.open(io.BytesIO(storage.read_bytes(uri))))


def test_all_metrics_are_measured_and_named_after_their_network(measured: Report, shards: ShardSet) -> None:
    assert set(measured.metrics) == {f"{key}_classifier" for key in IMAGE_VALUES | GENERATOR_VALUES} | {
        "classifier_accuracy"
    }
    assert all(math.isfinite(value) for value in measured.metrics.values())
    assert (measured.dataset_fingerprint, measured.skipped) == (shards.fingerprint, {})
    assert set(measured.protocols) == set(measured.metrics) - {"classifier_accuracy"} | {
        "fid_mixing_classifier",
        "truncation_classifier",
    }
    assert Report.model_validate_json(measured.model_dump_json()) == measured


def test_intervals_hold_their_values(measured: Report) -> None:
    for key in ("fid_classifier", "kid_classifier", "ppl_wend_classifier"):
        low, high = measured.intervals[key]
        assert low < measured.metrics[key] < high


def test_curves_and_quick_metrics_take_no_jackknife(
    measured: Report,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody reads the intervals there, and they take most of the time. The values stay."""
    monkeypatch.setattr(Estimate, "from_jackknife", None)
    curves = evaluate(measured.checkpoint_uri, shards, only(evaluation, "fid_mixing", "truncation"), root=root)
    assert curves.curves == measured.curves
    quick = evaluate(measured.checkpoint_uri, shards, only(evaluation, "fid", "pr"), root=root, intervals=False)
    assert same(quick, measured.model_copy(update={"metrics": {key: measured.metrics[key] for key in quick.metrics}}))
    assert quick.intervals == {}


def test_every_attribute_has_its_entropies(measured: Report) -> None:
    """The score is the exponential of their sum."""
    assert set(measured.attributes) == {"left", "right"}
    for space in ("w", "z"):
        total = sum(float(attribute[f"entropy_{space}"] or 0) for attribute in measured.attributes.values())
        assert measured.metrics[f"separability_{space}_classifier"] == pytest.approx(math.exp(total))
    assert all(
        attribute["error"] is None and 0 < float(attribute["share"] or 0) < 1
        for attribute in measured.attributes.values()
    )


def test_curves_begin_with_what_the_plain_generator_has(measured: Report) -> None:
    """One latent means no mixing, and psi = 1 means no truncation."""
    mixing, truncation = measured.curves["mixing"], measured.curves["truncation"]
    assert [row["latents"] for row in mixing] == [1, 2, 3, 4]
    assert [row["psi"] for row in truncation] == [0.5, 1.0]
    assert mixing[0]["fid"] == truncation[1]["fid"] == measured.metrics["fid_classifier"]
    assert truncation[1]["precision"] == measured.metrics["precision_classifier"]
    assert len({row["fid"] for row in mixing}) == 4
    assert truncation[0]["fid"] != truncation[1]["fid"]


def test_settings_say_how_it_was_measured(
    measured: Report, shards: ShardSet, evaluation: EvaluationConfig, root: str
) -> None:
    net = obtain_features(evaluation, shards, root=root)
    assert measured.settings["networks"] == {"classifier": net.sha256}
    assert (measured.settings["num_images"], measured.settings["num_reals"], measured.settings["resolution"]) == (
        300,
        120,
        8,
    )


def test_workers_change_nothing(
    measured: Report, shards: ShardSet, evaluation: EvaluationConfig, root: str, tmp_path: Path
) -> None:
    again = evaluate(measured.checkpoint_uri, shards, evaluation, root=root, pmap=Workers(), out_uri=str(tmp_path))
    assert again.model_copy(update={"figures": {}}) == measured.model_copy(update={"figures": {}})
    for name, uri in measured.figures.items():
        assert np.array_equal(pixels(again.figures[name]), pixels(uri))


@pytest.mark.parametrize("metric", ["fid", "kid", "pr", "separability", "ppl_wend"])
def test_a_metric_alone_has_the_value_that_it_has_among_others(
    metric: str, measured: Report, shards: ShardSet, evaluation: EvaluationConfig, root: str
) -> None:
    alone = evaluate(measured.checkpoint_uri, shards, only(evaluation, metric), root=root)
    assert same(alone, measured.model_copy(update={"metrics": {key: measured.metrics[key] for key in alone.metrics}}))
    assert all(alone.protocols[key] == measured.protocols[key] for key in alone.protocols)


def test_one_pass_serves_all_metrics_of_images(
    measured: Report, shards: ShardSet, evaluation: EvaluationConfig, root: str
) -> None:
    """Five metrics need two chunks of 300 or 400 images; the reals come from storage."""
    workers = Workers()
    evaluate(
        measured.checkpoint_uri,
        shards,
        only(evaluation, "fid", "kid", "is", "pr", "separability"),
        root=root,
        pmap=workers,
    )
    assert workers.passes == ["generated", "generated"]


def test_reals_are_looked_at_once_and_are_the_first_images(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    some, uri = only(evaluation, "fid", "kid", num_reals=100), checkpoint()
    first, second = Workers(), Workers()
    reports = [evaluate(uri, shards, some, root=root, pmap=workers) for workers in (first, second)]
    assert first.passes == ["reals", "generated", "generated"]
    assert second.passes == ["generated", "generated"]
    assert reports[0] == reports[1]
    net = obtain_features(evaluation, shards, root=root)
    expected = net.recognise(to_float(torch.tensor(load_images(shards, 8).images[:100])))[0].numpy()
    kept = [
        np.load(io.BytesIO(storage.read_bytes(str(path))))
        for path in Path(root, "stats").glob(f"classifier-*/{shards.fingerprint}-features.npy")
    ]
    (features,) = [found for found in kept if len(found) == 100]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_another_generator_has_another_value_under_the_same_protocol(
    measured: Report, shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    other = evaluate(checkpoint(change=brighten), shards, only(evaluation, "fid"), root=root)
    assert other.protocols["fid_classifier"] == measured.protocols["fid_classifier"]
    assert other.metrics["fid_classifier"] != measured.metrics["fid_classifier"]


def test_rotation_features_skip_separability_in_words(
    unlabelled: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    report = evaluate(checkpoint(), unlabelled, only(evaluation, "fid", "separability", features="rotation"), root=root)
    assert set(report.skipped) == {"separability_w_rotation", "separability_z_rotation"}
    assert "needs the posteriors of a classifier" in report.skipped["separability_w_rotation"]
    assert set(report.metrics) == {"fid_rotation", "rotation_accuracy"}


def test_too_few_images_skip_fid_in_words(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    report = evaluate(checkpoint(), shards, only(evaluation, "fid", "ppl_wend", num_reals=64), root=root)
    assert set(report.metrics) == {"ppl_wend_classifier", "classifier_accuracy"}
    assert report.skipped["fid_classifier"].startswith(
        "64 reference images are too few for a covariance of 64 features"
    )
    assert "fid_classifier" not in report.protocols


def test_a_generator_of_one_class_skips_separability_and_keeps_the_reason_of_each_attribute(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    def blank(generator: Generator) -> None:
        generator.synthesis.to_rgb[-1].weight.zero_()  # type: ignore[union-attr,operator]

    report = evaluate(checkpoint(change=blank), shards, only(evaluation, "separability"), root=root)
    assert set(report.metrics) == {"classifier_accuracy"}
    assert report.skipped["separability_w_classifier"].startswith(
        "2 of 2 attributes cannot be scored; left: all 200 confident images"
    )
    assert "there is nothing to separate" in str(report.attributes["right"]["error"])


def test_generators_without_styles_have_nothing_to_mix(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    uri = checkpoint(styles=False, const_input=False)
    report = evaluate(uri, shards, only(evaluation, "fid_mixing", "fid"), root=root)
    assert report.skipped == {"fid_mixing_classifier": "this generator has no styles to mix (model.styles: false)"}
    assert "fid_classifier" in report.metrics


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, root: str) -> ShardSet:
    """Return shards of two classes of 40 coloured 32x32 images each."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(80):
        half = ("left", "right")[number % 2]
        values = np.random.default_rng(number).integers(0, 120, (32, 32, 3), dtype=np.uint8)
        values[:, 16 * (number % 2) :][:, :16] += 120
        (folder / half).mkdir(exist_ok=True)
        Image.fromarray(values).save(folder / half / f"{number:03}.png")
    data = DataConfig(source=str(folder), resolution=32)
    return write_shards(open_source(data), data, root)


@pytest.mark.parametrize("names", [(), ("left", "right")])
def test_a_resnet_is_measured_by_all_that_needs_no_w(
    photos: ShardSet, evaluation: EvaluationConfig, root: str, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """What needs one is skipped with the reason, and there are no directions in w."""
    uri, out = write_resnet(tmp_path / "model", *names), str(tmp_path / "out")
    changes = {"num_images": 100, "ppl_samples": 20, "separability_samples": 100, "num_reals": 80}
    features = write_features(tmp_path, make_resnet(len(names)), *photos.label_names)
    some = evaluation.model_copy(update=changes | {"features": features})
    report = evaluate(uri, photos, some, root=root, out_uri=out)
    values = IMAGE_VALUES | {"ppl_zfull", "ppl_zend", "separability_z"}
    assert set(report.metrics) == {f"{key}_classifier" for key in values} | {"classifier_accuracy"}
    no_w = "this generator has no w beside z (model.architecture: resnet)"
    assert report.skipped == dict.fromkeys(
        [f"{key}_classifier" for key in ("ppl_wfull", "ppl_wend", "truncation", "separability_w")], no_w
    ) | {"fid_mixing_classifier": "this generator has no styles to mix (model.architecture: resnet)"}
    assert set(report.protocols) == set(report.metrics) - {"classifier_accuracy"}
    assert {row["entropy_w"] for row in report.attributes.values()} == {None}
    assert all(row["entropy_z"] is not None for row in report.attributes.values())
    assert set(report.figures) == {"grid", "best", "worst", "neighbours"}
    assert not storage.exists(storage.join(out, DIRECTIONS))
    (walk,) = draw_figures(["walk"], FigureRequest("", uri), out)[0].values()
    page = render(report, images={"walk": storage.read_bytes(walk)})
    assert "Separability in Z" in page
    assert "Latent space" in page
    assert "Styles, noise and truncation" not in page
    assert no_w in page
    assert report.metrics["ppl_zend_classifier"] > 0


def test_conditional_generators_get_the_labels_of_the_data(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    some = only(evaluation, "fid", "ppl_zend", "fid_mixing", "separability")
    report = evaluate(checkpoint(label_names=("left", "right")), shards, some, root=root)
    assert report.skipped == {}
    with pytest.raises(StepError, match="is conditional on 2 classes that are not those of the data set"):
        evaluate(checkpoint(label_names=("a", "b")), shards, some, root=root)


def test_diverged_generators_stop_the_evaluation(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    def spoil(generator: Generator) -> None:
        generator.synthesis.to_rgb[-1].weight.fill_(3e38)  # type: ignore[union-attr,operator]

    with pytest.raises(StepError, match="makes images with values that are not finite"):
        evaluate(checkpoint(change=spoil), shards, evaluation, root=root)


def test_generators_of_other_images_are_refused(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    with pytest.raises(
        StepError, match=r"makes images of shape \[1, 4, 4\], the data set has \[1, 8, 8\]; evaluate the last stage"
    ):
        evaluate(checkpoint(resolution=4), shards, evaluation, root=root)


def test_unlabelled_images_need_other_features(
    unlabelled: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    with pytest.raises(ConfigError, match=r"set evaluation\.features=rotation"):
        evaluate(checkpoint(), unlabelled, evaluation, root=root)


def test_no_metrics_need_no_features(
    unlabelled: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    workers = Workers()
    report = evaluate(checkpoint(), unlabelled, only(evaluation), root=root, pmap=workers, out_uri=str(tmp_path))
    assert (report.metrics, report.skipped, workers.passes) == ({}, {}, ["PictureRequest"])
    assert set(report.figures) == {"grid"}


def test_reals_against_themselves_are_perfect(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, tmp_path: Path
) -> None:
    """The images of the data set are measured as if a generator had made them."""
    report = evaluate_images(
        shards, shards, only(evaluation, "fid", "kid", "is", "pr"), root=root, out_uri=str(tmp_path)
    )
    assert report.checkpoint_uri == shards.uri
    assert report.metrics["fid_classifier"] == pytest.approx(0, abs=1e-4)
    assert (report.metrics["precision_classifier"], report.metrics["recall_classifier"]) == (1, 1)
    assert report.settings["num_images"] == 120  # the whole set
    assert set(report.figures) == {"grid", "best", "worst", "neighbours"}
    sheet = pixels(report.figures["grid"])
    body = sheet[sheet.shape[0] - 8 * 67 :]
    assert np.array_equal(*np.split(body, 2, axis=1))


def test_images_have_no_path_lengths(shards: ShardSet, evaluation: EvaluationConfig, root: str) -> None:
    report = evaluate_images(
        shards, shards, only(evaluation, "ppl_wend", "separability", "truncation", "is"), root=root
    )
    assert set(report.metrics) == {"is_classifier", "is_std_classifier", "classifier_accuracy"}
    assert set(report.skipped.values()) == {"needs a generator, and images are measured; give the URI of a checkpoint"}


def test_images_of_another_resolution_are_refused(shards: ShardSet, evaluation: EvaluationConfig, root: str) -> None:
    small = shards.model_copy(update={"resolutions": (4,)})
    with pytest.raises(
        StepError, match=r"holds images of shape \[1, 4, 4\], the reference set has \[1, 8, 8\]; give reals of the same"
    ):
        evaluate_images(small, shards, evaluation, root=root)


def test_moments_of_the_reals_are_kept_exactly(shards: ShardSet, root: str, measured: Report) -> None:
    """A second evaluation reads the numbers that the first one computed with."""
    found = [
        Moments.from_npz(path.read_bytes())
        for path in Path(root, "stats").glob(f"classifier-*/{shards.fingerprint}.npz")
    ]
    assert 120 in {moments.count for moments in found}
    assert frechet_distance(found[0], found[0]) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no image be decoded before it is asked for, into a cache of its own; small chunks ask several times."""
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loader, "AT_ONCE", 0)
    for module in (engine, figures, generate):
        monkeypatch.setattr(module, "CHUNK_SIZE", 32)


@pytest.mark.usefixtures("undecoded")
def test_the_index_is_read_once_whatever_the_number_of_chunks(
    shards: ShardSet,
    evaluation: EvaluationConfig,
    root: str,
    checkpoint: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while most of the images are still to be decoded."""
    evaluate(checkpoint(), shards, only(evaluation, "ppl_wend"), root=root)  # trains the network
    calls = []
    monkeypatch.setattr(loader, "read_level", lambda *arguments: calls.append(1) or read_level(*arguments))
    monkeypatch.setenv("STYLEGAN_CACHE", str(tmp_path / "other"))
    workers = Workers()
    some = only(evaluation, "fid", seed=77)
    evaluate(checkpoint(), shards, some, root=root, pmap=workers, out_uri=str(tmp_path))
    assert workers.passes.count("reals") == 4
    assert len(calls) == 2  # by the feature network's own training, which the seed is part of, and by the evaluation


@pytest.mark.usefixtures("undecoded")
def test_damaged_samples_are_tolerated_as_in_training(
    evaluation: EvaluationConfig, checkpoint: Callable[..., str], draw_images: Callable[..., Path], tmp_path: Path
) -> None:
    """The same limit holds for the networks that are trained on the images, for the reals, and for the figures."""
    names = [f"{kind}/{number}.png" for kind in ("a", "b") for number in range(40)]
    folder = draw_images(tmp_path / "images", names, size=(8, 8), mode="L")
    data = DataConfig(source=str(folder), resolution=8, channels=1, duplicates="keep")
    damaged = write_shards(open_source(data), data, str(tmp_path / "root"))
    index = read_level(damaged, 8)
    for number in (2, 5, 7):
        uri = index.tars[index.tar[number]].uri
        content = bytearray(storage.read_bytes(uri))
        content[index.offset[number] + index.size[number] // 2] ^= 4
        storage.write_bytes(uri, bytes(content))

    def measure(max_corrupt: int, *metrics: str) -> Report:
        return evaluate(
            checkpoint(),
            damaged,
            only(evaluation, *metrics, num_images=20),
            root=str(tmp_path / "root"),
            out_uri=str(tmp_path / "out"),
            loading=LoaderSettings(max_corrupt=max_corrupt),
        )

    for metrics in (("fid",), ()):  # without metrics the figure of the reals is drawn all the same
        with pytest.raises(StepError, match=r"data.max_corrupt=2"):
            measure(2, *metrics)
    assert measure(3, "fid").metrics


def test_figures_are_drawn_again_as_they_were(
    measured: Report, shards: ShardSet, evaluation: EvaluationConfig, root: str, tmp_path: Path
) -> None:
    """Only those that are asked for, and only the passes that they need."""
    workers = Workers()
    redraw(
        measured.checkpoint_uri,
        shards,
        evaluation,
        {"grid", "truncation"},
        root=root,
        pmap=workers,
        out_uri=str(tmp_path),
    )
    assert {path.name for path in tmp_path.iterdir()} == {"grid.png", "truncation.png"}
    assert set(workers.passes) == {"PictureRequest"}
    redraw(
        measured.checkpoint_uri,
        shards,
        evaluation,
        {"worst", "neighbours"},
        root=root,
        pmap=workers,
        out_uri=str(tmp_path),
    )
    assert set(workers.passes) == {"PictureRequest", "generated"}
    for name, uri in measured.figures.items():
        assert np.array_equal(pixels(uri), pixels(str(tmp_path / f"{name}.png")))


def test_the_reals_are_closed_also_after_a_failure(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    """The cache of decoded images can remove nothing that is open."""
    uri, some = checkpoint(), only(evaluation, "fid", features=f"{tmp_path}/none.safetensors")
    for fail in (
        lambda: evaluate(uri, shards, some, root=root),
        lambda: redraw(uri, shards, some, {"worst"}, root=root, out_uri=str(tmp_path)),
    ):
        with pytest.raises(ConfigError, match="there is no such file"):
            fail()
        assert generate.open_images.cache_info().currsize == 0
    evaluate_images(shards, shards, only(evaluation, "is"), root=root)
    assert generate.open_images.cache_info().currsize == 0


def test_figures_of_images_are_drawn_again(
    shards: ShardSet, unlabelled: ShardSet, evaluation: EvaluationConfig, root: str, tmp_path: Path
) -> None:
    some = only(evaluation, "pr")
    report = evaluate_images(unlabelled, shards, some, root=root, out_uri=str(tmp_path / "first"))
    redraw(unlabelled, shards, some, set(report.figures), root=root, out_uri=str(tmp_path / "again"))
    for name, uri in report.figures.items():
        assert np.array_equal(pixels(uri), pixels(str(tmp_path / "again" / f"{name}.png")))
