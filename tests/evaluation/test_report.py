"""A whole evaluation of a tiny generator."""

import io
import json
import math
import pickle
import runpy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylegan import storage
from stylegan.config import EvaluationConfig
from stylegan.data.loader import load_images
from stylegan.data.shards import ShardSet
from stylegan.errors import ConfigError, StepError
from stylegan.evaluation import features as features_module
from stylegan.evaluation import report as report_module
from stylegan.evaluation.features import obtain_features
from stylegan.evaluation.fid import Moments
from stylegan.evaluation.generate import Chunk, features_of, generator_of
from stylegan.evaluation.report import Report, evaluate, measure, metric_keys, protocol
from stylegan.evaluation.separability import most_confident, separability
from stylegan.images import quantise, to_float
from stylegan.networks.generator import Generator

KEYS = {"fid", "ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend", "separability_z", "separability_w"}


class Workers:
    """Requests travel as bytes and are answered last first; which work was asked for is kept."""

    def __init__(self) -> None:
        self.works: list[str] = []

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        requests = list(items)
        self.works += [getattr(item, "work", "training") for item in requests]
        letters = [pickle.dumps((function, item)) for item in requests]
        assert all(len(letter) < 10_000 for letter in letters)
        answers = [letter[0](letter[1]) for letter in map(pickle.loads, reversed(letters))]
        return answers[::-1]


def brighten(generator: Generator) -> None:
    """Another generator."""
    generator.synthesis.to_rgb[-1].bias.fill_(0.5)  # type: ignore[union-attr,operator]


def test_all_metrics_are_measured_and_named_after_their_features(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    uri = checkpoint()
    report = evaluate(uri, shards, evaluation, root=root)
    assert set(report.metrics) == {f"{key}_classifier" for key in KEYS} | {"classifier_accuracy"}
    assert all(math.isfinite(value) and value > 0 for value in report.metrics.values())
    assert 1 <= report.metrics["separability_w_classifier"] <= 2
    assert (report.checkpoint_uri, report.dataset_fingerprint) == (uri, shards.fingerprint)
    assert (report.skipped, report.figures) == ({}, {})
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_workers_change_nothing(shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]) -> None:
    uri = checkpoint()
    assert evaluate(uri, shards, evaluation, root=root, pmap=Workers()) == evaluate(uri, shards, evaluation, root=root)


def test_another_generator_has_another_value_under_the_same_protocol(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    only_fid = evaluation.model_copy(update={"metrics": ("fid",)})
    first = evaluate(checkpoint(), shards, only_fid, root=root)
    second = evaluate(checkpoint(change=brighten), shards, only_fid, root=root)
    assert first.protocol == second.protocol
    assert first.metrics["fid_classifier"] != second.metrics["fid_classifier"]


def test_reference_statistics_are_those_of_the_first_images_and_computed_once(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    fid = evaluation.model_copy(update={"metrics": ("fid",), "num_images": 100})
    works = [Workers(), Workers()]
    reports = [evaluate(checkpoint(), shards, fid, root=root, pmap=workers) for workers in works]
    assert works[0].works == ["reals", "fid"]
    assert works[1].works == ["fid"]
    assert reports[0] == reports[1]
    stats = Moments.from_npz(storage.read_bytes(f"{root}/stats/{reports[0].protocol}/{shards.fingerprint}.npz"))
    net = obtain_features(evaluation, shards, root=root)
    expected = Moments.of(net.pooled(to_float(torch.tensor(load_images(shards, 8).images[:100]))).numpy())
    assert stats.count == 100
    np.testing.assert_allclose(stats.mean, expected.mean, rtol=1e-4)
    np.testing.assert_allclose(stats.m2, expected.m2, rtol=1e-3, atol=1e-4)


def test_generated_images_are_cut_to_eight_bits_before_fid(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    """They leave [-1, 1], so what is measured differs a lot from the raw images."""
    requests: list[Chunk] = []

    def watch(function: Callable[[Chunk], Any], items: Iterable[Chunk]) -> list[Any]:
        requests.extend(items)
        return [function(request) for request in requests]

    def contrast(generator: Generator) -> None:
        generator.synthesis.to_rgb[-1].weight.mul_(5)  # type: ignore[union-attr,operator]

    evaluate(checkpoint(change=contrast), shards, evaluation.model_copy(update={"metrics": ("fid",)}), root=root, pmap=watch)
    chunk = replace(next(request for request in requests if request.work == "fid"), count=64)
    net, generator = features_of(chunk.subject), generator_of(chunk.subject)
    images = chunk.synthesise(generator, generator.mapping(chunk.latents(16)), chunk.random_noise(0))
    found = measure(chunk)
    np.testing.assert_allclose(found.mean, net.pooled(to_float(quantise(images))).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert np.abs(found.mean - net.pooled(images).mean(dim=0).numpy()).max() > 0.1


def test_separability_is_scored_in_z_and_in_w(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    answers: list[Any] = []

    def watch(function: Callable[[Chunk], Any], items: Iterable[Chunk]) -> list[Any]:
        answers.extend((item, function(item)) for item in items)
        return [answer for _, answer in answers]

    report = evaluate(checkpoint(), shards, evaluation.model_copy(update={"metrics": ("separability",)}), root=root, pmap=watch)
    z = np.concatenate([chunk.latents(16).numpy() for chunk, _ in answers])
    w = generator_of(answers[0][0].subject).mapping(torch.tensor(z)).numpy()
    classes, confidence = (np.concatenate([answer[i] for _, answer in answers]) for i in (2, 3))
    kept = most_confident(confidence)
    assert report.metrics["separability_z_classifier"] == pytest.approx(separability(z[kept], classes[kept]), rel=1e-3)
    assert report.metrics["separability_w_classifier"] == pytest.approx(separability(w[kept], classes[kept]), rel=1e-3)
    assert report.metrics["separability_w_classifier"] != pytest.approx(report.metrics["separability_z_classifier"], rel=1e-2)


def test_protocol_is_a_digest_of_what_decides_the_numbers(shards: ShardSet, evaluation: EvaluationConfig, root: str) -> None:
    net = obtain_features(evaluation, shards, root=root)
    first = protocol(evaluation, shards, net)
    changes: list[dict[str, Any]] = [{"num_images": 200}, {"ppl_samples": 10}, {"ppl_crop": False}, {"ppl_epsilon": 1e-3}, {"seed": 1}]
    changed = {protocol(evaluation.model_copy(update=change), shards, net) for change in changes}
    changed.add(protocol(evaluation, shards.model_copy(update={"num_images": 119}), net))
    assert len(changed | {first}) == 7
    for neutral in ({"metrics": ("fid",)}, {"features": net.uri}):
        assert protocol(evaluation.model_copy(update=neutral), shards, net) == first


def test_rotation_features_skip_separability_in_words(
    unlabelled: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    rotation = evaluation.model_copy(update={"features": "rotation"})
    report = evaluate(checkpoint(), unlabelled, rotation, root=root)
    assert set(report.skipped) == {"separability_w_rotation", "separability_z_rotation"}
    assert "needs the posteriors of a classifier" in report.skipped["separability_w_rotation"]
    assert set(report.metrics) == {f"{key}_rotation" for key in KEYS if key[0] != "s"} | {"rotation_accuracy"}


def test_too_few_images_skip_fid_in_words(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    small = evaluation.model_copy(update={"metrics": ("fid", "ppl_wend"), "num_images": 64})
    report = evaluate(checkpoint(), shards, small, root=root)
    assert set(report.metrics) == {"ppl_wend_classifier", "classifier_accuracy"}
    assert report.skipped["fid_classifier"].startswith("64 reference images are too few for a covariance of 64 features")


def test_a_generator_of_one_class_skips_separability_in_words(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    def blank(generator: Generator) -> None:
        generator.synthesis.to_rgb[-1].weight.zero_()  # type: ignore[union-attr,operator]

    report = evaluate(checkpoint(change=blank), shards, evaluation.model_copy(update={"metrics": ("separability",)}), root=root)
    assert set(report.metrics) == {"classifier_accuracy"}
    assert report.skipped["separability_w_classifier"] == "all 150 confident images are of one class: there is nothing to separate"


def test_conditional_generators_get_the_labels_of_the_data(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    report = evaluate(checkpoint(label_names=("left", "right")), shards, evaluation, root=root)
    assert set(report.metrics) == {f"{key}_classifier" for key in KEYS} | {"classifier_accuracy"}
    with pytest.raises(StepError, match="is conditional on 2 classes that are not those of the data set"):
        evaluate(checkpoint(label_names=("a", "b")), shards, evaluation, root=root)


def test_diverged_generators_stop_the_evaluation(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    def spoil(generator: Generator) -> None:
        generator.synthesis.to_rgb[-1].bias.fill_(float("inf"))  # type: ignore[union-attr,operator]

    with pytest.raises(StepError, match="makes images with values that are not finite"):
        evaluate(checkpoint(change=spoil), shards, evaluation, root=root)


def test_generators_of_other_images_are_refused(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str]
) -> None:
    with pytest.raises(StepError, match=r"makes images of shape \[1, 4, 4\], the data set has \[1, 8, 8\]; evaluate the last stage"):
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
    nothing = evaluation.model_copy(update={"metrics": ()})
    report = evaluate(checkpoint(), unlabelled, nothing, root=root, pmap=workers, out_uri=str(tmp_path))
    assert (report.metrics, report.skipped, workers.works) == ({}, {}, ["figure"])
    assert set(report.figures) == {"grid"}


def test_the_figure_shows_reals_on_the_left_and_fakes_on_the_right(
    shards: ShardSet, evaluation: EvaluationConfig, root: str, checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    fid = evaluation.model_copy(update={"metrics": ("fid",)})
    report = evaluate(checkpoint(change=brighten), shards, fid, root=root, out_uri=str(tmp_path / "out"))
    assert report.figures == {"grid": f"{tmp_path}/out/grid.png"}
    pixels = np.asarray(Image.open(io.BytesIO(storage.read_bytes(report.figures["grid"]))))
    assert pixels.shape == (64, 128)
    reals = load_images(shards, 8).images
    assert np.array_equal(pixels[:8, 8:16], reals[1, 0])
    assert np.array_equal(pixels[8:16, :8], reals[8, 0])
    assert pixels[:, 64:].mean() > 150 > pixels[:, :64].mean()


def test_metrics_that_are_not_finite_survive_json() -> None:
    """Both ways of writing a report, storage and registry, give JSON that every reader accepts."""
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1 / 3}
    report = Report(protocol="p", dataset_fingerprint="f", checkpoint_uri="c", metrics=metrics)
    assert report.model_dump()["metrics"] == metrics
    for text in (report.model_dump_json(), json.dumps(report.model_dump(mode="json"), allow_nan=False)):
        assert json.loads(text, parse_constant=pytest.fail)["metrics"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1 / 3}
        for again in (Report.model_validate_json(text), Report.model_validate(json.loads(text))):
            assert repr(again) == repr(report)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the module is imported already
def test_the_version_of_an_evaluation_follows_metrics_and_features(monkeypatch: pytest.MonkeyPatch) -> None:
    assert report_module.EVALUATION_VERSION == (report_module.VERSION, features_module.VERSION)
    monkeypatch.setattr(features_module, "VERSION", 1000)
    assert runpy.run_module("stylegan.evaluation.report")["EVALUATION_VERSION"] == (report_module.VERSION, 1000)


def test_keys_carry_the_feature_space() -> None:
    assert metric_keys("fid", "rotation") == ("fid_rotation",)
    assert metric_keys("separability", "classifier") == ("separability_w_classifier", "separability_z_classifier")
