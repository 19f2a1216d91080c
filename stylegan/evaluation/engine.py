"""The driver of an evaluation: measure a generator, or images, against a data set by every metric of the config.

An evaluation is one parallel map over chunks of samples. One pass of generated samples serves fid, kid, is, pr,
separability and the best and worst images; path lengths, mixed and truncated images take passes of their own. Chunks
come back in order and feed the meters here, so results depend on neither the map nor the number of its workers.

Three things differ from StyleGAN v1. Each real image is used once (v1 repeats small data sets up to 50,000). No real
image is flipped. Labels of conditional generators follow the data set (v1 gives zeros).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from stylegan import storage
from stylegan.config.sections import EvaluationConfig, Metric
from stylegan.data.index import image_shape
from stylegan.data.loading.loader import DEFAULT_LOADING, ImageTable, LoaderSettings
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.directions import Direction, write_directions
from stylegan.evaluation.features.embedded import Pmap
from stylegan.evaluation.features.spaces import Network, obtain_spaces
from stylegan.evaluation.figures import draw_extremes, draw_grid, draw_neighbours, draw_truncation
from stylegan.evaluation.generate import (
    CHUNK_SIZE,
    REALS,
    Pass,
    SampleChunk,
    Subject,
    open_images,
    read_generator,
    sha256,
)
from stylegan.evaluation.meters import Context, ManifoldMeter, Meter, Outcome, TruncationMeter, make_meter
from stylegan.evaluation.metric_table import Role
from stylegan.evaluation.protocol import count_reals, metric_keys, protocol_of, settings_of, value_key
from stylegan.evaluation.reference import Reference
from stylegan.evaluation.report import Report
from stylegan.evaluation.work import Products, measure_chunk
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator
from stylegan.progress import Progress
from stylegan.records import digest


@contextmanager
def _closing_images() -> Iterator[None]:
    """Close the images that the block has opened, so that the cache of decoded images may remove them."""
    try:
        yield
    finally:
        open_images.cache_clear()


@_closing_images()
def evaluate(
    checkpoint_uri: str,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    *,
    root: str,
    pmap: Pmap = map,
    device: str = "cpu",
    out_uri: str | None = None,
    alpha: float = 1.0,
    loading: LoaderSettings = DEFAULT_LOADING,
    intervals: bool = True,
) -> Report:
    """Measure the generator of a checkpoint.

    Args:
        checkpoint_uri: folder with a generator.safetensors of the data set's resolution.
        shards: the reals, at their largest resolution (`ShardSet.up_to` for a stage below the last one).
        evaluation: the metrics and their settings.
        root: storage root, which keeps feature networks and reference statistics.
        pmap: `map`, or a parallel one that keeps the order; it gets a picklable function and small picklable requests.
        device: torch device of the workers.
        out_uri: folder for figures and the directions of attributes; None: none of them.
        alpha: weight of the generator's newest resolution in [0, 1]; below 1 during a fade-in.
        loading: settings of loading the reals, as training has them.
        intervals: False leaves out the intervals that take time: those of FID and of `pr`.

    Raises:
        ConfigError: the networks of `evaluation.features` cannot be read or trained for these images.
        StepError: the checkpoint has no generator, one for other images, or one whose images are not finite.
    """
    subject, generator = _subject_of_generator(
        checkpoint_uri, shards, evaluation, root=root, pmap=pmap, device=device, alpha=alpha, loading=loading
    )
    evaluation_run = _Evaluation(subject, generator, root=root, pmap=pmap, intervals=intervals)
    return evaluation_run.run(checkpoint_uri, out_uri)


def _subject_of_generator(
    checkpoint_uri: str,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    *,
    root: str,
    pmap: Pmap,
    device: str,
    alpha: float,
    loading: LoaderSettings,
) -> tuple[Subject, Generator]:
    """Read a generator and obtain the networks that measure it. Arguments and errors as for `evaluate`."""
    # Read the generator, which must be for images of these shards.
    uri = storage.join(storage.absolute(checkpoint_uri), "generator.safetensors")
    data = read_generator(uri)
    generator, label_names = load_generator(data, uri)
    token = uuid.uuid4().hex
    table = open_images(shards, loading, token)
    _require_match(generator, label_names, table, checkpoint_uri=checkpoint_uri, shards=shards)

    # Obtain the feature networks, and measure.
    subject = Subject(
        generator_uri=uri,
        generator_sha256=sha256(data),
        images=None,
        shards=shards,
        label_weights=_label_weights(table, generator.num_labels),
        spaces=obtain_spaces(evaluation, shards, root=root, device=device, pmap=pmap, loading=loading),
        evaluation=evaluation,
        device=device,
        alpha=alpha,
        loading=loading,
        token=token,
    )
    return subject, generator


@_closing_images()
def evaluate_images(
    images: ShardSet,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    *,
    root: str,
    pmap: Pmap = map,
    device: str = "cpu",
    out_uri: str | None = None,
    loading: LoaderSettings = DEFAULT_LOADING,
) -> Report:
    """Measure images instead of a generator, e.g. a folder that `write_shards` has sharded: fid, kid, is, pr.

    Only the first `evaluation.num_images` images count; the report's `settings` and protocols have their number. No
    generator draws them, so `evaluation.precision` is without effect, and all other metrics are skipped with the reason
    that they need one.

    Args:
        images: the images to measure, at the resolution of the reals; `checkpoint_uri` of the report is their URI.
        shards, evaluation, root, pmap, device, out_uri, loading: as for `evaluate`.

    Raises:
        ConfigError: the networks of `evaluation.features` cannot be read or trained for these reals.
        StepError: the images have another shape than the reals.
    """
    changes = {"num_images": min(evaluation.num_images, images.num_images), "precision": "fp32"}
    evaluation = evaluation.model_copy(update=changes)
    subject = _subject_of_images(images, shards, evaluation, root=root, pmap=pmap, device=device, loading=loading)
    return _Evaluation(subject, None, root=root, pmap=pmap).run(images.uri, out_uri)


def _subject_of_images(
    images: ShardSet,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    *,
    root: str,
    pmap: Pmap,
    device: str,
    loading: LoaderSettings,
) -> Subject:
    """Obtain the networks that measure images. Arguments and errors as for `evaluate_images`."""
    # Both sets must have the same shape.
    shape, real_shape = image_shape(images), image_shape(shards)
    if shape != real_shape:
        raise StepError(
            f"{images.uri}: holds images of shape {list(shape)}, the reference set has {list(real_shape)}; give reals "
            "of the same resolution and channels"
        )

    return Subject(
        generator_uri="",
        generator_sha256="",
        images=images,
        shards=shards,
        label_weights=(),
        spaces=obtain_spaces(evaluation, shards, root=root, device=device, pmap=pmap, loading=loading),
        evaluation=evaluation,
        device=device,
        loading=loading,
        token=uuid.uuid4().hex,
    )


@_closing_images()
def redraw(
    measured: str | ShardSet,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    names: Collection[str],
    *,
    root: str,
    pmap: Pmap = map,
    device: str = "cpu",
    out_uri: str,
    loading: LoaderSettings = DEFAULT_LOADING,
) -> None:
    """Draw figures of an evaluation again, because their files are gone. Nothing else is measured.

    The best and the worst images are found among all of them, as are those nearest to a real: they take a pass of
    `evaluation.num_images` images.

    Args:
        measured: the URI of the checkpoint, or the images that were measured instead.
        names: of the figures, as in `Report.figures`.
        shards, evaluation, root, pmap, device, out_uri, loading: as for `evaluate`.

    Raises:
        ConfigError, StepError: as for `evaluate`.
    """
    num_images = evaluation.num_images if isinstance(measured, str) else min(evaluation.num_images, measured.num_images)
    metrics: tuple[Metric, ...] = ("pr",) if {"best", "worst", "neighbours"} & set(names) else ()
    evaluation = evaluation.model_copy(update={"metrics": metrics, "num_images": num_images})
    generator: Generator | None = None
    if isinstance(measured, str):
        subject, generator = _subject_of_generator(
            measured, shards, evaluation, root=root, pmap=pmap, device=device, alpha=1.0, loading=loading
        )
    else:
        subject = _subject_of_images(measured, shards, evaluation, root=root, pmap=pmap, device=device, loading=loading)
    _Evaluation(subject, generator, root=root, pmap=pmap).redraw(out_uri, names)


def fit_directions(
    checkpoint_uri: str,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    *,
    root: str,
    pmap: Pmap = map,
    device: str = "cpu",
    out_uri: str,
    loading: LoaderSettings = DEFAULT_LOADING,
) -> None:
    """Fit the directions of attributes of an evaluation again, because their file is gone. Nothing else is measured.

    Args:
        checkpoint_uri, shards, evaluation, root, pmap, device, out_uri, loading: as for `evaluate`.

    Raises:
        ConfigError, StepError: as for `evaluate`.
    """
    evaluation = evaluation.model_copy(update={"metrics": ("separability",)})
    with _closing_images():
        subject, generator = _subject_of_generator(
            checkpoint_uri, shards, evaluation, root=root, pmap=pmap, device=device, alpha=1.0, loading=loading
        )
        _Evaluation(subject, generator, root=root, pmap=pmap).fit_directions(out_uri)


class _Evaluation:
    """One evaluation on the driver: its meters, their references, and the reasons for skipped metrics."""

    def __init__(
        self, subject: Subject, generator: Generator | None, *, root: str, pmap: Pmap, intervals: bool = True
    ) -> None:
        evaluation, self.subject, self.pmap = subject.evaluation, subject, pmap
        self.skipped: dict[str, str] = {}
        self.meters: dict[Metric, Meter] = {}
        self.directions: tuple[Direction, ...] = ()  # known with the report
        num_reals = count_reals(subject.shards, evaluation)
        context = Context(evaluation, subject.spaces, generator, evaluation.num_images, num_reals, intervals)
        for metric in evaluation.metrics:
            try:
                self.meters[metric] = make_meter(metric, context)
            except StepError as error:  # only this metric is skipped, the others are measured
                self._skip(metric, str(error))
        self.references = _references(list(self.meters.values()), subject, num_reals=num_reals, root=root)

    def run(self, uri: str, out_uri: str | None) -> Report:
        """Run all passes, compute all metrics, keep the directions of attributes and draw all figures.

        `uri` becomes the report's `checkpoint_uri`.
        """
        self._stream()
        report = self._report(uri)
        self._keep_directions(out_uri)
        figures = self._draw(out_uri, self._drawable()) if out_uri else {}
        return report.model_copy(update={"figures": figures})

    def redraw(self, out_uri: str, names: Collection[str]) -> None:
        """Run the passes that these figures need, and draw them."""
        self._stream()
        self._draw(out_uri, names)

    def fit_directions(self, out_uri: str) -> None:
        """Run the pass of separability, and keep the directions of attributes."""
        self._stream()
        self._report("")
        self._keep_directions(out_uri)

    def _keep_directions(self, out_uri: str | None) -> None:
        if out_uri and self.directions:
            write_directions(out_uri, self.directions)

    def _skip(self, metric: Metric, reason: str) -> None:
        """Record the reason for all keys of a metric."""
        self.skipped |= dict.fromkeys(metric_keys(metric, self.subject.spaces), reason)

    def _stream(self) -> None:
        """Send every chunk of every pass to the workers, and feed their products to references and meters in order."""
        # The chunks of all passes; a pass is as long as its most wanted product.
        wants = self._wants()
        totals = {source: max(products.values()) for source, products in wants.items()}
        progress = _progress(totals)
        chunks = [
            SampleChunk(self.subject, source, tuple(sorted(wants[source].items())), index)
            for source, total in totals.items()
            for index in range(-(-total // CHUNK_SIZE))
        ]

        # The products come back in the order of the chunks.
        for chunk, products in zip(chunks, self.pmap(measure_chunk, chunks), strict=True):
            if chunk.source == REALS:
                for role, reference in self._incomplete().items():
                    reference.add(products[role])
            for meter in self.meters.values():
                share = _share(meter, chunk, products)
                if share:
                    meter.add(chunk.source, share)
            progress[chunk.source].update(chunk.first + chunk.count)

        # Keep the new references.
        for reference in self._incomplete().values():
            reference.finish()

    def _wants(self) -> dict[Pass, dict[str, int]]:
        """Return the number of samples that need each product, by pass; reals only for incomplete references."""
        wants: dict[Pass, dict[str, int]] = {}
        for role, reference in self._incomplete().items():
            wants.setdefault(REALS, {})[role] = reference.num_reals
        for meter in self.meters.values():
            for source, products in meter.wants.items():
                total = wants.setdefault(source, {})
                for product, count in products.items():
                    total[product] = max(count, total.get(product, 0))
        return wants

    def _incomplete(self) -> dict[Role, Reference]:
        """Return the references still to compute, by role; a shared one appears once, under its last role."""
        incomplete: dict[Role, Reference] = {}
        for role, reference in reversed(self.references.items()):
            if not reference.complete and reference not in incomplete.values():
                incomplete[role] = reference
        return incomplete

    def _report(self, uri: str) -> Report:
        """Compute the outcome of every meter, and collect the report."""
        subject, evaluation = self.subject, self.subject.evaluation
        protocols = {
            metric: protocol_of(metric, subject.shards, evaluation, subject.spaces) for metric in evaluation.metrics
        }
        report = Report(
            protocol=digest(protocols),
            dataset_fingerprint=subject.shards.fingerprint,
            checkpoint_uri=uri,
            metrics=dict(subject.spaces.facts),
            settings=settings_of(subject.shards, evaluation, subject.spaces),
        )
        for metric, meter in self.meters.items():
            # A metric that cannot be measured after all is skipped.
            try:
                outcome = meter.outcome(self.references)
            except StepError as error:
                outcome = Outcome(skipped=str(error))
            if outcome.skipped:
                self._skip(metric, outcome.skipped)
            else:
                self.skipped |= {value_key(metric, name, subject.spaces): why for name, why in outcome.without.items()}
                measured = [key for key in metric_keys(metric, subject.spaces) if key not in self.skipped]
                report.protocols.update(dict.fromkeys(measured, protocols[metric]))

            # Values get their keys; attributes are reported even of a skipped metric.
            for name, value in outcome.values.items():
                report.metrics[value_key(metric, name, subject.spaces)] = value
            for name, interval in outcome.intervals.items():
                report.intervals[value_key(metric, name, subject.spaces)] = interval
            report.attributes.update(outcome.attributes)
            report.curves.update(outcome.curves)
            self.directions += outcome.directions
        report.skipped.update(self.skipped)
        return report

    def _drawable(self) -> set[str]:
        """Return the names of the figures that the meters allow."""
        kinds = {type(meter) for meter in self.meters.values()}
        extremes = {"best", "worst", "neighbours"} if ManifoldMeter in kinds else set()
        return {"grid"} | extremes | ({"truncation"} if TruncationMeter in kinds else set())

    def _draw(self, out_uri: str, names: Collection[str]) -> dict[str, str]:
        """Draw these figures, and return their URIs by name. The best and the worst images are always drawn together."""
        figures = {}
        if "grid" in names:
            figures["grid"] = draw_grid(self.subject, out_uri, self.pmap)
        if "truncation" in names:
            figures["truncation"] = draw_truncation(self.subject, out_uri, self.pmap)
        for meter in self.meters.values():
            if isinstance(meter, ManifoldMeter) and {"best", "worst", "neighbours"} & set(names):
                realism = meter.realism(self.references)
                if {"best", "worst"} & set(names):
                    figures |= draw_extremes(self.subject, realism, out_uri, self.pmap)
                if "neighbours" in names:
                    manifold = self.references["manifold"].manifold
                    figures["neighbours"] = draw_neighbours(
                        self.subject, realism, np.concatenate(meter.features), manifold, out_uri, self.pmap
                    )
        return figures


def _progress(totals: dict[Pass, int]) -> dict[Pass, Progress]:
    """Return the progress of each pass, which knows how many images are in the passes before and after it."""
    progress, before, everything = dict[Pass, Progress](), 0, sum(totals.values())
    for number, (source, total) in enumerate(totals.items(), start=1):
        part, step = (number, len(totals)), (before, everything - before - total)
        progress[source] = Progress(f"evaluate: {source.name}", total, part=part, step=step)
        before += total
    return progress


def _share(meter: Meter, chunk: SampleChunk, products: Products) -> Products:
    """Return the products of a chunk that a meter wants, for as many samples as it wants; empty if it wants none."""
    wants = meter.wants.get(chunk.source, {})
    return {
        product: products[product][: total - chunk.first] for product, total in wants.items() if total > chunk.first
    }


def _references(meters: Sequence[Meter], subject: Subject, *, num_reals: int, root: str) -> dict[Role, Reference]:
    """Return the references that the meters need, in alphabetical order of roles; roles of one network share one."""
    # Collect the needs of the meters by network.
    needs: dict[Network, set[str]] = {}
    for meter in meters:
        for role, kind in meter.needs.items():
            needs.setdefault(subject.spaces[role], set()).add(kind)

    # Open one reference per network.
    references = {
        network: Reference(network, subject.shards, num_reals=num_reals, needs=kinds, root=root)
        for network, kinds in needs.items()
    }
    roles = {role for meter in meters for role in meter.needs}
    return {role: references[subject.spaces[role]] for role in sorted(roles)}


def _require_match(
    generator: Generator, label_names: tuple[str, ...], table: ImageTable, *, checkpoint_uri: str, shards: ShardSet
) -> None:
    """Raise StepError if the generator makes images of another shape, or has other classes, than the data set."""
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
    """Return the share of each class in the data set; empty for an unconditional generator."""
    counts = np.bincount(table.labels, minlength=num_labels) if num_labels else np.empty(0)
    return tuple(float(count) / len(table.labels) for count in counts)
