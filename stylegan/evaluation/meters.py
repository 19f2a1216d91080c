"""Meters: each computes one metric from the samples that stream by.

A meter names the samples that it needs, collects features or sums of them, and computes its values at the end. KID,
precision and recall, and separability compare images one by one, so they keep the features of all images. FID keeps
moments only.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from stylegan.config.sections import EvaluationConfig, Metric
from stylegan.errors import StepError
from stylegan.evaluation.directions import Direction
from stylegan.evaluation.features.spaces import Spaces
from stylegan.evaluation.generate import GENERATED, Pass, truncated
from stylegan.evaluation.metric_table import METRICS, NO_W, Role, lacking
from stylegan.evaluation.metrics.fid import GroupMoments, Moments, frechet_distance, frechet_interval, require_enough
from stylegan.evaluation.metrics.inception_score import SplitScores
from stylegan.evaluation.metrics.kid import kernel_distance
from stylegan.evaluation.metrics.numerics import Estimate
from stylegan.evaluation.metrics.ppl import cropped_side, path_length
from stylegan.evaluation.metrics.precision_recall import GROUPS, manifold_metrics, realism
from stylegan.evaluation.metrics.separability import score_attribute, separability
from stylegan.evaluation.reference import Reference
from stylegan.evaluation.work import Products
from stylegan.networks.generator import Generator
from stylegan.networks.vgg import SMALLEST
from stylegan.progress import Progress

MOST_LATENTS = 4  # of Table 2
References = Mapping[Role, Reference]


@dataclass(frozen=True)
class Context:
    """The input of every meter.

    Attributes:
        evaluation: the settings.
        spaces: the networks that measure.
        generator: the measured generator; None if images are measured.
        num_images: the number of images to compare.
        num_reals: the number of reals to compare them with.
        intervals: False where nobody reads intervals: those that take time are left out.
    """

    evaluation: EvaluationConfig
    spaces: Spaces
    generator: Generator | None
    num_images: int
    num_reals: int
    intervals: bool = True


@dataclass
class Outcome:
    """The result of a meter. Values and intervals are named as in the metric's row of the table.

    `directions` are those of attributes in w, which are no part of the report.
    """

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    attributes: dict[str, dict[str, float | str | None]] = field(default_factory=dict)
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    directions: tuple[Direction, ...] = ()
    skipped: str = ""  # the reason, if there are no values
    without: dict[str, str] = field(default_factory=dict)  # values that are not there beside the others: their reasons

    @classmethod
    def of(cls, **estimates: Estimate) -> Outcome:
        """Return the outcome of values with their intervals, by name."""
        values = {name: estimate.value for name, estimate in estimates.items()}
        intervals = {name: (estimate.low, estimate.high) for name, estimate in estimates.items()}
        return cls(values, intervals)


class Meter(ABC):
    """The computation of one metric.

    The constructor raises StepError if it is clear beforehand that the metric cannot be measured; the message becomes
    the skip reason.
    """

    def __init__(self, context: Context, metric: Metric) -> None:
        self.context, self.metric = context, metric

    @property
    @abstractmethod
    def wants(self) -> dict[Pass, dict[str, int]]:
        """The number of samples that the meter needs, by pass and product."""

    @property
    def needs(self) -> dict[Role, str]:
        """The part of a reference that the metric compares with, by role: `moments` or `features`."""
        return {}

    @abstractmethod
    def add(self, source: Pass, products: Products) -> None:
        """Add the next samples of a pass: those products that the meter wants, for as many samples as it wants."""

    @abstractmethod
    def outcome(self, references: References) -> Outcome:
        """Compute the result. Raises StepError if that is impossible; the message becomes the skip reason."""


def make_meter(metric: Metric, context: Context) -> Meter:
    """Construct the meter of a metric.

    Raises:
        StepError: the metric cannot be measured here; the message becomes the skip reason.
    """
    facts = METRICS[metric]
    if not facts.meter:
        raise StepError("measures a style transfer, and this is none; leave it out")
    if context.generator is None and not facts.of_images:
        raise StepError("needs a generator, and images are measured; give the URI of a checkpoint")
    if context.generator is not None and (what := lacking(metric, context.generator.model)):
        raise StepError(f"this generator has {what}")
    meter: Meter = pkgutil.resolve_name(facts.meter)(context, metric)
    return meter


class FrechetMeter(Meter):
    """fid: the Frechet distance, with an interval from a jackknife over the generated images.

    `groups` are those of the jackknife; 0: the value alone; None: as the context says.
    """

    def __init__(self, context: Context, metric: Metric, *, groups: int | None = None) -> None:
        super().__init__(context, metric)
        num_features = context.spaces["pooled"].num_features
        require_enough(context.num_reals, num_features, "reference")
        require_enough(context.num_images, num_features, "generated")
        if groups is None:
            groups = context.evaluation.bootstrap if context.intervals else 0
        self.groups = GroupMoments(num_features, groups=groups) if groups > 1 else None
        self.moments: Moments | None = None

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"pooled": self.context.num_images}}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "moments"}

    def add(self, source: Pass, products: Products) -> None:
        moments = Moments.of(products["pooled"])
        self.moments = moments if self.moments is None else self.moments.merge(moments)
        if self.groups:
            self.groups.add(products["pooled"])

    def outcome(self, references: References) -> Outcome:
        assert self.moments is not None
        reference = references["pooled"].moments
        value = frechet_distance(reference, self.moments)
        if self.groups is None:
            return Outcome({"fid": value})
        return Outcome.of(fid=frechet_interval(reference, self.groups.groups, value))


class KernelMeter(Meter):
    """kid: the kernel distance, with its interval."""

    def __init__(self, context: Context, metric: Metric) -> None:
        super().__init__(context, metric)
        context.spaces["pooled"]
        self.features: list[np.ndarray] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"pooled": self.context.num_images}}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "features"}

    def add(self, source: Pass, products: Products) -> None:
        self.features.append(products["pooled"])

    def outcome(self, references: References) -> Outcome:
        evaluation = self.context.evaluation
        distance = kernel_distance(
            references["pooled"].features,
            np.concatenate(self.features),
            subsets=evaluation.kid_subsets,
            size=evaluation.kid_subset_size,
            seed=evaluation.seed,
        )
        return Outcome.of(kid=distance)


class InceptionScoreMeter(Meter):
    """is: mean and standard deviation over splits."""

    def __init__(self, context: Context, metric: Metric) -> None:
        super().__init__(context, metric)
        context.spaces["pooled"]
        self.scores = SplitScores(context.num_images, splits=context.evaluation.is_splits)

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"log_posteriors": self.context.num_images}}

    def add(self, source: Pass, products: Products) -> None:
        self.scores.add(products["log_posteriors"])

    def outcome(self, references: References) -> Outcome:
        outcome = Outcome.of(**{"is": self.scores.interval()})
        outcome.values["is_std"] = self.scores.score()[1]
        return outcome


class ManifoldMeter(Meter):
    """pr: precision, recall, density and coverage; and the realism of every image, for figures.

    `groups` are those of the jackknife; 0: the values alone; None: as the context says.
    """

    def __init__(self, context: Context, metric: Metric, *, groups: int | None = None) -> None:
        super().__init__(context, metric)
        context.spaces["manifold"]
        if groups is None:
            groups = GROUPS if context.intervals else 0
        self.groups = groups
        self.features: list[np.ndarray] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"manifold": self.context.num_images}}

    @property
    def needs(self) -> dict[Role, str]:
        return {"manifold": "features"}

    def add(self, source: Pass, products: Products) -> None:
        self.features.append(products["manifold"])

    def outcome(self, references: References) -> Outcome:
        found = manifold_metrics(references["manifold"].manifold, np.concatenate(self.features), groups=self.groups)
        outcome = Outcome.of(
            precision=found.precision, recall=found.recall, density=found.density, coverage=found.coverage
        )
        return outcome if self.groups > 1 else Outcome(outcome.values)

    def realism(self, references: References) -> np.ndarray:
        """Compute the realism [num_images] of the images, their depth in the manifold of the reals.

        Source: Kynkaanniemi et al. 2019, section 5.
        """
        return realism(references["manifold"].manifold, np.concatenate(self.features))


class SeparabilityMeter(Meter):
    """separability: how well a hyperplane separates each attribute, in w and in z.

    Of a generator without a w beside z it is that in z alone, and there are no directions.
    """

    def __init__(self, context: Context, metric: Metric) -> None:
        super().__init__(context, metric)
        assert context.generator is not None  # the table does not allow images
        context.spaces["attributes"]
        self.latents = ("z", "w") if context.generator.model.has_w else ("z",)
        self.rows: list[Products] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: dict.fromkeys((*self.latents, "attributes"), self.context.evaluation.separability_samples)}

    def add(self, source: Pass, products: Products) -> None:
        self.rows.append(products)

    def outcome(self, references: References) -> Outcome:
        # Score every attribute.
        latents = {name: np.concatenate([products[name] for products in self.rows]) for name in self.latents}
        logits = np.concatenate([products["attributes"] for products in self.rows])
        names, exclusive = self.context.spaces.attribute_names, self.context.spaces.exclusive
        progress = Progress("evaluate: linear SVMs", len(names), "attributes")
        scores = []
        for index, name in enumerate(names):
            scores.append(score_attribute(name, logits[:, index], **latents, exclusive=exclusive))
            progress.update(index + 1)

        # Attributes are reported, and directions kept, even if one of them has no score and the metric is skipped.
        attributes = {
            s.name: {"entropy_w": s.entropy_w, "entropy_z": s.entropy_z, "share": s.share, "error": s.error}
            for s in scores
        }
        directions = tuple(
            Direction(s.name, s.normal.astype(np.float32), float(np.std(latents["w"] @ s.normal)), s.entropy_w)
            for s in scores
            if s.normal is not None and s.entropy_w is not None
        )
        try:
            in_w, in_z = separability(scores)
        except StepError as error:
            return Outcome(attributes=attributes, directions=directions, skipped=str(error))
        if in_w is None:
            why = f"this generator has {NO_W}"
            return Outcome({"separability_z": in_z}, attributes=attributes, without={"separability_w": why})
        return Outcome({"separability_w": in_w, "separability_z": in_z}, attributes=attributes, directions=directions)


class PathMeter(Meter):
    """ppl_*: one of the four perceptual path lengths, with its interval."""

    def __init__(self, context: Context, metric: Metric) -> None:
        super().__init__(context, metric)
        assert context.generator is not None  # the table does not allow images
        resolution = context.generator.resolution
        side = cropped_side(resolution) if context.evaluation.ppl_crop else resolution
        if context.spaces["distance"].name == "lpips" and side < SMALLEST:
            raise StepError(
                f"LPIPS needs images of {SMALLEST}x{SMALLEST} at least, these are {side}x{side} after the crop; set "
                "evaluation.ppl_crop=false or another evaluation.features"
            )
        self.lengths: list[np.ndarray] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {Pass(self.metric, path=self.metric): {"lengths": self.context.evaluation.ppl_samples}}

    def add(self, source: Pass, products: Products) -> None:
        self.lengths.append(products["lengths"])

    def outcome(self, references: References) -> Outcome:
        return Outcome.of(**{self.metric: path_length(np.concatenate(self.lengths))})


class MixingMeter(Meter):
    """fid_mixing: FID with 1 to 4 latents mixed at test time (Karras et al. 2019, table 2).

    Every image has cutoffs of its own.
    """

    def __init__(self, context: Context, metric: Metric) -> None:
        super().__init__(context, metric)
        assert context.generator is not None  # the table does not allow images
        most = min(MOST_LATENTS, context.generator.num_layers)
        sources = [GENERATED, *(Pass(f"mixing {latents}", latents=latents) for latents in range(2, most + 1))]
        self.meters = {source: FrechetMeter(context, metric, groups=0) for source in sources}

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {source: {"pooled": self.context.num_images} for source in self.meters}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "moments"}

    def add(self, source: Pass, products: Products) -> None:
        self.meters[source].add(source, products)

    def outcome(self, references: References) -> Outcome:
        curve = [
            {"latents": float(source.latents)} | meter.outcome(references).values
            for source, meter in self.meters.items()
        ]
        return Outcome(curves={"mixing": curve})


class TruncationMeter(Meter):
    """truncation: FID, precision and recall over psi; every row has the same latents."""

    def __init__(self, context: Context, metric: Metric) -> None:
        super().__init__(context, metric)
        self.meters = {
            truncated(psi): (FrechetMeter(context, metric, groups=0), ManifoldMeter(context, metric, groups=0))
            for psi in context.evaluation.psi
        }

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {source: dict.fromkeys(("pooled", "manifold"), self.context.num_images) for source in self.meters}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "moments", "manifold": "features"}

    def add(self, source: Pass, products: Products) -> None:
        for meter in self.meters[source]:
            meter.add(source, products)

    def outcome(self, references: References) -> Outcome:
        curve = []
        for source, (frechet, manifold) in self.meters.items():
            values = frechet.outcome(references).values | manifold.outcome(references).values
            curve.append({"psi": source.psi} | {name: values[name] for name in ("fid", "precision", "recall")})
        return Outcome(curves={"truncation": curve})
