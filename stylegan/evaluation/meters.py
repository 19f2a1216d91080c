"""A meter for every metric: which samples it needs, what it keeps of them while they stream by, and what it makes of that at the end.

Only features of as many images as a metric compares one by one (KID, precision and recall, separability) are kept; FID keeps
moments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from stylegan.config.sections import EvaluationConfig, Metric
from stylegan.errors import StepError
from stylegan.evaluation.features.spaces import Role, Spaces
from stylegan.evaluation.generate import GENERATED, Pass
from stylegan.evaluation.metrics.fid import (
    BootstrapMoments,
    Moments,
    frechet_distance,
    frechet_interval,
    require_enough,
)
from stylegan.evaluation.metrics.inception_score import SplitScores
from stylegan.evaluation.metrics.kid import kernel_distance
from stylegan.evaluation.metrics.numerics import Estimate
from stylegan.evaluation.metrics.ppl import cropped_side, trim
from stylegan.evaluation.metrics.precision_recall import manifold_metrics, realism
from stylegan.evaluation.metrics.separability import score_attribute, separability
from stylegan.evaluation.reference import Reference
from stylegan.evaluation.work import Part
from stylegan.networks.generator import Generator
from stylegan.networks.vgg import SMALLEST
from stylegan.progress import Progress

MOST_LATENTS = 4  # of Table 2
References = Mapping[Role, Reference]


@dataclass(frozen=True)
class Context:
    """What meters are set up with. `generator` is None if images are measured; `num_images` and `num_reals` are compared."""

    evaluation: EvaluationConfig
    spaces: Spaces
    generator: Generator | None
    num_images: int
    num_reals: int


@dataclass
class Outcome:
    """Values by the part of their key before the network, and what else a report holds of a metric."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    attributes: dict[str, dict[str, float | str | None]] = field(default_factory=dict)
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    skipped: str = ""  # why there are no values

    @classmethod
    def of(cls, **estimates: Estimate) -> Outcome:
        """Values with their intervals."""
        return cls(
            {name: e.value for name, e in estimates.items()}, {name: (e.low, e.high) for name, e in estimates.items()}
        )


class Meter(ABC):
    """One metric. Making it raises StepError, fit to be a reason for skipping, if it is known before that it cannot be measured."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    @abstractmethod
    def wants(self) -> dict[Pass, dict[str, int]]:
        """By pass and product, of how many samples."""

    @property
    def needs(self) -> dict[Role, str]:
        """By role, what it is compared with: `moments` or `features` of the reals."""
        return {}

    @abstractmethod
    def add(self, source: Pass, part: Part) -> None:
        """The next samples of a pass; it may have products that were not asked for."""

    @abstractmethod
    def outcome(self, references: References) -> Outcome:
        """The result. Raises StepError, fit to be a reason for skipping."""


class FrechetMeter(Meter):
    """fid: the Frechet distance, with an interval from bootstrapped generated images."""

    def __init__(self, context: Context, *, replicates: int | None = None) -> None:
        super().__init__(context)
        num_features = context.spaces["pooled"].num_features
        require_enough(context.num_reals, num_features, "reference")
        require_enough(context.num_images, num_features, "generated")
        replicates = context.evaluation.bootstrap if replicates is None else replicates
        self.bootstrap = (
            BootstrapMoments(num_features, replicates=replicates, seed=context.evaluation.seed)
            if replicates > 1
            else None
        )
        self.moments: Moments | None = None

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"pooled": self.context.num_images}}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "moments"}

    def add(self, source: Pass, part: Part) -> None:
        moments = Moments.of(part["pooled"])
        self.moments = moments if self.moments is None else self.moments.merge(moments)
        if self.bootstrap:
            self.bootstrap.add(part["pooled"])

    def outcome(self, references: References) -> Outcome:
        assert self.moments is not None
        reference = references["pooled"].moments
        value = frechet_distance(reference, self.moments)
        return (
            Outcome.of(fid=frechet_interval(reference, self.bootstrap, value))
            if self.bootstrap
            else Outcome({"fid": value})
        )


class KernelMeter(Meter):
    """kid: the kernel distance, with the interval of its subsets."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        context.spaces["pooled"]
        self.parts: list[np.ndarray] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"pooled": self.context.num_images}}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "features"}

    def add(self, source: Pass, part: Part) -> None:
        self.parts.append(part["pooled"])

    def outcome(self, references: References) -> Outcome:
        evaluation = self.context.evaluation
        found = kernel_distance(
            references["pooled"].features,
            np.concatenate(self.parts),
            subsets=evaluation.kid_subsets,
            size=evaluation.kid_subset_size,
            seed=evaluation.seed,
        )
        return Outcome.of(kid=found)


class InceptionScoreMeter(Meter):
    """is: mean and standard deviation over splits."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        context.spaces["pooled"]
        self.scores = SplitScores(context.num_images, splits=context.evaluation.is_splits, seed=context.evaluation.seed)

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"log_posteriors": self.context.num_images}}

    def add(self, source: Pass, part: Part) -> None:
        self.scores.add(part["log_posteriors"])

    def outcome(self, references: References) -> Outcome:
        found = Outcome.of(**{"is": self.scores.interval()})
        found.values["is_std"] = self.scores.score()[1]
        return found


class ManifoldMeter(Meter):
    """pr: precision, recall, density and coverage; and the realism of every image, by which figures choose."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        context.spaces["manifold"]
        self.parts: list[np.ndarray] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: {"manifold": self.context.num_images}}

    @property
    def needs(self) -> dict[Role, str]:
        return {"manifold": "features"}

    def add(self, source: Pass, part: Part) -> None:
        self.parts.append(part["manifold"])

    def outcome(self, references: References) -> Outcome:
        found = manifold_metrics(references["manifold"].manifold, np.concatenate(self.parts))
        return Outcome.of(
            precision=found.precision, recall=found.recall, density=found.density, coverage=found.coverage
        )

    def realism(self, references: References) -> np.ndarray:
        """[num_images]: how deep each image lies in the manifold of the reals (Kynkaanniemi et al. 2019, section 5)."""
        return realism(references["manifold"].manifold, np.concatenate(self.parts))


class SeparabilityMeter(Meter):
    """separability, in w and in z."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        _require_generator(context)
        context.spaces["attributes"]
        self.parts: list[Part] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {GENERATED: dict.fromkeys(("z", "w", "attributes"), self.context.evaluation.separability_samples)}

    def add(self, source: Pass, part: Part) -> None:
        self.parts.append({product: part[product] for product in ("z", "w", "attributes") if product in part})

    def outcome(self, references: References) -> Outcome:
        z, w, logits = (
            np.concatenate([part[product] for part in self.parts if product in part])
            for product in ("z", "w", "attributes")
        )
        names, scores = self.context.spaces.attribute_names, []
        progress = Progress("evaluate: linear SVMs", len(names), "attributes")
        for index, name in enumerate(names):
            scores.append(score_attribute(name, logits[:, index], w=w, z=z, exclusive=self.context.spaces.exclusive))
            progress.update(index + 1)
        attributes = {
            s.name: {"entropy_w": s.entropy_w, "entropy_z": s.entropy_z, "share": s.share, "error": s.error}
            for s in scores
        }
        try:
            in_w, in_z = separability(scores)
        except StepError as error:
            return Outcome(attributes=attributes, skipped=str(error))
        return Outcome({"separability_w": in_w, "separability_z": in_z}, attributes=attributes)


class PathMeter(Meter):
    """ppl_*: one of the four perceptual path lengths, with the interval of the mean of the kept lengths."""

    def __init__(self, context: Context, metric: Metric) -> None:
        super().__init__(context)
        generator = _require_generator(context)
        side = cropped_side(generator.resolution) if context.evaluation.ppl_crop else generator.resolution
        if context.spaces["distance"].name == "lpips" and side < SMALLEST:
            raise StepError(
                f"LPIPS needs images of {SMALLEST}x{SMALLEST} at least, these are {side}x{side} after the crop; set "
                "evaluation.ppl_crop=false or another evaluation.features"
            )
        self.source = Pass(metric, path=metric)
        self.parts: list[np.ndarray] = []

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {self.source: {"lengths": self.context.evaluation.ppl_samples}}

    def add(self, source: Pass, part: Part) -> None:
        self.parts.append(part["lengths"])

    def outcome(self, references: References) -> Outcome:
        estimate = Estimate.of_mean(trim(np.concatenate(self.parts)).astype(np.float64))
        return Outcome.of(**{self.source.path: estimate})


class MixingMeter(Meter):
    """fid_mixing: FID with 1 to 4 latents mixed at test time (Karras et al. 2019, table 2); every image has its own cutoffs."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        generator = _require_generator(context)
        if not generator.model.styles:
            raise StepError("this generator has no styles to mix (model.styles=false)")
        counts = range(1, min(MOST_LATENTS, generator.num_layers) + 1)
        self.rows = {
            Pass(f"mixing {n}", latents=n) if n > 1 else GENERATED: FrechetMeter(context, replicates=0) for n in counts
        }

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {source: {"pooled": self.context.num_images} for source in self.rows}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "moments"}

    def add(self, source: Pass, part: Part) -> None:
        self.rows[source].add(source, part)

    def outcome(self, references: References) -> Outcome:
        curve = [
            {"latents": float(source.latents)} | meter.outcome(references).values for source, meter in self.rows.items()
        ]
        return Outcome(curves={"mixing": curve})


class TruncationMeter(Meter):
    """truncation: FID, precision and recall over psi; the same latents in every row."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        _require_generator(context)
        self.rows = {
            truncated(psi): (FrechetMeter(context, replicates=0), ManifoldMeter(context))
            for psi in context.evaluation.psi
        }

    @property
    def wants(self) -> dict[Pass, dict[str, int]]:
        return {source: dict.fromkeys(("pooled", "manifold"), self.context.num_images) for source in self.rows}

    @property
    def needs(self) -> dict[Role, str]:
        return {"pooled": "moments", "manifold": "features"}

    def add(self, source: Pass, part: Part) -> None:
        for meter in self.rows[source]:
            meter.add(source, part)

    def outcome(self, references: References) -> Outcome:
        curve = []
        for source, meters in self.rows.items():
            values = {name: value for meter in meters for name, value in meter.outcome(references).values.items()}
            curve.append({"psi": source.psi} | {name: values[name] for name in ("fid", "precision", "recall")})
        return Outcome(curves={"truncation": curve})


def truncated(psi: float) -> Pass:
    """The pass of a truncation; psi = 1 is none."""
    return GENERATED if psi == 1 else Pass(f"truncation {psi:g}", psi=psi)


def make_meter(metric: Metric, context: Context) -> Meter:
    """The meter of a metric of the config. Raises StepError, fit to be a reason for skipping."""
    if metric.startswith("ppl"):
        return PathMeter(context, metric)
    kinds: dict[str, type[Meter]] = {
        "fid": FrechetMeter,
        "kid": KernelMeter,
        "is": InceptionScoreMeter,
        "pr": ManifoldMeter,
        "separability": SeparabilityMeter,
        "fid_mixing": MixingMeter,
        "truncation": TruncationMeter,
    }
    return kinds[metric](context)


def _require_generator(context: Context) -> Generator:
    if context.generator is None:
        raise StepError("needs a generator, and images are measured; give the URI of a checkpoint")
    return context.generator
