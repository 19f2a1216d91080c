"""A generator, or a set of images, against a data set: every metric of the config, as one parallel map over chunks.

One pass of generated samples serves fid, kid, is, pr, separability and the best and worst images; path lengths, mixed and truncated
images take passes of their own. Chunks come back in order and are fed to the meters here, so results depend on neither the map nor
the number of its workers. Where this differs from StyleGAN v1: each real image is used once (v1 repeats small data sets up to
50,000) and is never flipped, and labels of conditional generators follow the data set (v1 gives zeros).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stylegan import storage
from stylegan.config.sections import EvaluationConfig, Metric
from stylegan.data.loading.loader import ImageTable, load_images
from stylegan.data.shardset import ShardSet
from stylegan.errors import StepError
from stylegan.evaluation.features.embedded import Pmap
from stylegan.evaluation.features.spaces import Network, Role, obtain_spaces, roles_of
from stylegan.evaluation.figures import draw_extremes, draw_grid, draw_truncation
from stylegan.evaluation.generate import CHUNK, REALS, Chunk, Pass, Subject, read_generator, sha256
from stylegan.evaluation.meters import Context, ManifoldMeter, Meter, Outcome, make_meter
from stylegan.evaluation.protocol import count_reals, metric_keys, protocol_of, settings_of
from stylegan.evaluation.reference import Reference
from stylegan.evaluation.report import Report
from stylegan.evaluation.work import measure
from stylegan.networks.generator import Generator
from stylegan.networks.weights import load_generator
from stylegan.progress import Progress
from stylegan.records import digest


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
) -> Report:
    """Measure the generator of a checkpoint.

    Args:
        checkpoint_uri: folder with a generator.safetensors of the data set's resolution.
        shards: the reals, at their largest resolution (`ShardSet.up_to` for a stage below the last one).
        root: storage root; feature networks and reference statistics are kept there.
        pmap: `map` or a parallel one that keeps the order; it gets a picklable function and small picklable requests.
        device: torch device of the workers.
        out_uri: folder for figures; without it there are none.
        alpha: weight of the generator's newest resolution in [0, 1]; below 1 in the middle of a fade.

    Raises:
        ConfigError: `evaluation.features` cannot be had for these images.
        StepError: no generator there, one for other images, or one whose images are not finite.
    """
    uri = storage.join(storage.absolute(checkpoint_uri), "generator.safetensors")
    data = read_generator(uri)
    generator, label_names = load_generator(data)
    table = load_images(shards, max(shards.resolutions))
    _require_match(generator, label_names, table, checkpoint_uri=checkpoint_uri, shards=shards)
    subject = Subject(
        generator_uri=uri,
        generator_sha256=sha256(data),
        images=None,
        shards=shards,
        label_weights=_label_weights(table, generator.num_labels),
        spaces=obtain_spaces(evaluation, shards, root=root, device=device, pmap=pmap),
        evaluation=evaluation,
        device=device,
        alpha=alpha,
    )
    return _Evaluation(subject, generator, root=root, pmap=pmap).run(checkpoint_uri, out_uri)


def evaluate_images(
    images: ShardSet,
    shards: ShardSet,
    evaluation: EvaluationConfig,
    *,
    root: str,
    pmap: Pmap = map,
    device: str = "cpu",
    out_uri: str | None = None,
) -> Report:
    """Measure images instead of a generator, e.g. a folder of them that `write_shards` has sharded: fid, kid, is, pr.

    The first `evaluation.num_images` of them count; the report's `settings` and protocols have their number. All other metrics are
    skipped with the reason that they need a generator.

    Args:
        images: what is measured, at the resolution of the reals; `checkpoint_uri` of the report is their URI.
        shards, evaluation, root, pmap, device, out_uri: as for `evaluate`.

    Raises:
        ConfigError: `evaluation.features` cannot be had for these reals.
        StepError: the images have another shape than the reals.
    """
    found, wanted = (load_images(part, max(part.resolutions)).images.shape[1:] for part in (images, shards))
    if found != wanted:
        raise StepError(
            f"{images.uri}: holds images of shape {list(found)}, the reference set has {list(wanted)}; give reals of the same "
            "resolution and channels"
        )
    evaluation = evaluation.model_copy(update={"num_images": min(evaluation.num_images, images.num_images)})
    subject = Subject(
        generator_uri="",
        generator_sha256="",
        images=images,
        shards=shards,
        label_weights=(),
        spaces=obtain_spaces(evaluation, shards, root=root, device=device, pmap=pmap),
        evaluation=evaluation,
        device=device,
    )
    return _Evaluation(subject, None, root=root, pmap=pmap).run(images.uri, out_uri)


class _Evaluation:
    """One evaluation on the driver: its meters, what they need, and what they found."""

    def __init__(self, subject: Subject, generator: Generator | None, *, root: str, pmap: Pmap) -> None:
        evaluation, self.subject, self.pmap = subject.evaluation, subject, pmap
        self.skipped: dict[str, str] = {}
        self.meters: dict[Metric, Meter] = {}
        num_reals = count_reals(subject.shards, evaluation)
        context = Context(evaluation, subject.spaces, generator, num_images=evaluation.num_images, num_reals=num_reals)
        for metric in evaluation.metrics:
            try:
                self.meters[metric] = make_meter(metric, context)
            except StepError as error:  # what cannot be measured says so and leaves the other metrics alone
                self._skip(metric, str(error))
        self.references = _references(list(self.meters.values()), subject, num_reals=num_reals, root=root)

    def run(self, uri: str, out_uri: str | None) -> Report:
        """All passes, all metrics, all figures."""
        self._stream()
        report = self._report(uri)
        figures = self._draw(out_uri) if out_uri else {}
        return report.model_copy(update={"figures": figures})

    def _skip(self, metric: Metric, reason: str) -> None:
        self.skipped |= dict.fromkeys(metric_keys(metric, self.subject.spaces), reason)

    def _stream(self) -> None:
        """Every chunk of every pass, through the workers and into the meters, in order."""
        wants = self._wants()
        totals = {source: max(products.values()) for source, products in wants.items()}
        progress = {source: Progress(f"evaluate: {source.name}", total) for source, total in totals.items()}
        chunks = [
            Chunk(self.subject, source, tuple(sorted(wants[source].items())), index)
            for source, total in totals.items()
            for index in range(-(-total // CHUNK))
        ]
        for chunk, part in zip(chunks, self.pmap(measure, chunks), strict=True):
            if chunk.source == REALS:
                for role, reference in self._incomplete().items():
                    reference.add(part[role])
            for meter in self.meters.values():
                if part.keys() & meter.wants.get(chunk.source, {}).keys():
                    meter.add(chunk.source, part)
            progress[chunk.source].update(chunk.first + chunk.count)
        for reference in self._incomplete().values():
            reference.finish()

    def _wants(self) -> dict[Pass, dict[str, int]]:
        """By pass, of how many samples each product is needed; the reals only where storage does not have them."""
        wants: dict[Pass, dict[str, int]] = {}
        for role, reference in self._incomplete().items():
            wants.setdefault(REALS, {})[role] = reference.num_reals
        for meter in self.meters.values():
            for source, products in meter.wants.items():
                wants.setdefault(source, {}).update(products)
        return wants

    def _incomplete(self) -> dict[Role, Reference]:
        """References to be made; one that serves several roles under the last of them (pooled)."""
        return {
            role: reference
            for reference, role in {r: role for role, r in self.references.items()}.items()
            if not reference.complete
        }

    def _report(self, uri: str) -> Report:
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
            try:
                outcome = meter.outcome(self.references)
            except StepError as error:
                outcome = Outcome(skipped=str(error))
            if outcome.skipped:
                self._skip(metric, outcome.skipped)
            else:
                report.protocols.update(dict.fromkeys(metric_keys(metric, subject.spaces), protocols[metric]))
            suffix = subject.spaces.name(roles_of(metric)[0])
            report.metrics.update({f"{part}_{suffix}": value for part, value in outcome.values.items()})
            report.intervals.update({f"{part}_{suffix}": interval for part, interval in outcome.intervals.items()})
            report.attributes.update(outcome.attributes)
            report.curves.update(outcome.curves)
        report.skipped.update(self.skipped)
        return report

    def _draw(self, out_uri: str) -> dict[str, str]:
        figures = {"grid": draw_grid(self.subject, out_uri, self.pmap)}
        for metric, meter in self.meters.items():
            if metric == "truncation":
                figures["truncation"] = draw_truncation(self.subject, out_uri, self.pmap)
            if isinstance(meter, ManifoldMeter):
                figures |= draw_extremes(self.subject, meter.realism(self.references), out_uri, self.pmap)
        return figures


def _references(meters: Sequence[Meter], subject: Subject, *, num_reals: int, root: str) -> dict[Role, Reference]:
    """What the meters compare with; roles of the same network share one."""
    needs: dict[Network, set[str]] = {}
    roles = {role for meter in meters for role in meter.needs}
    for meter in meters:
        for role, kind in meter.needs.items():
            needs.setdefault(subject.spaces[role], set()).add(kind)
    made = {
        network: Reference(network, subject.shards, num_reals=num_reals, needs=kinds, root=root)
        for network, kinds in needs.items()
    }
    return {role: made[subject.spaces[role]] for role in sorted(roles)}


def _require_match(
    generator: Generator, label_names: tuple[str, ...], table: ImageTable, *, checkpoint_uri: str, shards: ShardSet
) -> None:
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
