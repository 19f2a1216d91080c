"""A checkpoint against a data set: every metric of the config, computed as a parallel map over chunks, into one `Report`.

Where this differs from StyleGAN v1: each real image is used once (v1 repeats small data sets up to 50,000) and is never flipped,
labels of conditional generators follow the data set (v1 gives zeros), and the feature space is in the name of every metric.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, field_serializer

from stylegan import storage
from stylegan.config import EvaluationConfig, digest
from stylegan.data.loader import ImageTable, load_images
from stylegan.data.shards import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features import VERSION as FEATURES_VERSION
from stylegan.evaluation.features import FeatureNet, Pmap, obtain_features
from stylegan.evaluation.fid import Moments, frechet_distance, require_enough
from stylegan.evaluation.generate import CHUNK, Chunk, Subject, features_of, generator_of, read_generator, sha256
from stylegan.evaluation.numerics import exact_float32
from stylegan.evaluation.ppl import Path, trimmed_mean
from stylegan.evaluation.separability import most_confident, separability
from stylegan.images import grid, png_bytes, quantise, to_float, to_uint8
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator
from stylegan.progress import Progress

VERSION = 1  # raise it whenever a metric is computed in another way
EVALUATION_VERSION = (VERSION, FEATURES_VERSION)  # a report made under another one is out of date


class Report(BaseModel):
    """What was measured, and under which `protocol`; numbers compare only within one protocol and data set.

    `skipped` gives the reason of each metric that was asked for and could not be measured; `figures` are URIs of PNG files.
    In JSON a metric that is not finite is "NaN", "Infinity" or "-Infinity", and is read back as that number.
    """

    model_config = ConfigDict(frozen=True)

    protocol: str
    dataset_fingerprint: str
    checkpoint_uri: str
    metrics: dict[str, float]
    figures: dict[str, str] = {}
    skipped: dict[str, str] = {}

    # Pydantic's own ser_json_inf_nan is for model_dump_json only: model_dump(mode="json") would keep what JSON does not have.
    @field_serializer("metrics", when_used="json")
    def _metrics_to_json(self, metrics: dict[str, float]) -> dict[str, float | str]:
        return {name: value if math.isfinite(value) else _name_of(value) for name, value in metrics.items()}


def _name_of(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def evaluate(
    checkpoint_uri: str,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    *,
    root: str,
    pmap: Pmap = map,
    device: str = "cpu",
    out_uri: str | None = None,
) -> Report:
    """Measure the generator of a checkpoint. The result depends on neither `pmap` nor the number of its workers.

    Args:
        checkpoint_uri: folder with a generator.safetensors of the data set's resolution.
        root: storage root; feature networks and reference statistics are kept there.
        pmap: `map` or a parallel one that keeps the order; it gets a picklable function and small picklable requests.
        device: torch device of the workers.
        out_uri: folder for figures; without it there are none.

    Raises:
        ConfigError: `evaluation.features` cannot be had for these images.
        StepError: no generator there, one for other images, or one whose images are not finite.
    """
    generator, label_names, data = _open_generator(checkpoint_uri)
    table = load_images(shards, max(shards.resolutions))
    _require_match(generator, label_names, table, checkpoint_uri=checkpoint_uri, shards=shards)
    features = obtain_features(evaluation, shards, root=root, device=device, pmap=pmap) if evaluation.metrics else None
    subject = Subject(
        generator_uri=_generator_uri(checkpoint_uri),
        generator_sha256=sha256(data),
        features_uri=features.uri if features else "",
        features_sha256=features.sha256 if features else "",
        shards=shards,
        label_weights=_label_weights(table, generator.num_labels),
        evaluation=evaluation,
        device=device,
    )
    metrics, skipped = _measure_all(subject, features, root=root, pmap=pmap) if features else ({}, {})
    return Report(
        protocol=protocol(evaluation, shards, features),
        dataset_fingerprint=shards.fingerprint,
        checkpoint_uri=checkpoint_uri,
        metrics=metrics,
        figures=_draw_figures(subject, table, out_uri, pmap) if out_uri else {},
        skipped=skipped,
    )


def metric_keys(metric: str, space: str) -> tuple[str, ...]:
    """The keys in a report of a metric of the config, in the feature space `space`."""
    parts = ("separability_w", "separability_z") if metric == "separability" else (metric,)
    return tuple(f"{part}_{space}" for part in parts)


def protocol(evaluation: EvaluationConfig, shards: ShardSet, features: FeatureNet | None) -> str:
    """Digest of all that decides a metric besides the generator and the images."""
    return digest(
        {
            "version": VERSION,
            "chunk": CHUNK,
            "quantisation": "truncate",
            "features": [features.name, features.sha256] if features else None,
            "num_reals": _num_reals(evaluation, shards),
            "evaluation": evaluation.model_dump(mode="json", exclude={"metrics", "features"}),
        }
    )


def measure(chunk: Chunk) -> Any:
    """One chunk's part: moments of features, path lengths, latents with their classes, or images for a figure. Runs on any worker."""
    with torch.no_grad(), exact_float32():
        if chunk.work == "reals":
            return _real_moments(chunk)
        if chunk.work == "fid":
            return _generated_moments(chunk)
        if chunk.work == "figure":
            return to_uint8(torch.cat([images for _, _, images in _images(chunk)])).cpu().numpy()
        if chunk.work == "separability":
            return _classified_latents(chunk)
        return _path_lengths(chunk)


def _real_moments(chunk: Chunk) -> Moments:
    subject = chunk.subject
    features = features_of(subject)
    images = load_images(subject.shards, features.facts.resolution).images[chunk.index * CHUNK :][: chunk.count]
    pooled = [
        features.pooled(to_float(torch.tensor(images[batch], device=subject.device))).cpu() for batch in chunk.batches(images.shape[-1])
    ]
    return Moments.of(torch.cat(pooled).numpy())


def _generated_moments(chunk: Chunk) -> Moments:
    features = features_of(chunk.subject)
    pooled = [features.pooled(to_float(quantise(images))).cpu() for _, _, images in _images(chunk)]
    return Moments.of(torch.cat(pooled).numpy())


def _images(chunk: Chunk) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """z, w and images of the chunk, batch by batch."""
    generator = generator_of(chunk.subject)
    z, labels = chunk.latents(generator.model.latent_size), chunk.labels()
    for batch in chunk.batches(generator.resolution):
        w = generator.mapping(z[batch], None if labels is None else labels[batch])
        yield z[batch], w, chunk.synthesise(generator, w, chunk.random_noise(batch.start))


def _path_lengths(chunk: Chunk) -> np.ndarray:
    """[count] lengths of one of the four kinds; both ends of a path have the same label."""
    evaluation, generator, features = chunk.subject.evaluation, generator_of(chunk.subject), features_of(chunk.subject)
    path = Path.named(chunk.work, epsilon=evaluation.ppl_epsilon, cropped=evaluation.ppl_crop)
    z0, z1 = (chunk.latents(generator.model.latent_size, name=name) for name in ("z0", "z1"))
    t, labels = chunk.places(), chunk.labels()
    lengths = []
    for batch in chunk.batches(generator.resolution):
        mapping = partial(generator.mapping, labels=None if labels is None else labels[batch].repeat(2))
        w = path.ends(z0[batch], z1[batch], t[batch], mapping)
        images = chunk.synthesise(generator, w, chunk.shared_noise(batch.start))
        lengths.append(path.lengths(images, features.distance).cpu())
    return torch.cat(lengths).numpy()


def _classified_latents(chunk: Chunk) -> tuple[np.ndarray, ...]:
    """z, w, the most probable class and its log probability, for every sample of the chunk."""
    features = features_of(chunk.subject)
    parts = []
    for z, w, images in _images(chunk):
        confidence, classes = features.log_posteriors(images).max(dim=1)
        parts.append((z, w, classes, confidence))
    return tuple(torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))


def _measure_all(subject: Subject, features: FeatureNet, *, root: str, pmap: Pmap) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics, and the reasons of those that are skipped."""
    evaluation = subject.evaluation
    reasons: dict[str, str] = {metric: reason for metric in evaluation.metrics if (reason := _obstacle(metric, subject, features))}
    wanted = [metric for metric in evaluation.metrics if metric not in reasons]
    stats_uri = _stats_uri(subject, features, root)
    reference = _read_moments(stats_uri) if "fid" in wanted else None
    works = (["reals"] if "fid" in wanted and reference is None else []) + wanted
    parts = _run([chunk for work in works for chunk in _chunks(subject, work)], pmap)
    if "reals" in parts:
        reference = reduce(Moments.merge, parts["reals"])
        storage.write_bytes(stats_uri, reference.to_npz())
    metrics = {f"{features.name}_accuracy": features.facts.accuracy}
    for metric in wanted:
        try:
            values = _reduce(metric, parts[metric], reference)
            metrics |= dict(zip(metric_keys(metric, features.name), values, strict=True))
        except StepError as error:  # what cannot be measured says so and leaves the other metrics alone
            reasons[metric] = str(error)
    return metrics, {key: reason for metric, reason in reasons.items() for key in metric_keys(metric, features.name)}


def _obstacle(metric: str, subject: Subject, features: FeatureNet) -> str | None:
    """Why a metric cannot be measured, known before anything is generated."""
    if metric == "separability" and features.name != "classifier":
        return (
            f"needs the posteriors of a classifier, but evaluation.features={subject.evaluation.features} tells rotations apart; "
            "give labels and evaluation.features=classifier, or the URI of a classifier"
        )
    if metric == "fid":
        counts = {"reference": _num_reals(subject.evaluation, subject.shards), "generated": subject.evaluation.num_images}
        try:
            for what, count in counts.items():
                require_enough(count, features.network.num_features, what)
        except StepError as error:
            return str(error)
    return None


def _chunks(subject: Subject, work: str) -> list[Chunk]:
    evaluation = subject.evaluation
    if work == "reals":
        total = _num_reals(evaluation, subject.shards)
    elif work == "fid":
        total = evaluation.num_images
    else:
        total = evaluation.separability_samples if work == "separability" else evaluation.ppl_samples
    return [Chunk(subject, work, start // CHUNK, min(CHUNK, total - start)) for start in range(0, total, CHUNK)]


def _run(chunks: list[Chunk], pmap: Pmap) -> dict[str, list[Any]]:
    """The parts of every work, in order."""
    parts: dict[str, list[Any]] = {chunk.work: [] for chunk in chunks}
    progress = {work: Progress(f"evaluate: {work}", sum(c.count for c in chunks if c.work == work)) for work in parts}
    for chunk, part in zip(chunks, pmap(measure, chunks), strict=True):
        parts[chunk.work].append(part)
        progress[chunk.work].update(chunk.index * CHUNK + chunk.count)
    return parts


def _reduce(metric: str, parts: list[Any], reference: Moments | None) -> list[float]:
    """The values of a metric, in the order of `metric_keys`."""
    if metric == "fid":
        assert reference is not None
        return [frechet_distance(reference, reduce(Moments.merge, parts))]
    if metric == "separability":
        z, w, classes, confidence = (np.concatenate(part) for part in zip(*parts, strict=True))
        kept = most_confident(confidence)
        return [separability(latents[kept], classes[kept]) for latents in (w, z)]
    return [trimmed_mean(np.concatenate(parts))]


def _num_reals(evaluation: EvaluationConfig, shards: ShardSet) -> int:
    """The first images of the shards, whose order is random already."""
    return min(evaluation.num_images, shards.num_images)


def _stats_uri(subject: Subject, features: FeatureNet, root: str) -> str:
    name = protocol(subject.evaluation, subject.shards, features)
    return storage.join(storage.absolute(root), "stats", name, f"{subject.shards.fingerprint}.npz")


def _read_moments(uri: str) -> Moments | None:
    try:
        return Moments.from_npz(storage.read_bytes(uri))
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or to be written again
        return None


def _generator_uri(checkpoint_uri: str) -> str:
    return storage.join(storage.absolute(checkpoint_uri), "generator.safetensors")


def _open_generator(checkpoint_uri: str) -> tuple[Generator, tuple[str, ...], bytes]:
    data = read_generator(_generator_uri(checkpoint_uri))
    return *load_generator(data), data


def _require_match(generator: Generator, label_names: tuple[str, ...], table: ImageTable, *, checkpoint_uri: str, shards: ShardSet) -> None:
    shape = (generator.channels, generator.resolution, generator.resolution)
    if shape != table.images.shape[1:]:
        raise StepError(
            f"{checkpoint_uri}: makes images of shape {list(shape)}, the data set has {list(table.images.shape[1:])}; "
            "evaluate the last stage, or give the shards that this generator was trained on"
        )
    if generator.num_labels and label_names != shards.label_names:
        raise StepError(
            f"{checkpoint_uri}: is conditional on {len(label_names)} classes that are not those of the data set "
            f"({len(shards.label_names)} classes); give the shards that this generator was trained on"
        )


def _label_weights(table: ImageTable, num_labels: int) -> tuple[float, ...]:
    """Share of each class, empty for an unconditional generator."""
    counts = np.bincount(table.labels, minlength=num_labels) if num_labels else np.empty(0)
    return tuple(float(count) / len(table.labels) for count in counts)


def _draw_figures(subject: Subject, table: ImageTable, out_uri: str, pmap: Pmap) -> dict[str, str]:
    """grid.png: real images on the left, generated ones on the right, without truncation."""
    side = max(1, min(8, 2048 // table.images.shape[-1]))
    (fakes,) = pmap(measure, [Chunk(subject, "figure", 0, side**2)])
    reals = np.zeros_like(fakes)
    reals[: len(table.labels)] = table.images[: side**2]
    rows = [images[start : start + side] for start in range(0, side**2, side) for images in (reals, fakes)]
    uri = storage.join(out_uri, "grid.png")
    storage.write_bytes(uri, png_bytes(grid(np.concatenate(rows), columns=2 * side)))
    return {"grid": uri}
