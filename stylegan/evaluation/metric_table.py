"""The table of metrics: every fact about a metric that is not a computation.

A new metric needs three things: a file in `metrics/` with its mathematics and its meter, a row of `METRICS` below, and
its name in the literal `Metric` of `stylegan/config/sections.py`. The config's checks, protocols, reports, the gate,
pages, the plan and the command line read the table.

The key of a value in a report is the name of the value and the name of the network that saw the images, joined by an
underscore: `fid_inception`, `separability_w_classifier`.

This file imports nothing of the package, because the config is checked against it before anything heavy is imported.
Meters are therefore named by strings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

# The purposes of networks; `features/spaces.py` decides which network serves which role.
Role = Literal["pooled", "manifold", "distance", "attributes"]
Direction = Literal["lower", "higher"]
# Counts images from an EvaluationConfig, whose type this file cannot import.
ImageCount = Callable[[Any], int]


@dataclass(frozen=True)
class ReportedValue:
    """One value that a metric reports.

    Attributes:
        title: the name for people.
        better: the direction of improvement; None if neither direction is better, as for a spread or a curve.
        largest: the upper bound that no model can exceed.
    """

    title: str
    better: Direction | None
    largest: float = math.inf


@dataclass(frozen=True)
class MetricFacts:
    """The facts about one entry of `evaluation.metrics`.

    Attributes:
        values: the reported values by name, the first part of their keys. A curve is one value here: its key has no
            number in a report, but a protocol, or a reason if the curve is skipped.
        roles: the networks that the metric needs; its keys end with the name of the first one.
        settings: the settings of the `evaluation` section that decide its values. Networks, seed, chunk size and
            resolution decide every metric and are not listed.
        interval_settings: the settings that decide its intervals only. Values compare whatever these are.
        meter: `module:class` of its `Meter`, imported when the metric is measured.
        intervals: the version of the way in which its intervals are computed. Raised, it keeps the gate from comparing
            a new interval with an old one, but finished evaluations are still found: the values are the same.
        gate: the names under which `registry.gate.metric` may ask for it; empty for a curve.
        quick: True if it may be measured beside training, on few images.
        of_images: True if images can be measured without their generator.
        needs_styles: True if the generator must have a style in each layer.
        shared_images: counts the images that a plan expects from the pass that several metrics share.
        own_images: counts the images of the metric's own passes.
    """

    values: dict[str, ReportedValue]
    roles: tuple[Role, ...]
    settings: tuple[str, ...]
    meter: str
    interval_settings: tuple[str, ...] = ()
    intervals: int = 1
    gate: tuple[str, ...] = ()
    quick: bool = False
    of_images: bool = False
    needs_styles: bool = False
    shared_images: ImageCount = lambda evaluation: 0
    own_images: ImageCount = lambda evaluation: 0


def _path_length(name: str, title: str) -> MetricFacts:
    """Return the row of one of the four perceptual path lengths."""
    return MetricFacts(
        values={name: ReportedValue(title, "lower")},
        roles=("distance",),
        settings=("ppl_samples", "ppl_epsilon", "ppl_crop"),
        meter="stylegan.evaluation.meters:PathMeter",
        intervals=2,
        gate=(name,),
        own_images=lambda evaluation: 2 * evaluation.ppl_samples,  # both ends of each path
    )


METRICS: dict[str, MetricFacts] = {  # in the order of pages
    "fid": MetricFacts(
        values={"fid": ReportedValue("Fréchet distance (FID)", "lower")},
        roles=("pooled",),
        settings=("num_images", "num_reals"),
        meter="stylegan.evaluation.meters:FrechetMeter",
        interval_settings=("bootstrap",),
        intervals=2,
        gate=("fid",),
        quick=True,
        of_images=True,
        shared_images=lambda evaluation: evaluation.num_images,
    ),
    "fid_mixing": MetricFacts(
        values={"fid_mixing": ReportedValue("Fréchet distance with mixed styles", "lower")},
        roles=("pooled",),
        settings=("num_images", "num_reals"),
        meter="stylegan.evaluation.meters:MixingMeter",
        needs_styles=True,
        shared_images=lambda evaluation: evaluation.num_images,
        own_images=lambda evaluation: 3 * evaluation.num_images,  # with 2, 3 and 4 latents
    ),
    "kid": MetricFacts(
        values={"kid": ReportedValue("Kernel distance (KID)", "lower")},
        roles=("pooled",),
        settings=("num_images", "num_reals", "kid_subsets", "kid_subset_size"),
        meter="stylegan.evaluation.meters:KernelMeter",
        intervals=2,
        gate=("kid",),
        quick=True,
        of_images=True,
        shared_images=lambda evaluation: evaluation.num_images,
    ),
    "is": MetricFacts(
        values={
            "is": ReportedValue("Inception score", "higher"),
            "is_std": ReportedValue("Inception score, spread over splits", None),
        },
        roles=("pooled",),
        settings=("num_images", "is_splits"),
        meter="stylegan.evaluation.meters:InceptionScoreMeter",
        intervals=2,
        gate=("is",),
        quick=True,
        of_images=True,
        shared_images=lambda evaluation: evaluation.num_images,
    ),
    "pr": MetricFacts(
        values={
            "precision": ReportedValue("Precision", "higher", largest=1.0),
            "recall": ReportedValue("Recall", "higher", largest=1.0),
            "density": ReportedValue("Density", "higher"),
            "coverage": ReportedValue("Coverage", "higher", largest=1.0),
        },
        roles=("manifold",),
        settings=("num_images", "num_reals"),
        meter="stylegan.evaluation.meters:ManifoldMeter",
        intervals=2,
        gate=("precision", "recall", "density", "coverage"),
        quick=True,
        of_images=True,
        shared_images=lambda evaluation: evaluation.num_images,
    ),
    "ppl_zfull": _path_length("ppl_zfull", "Path length in Z, full"),
    "ppl_wfull": _path_length("ppl_wfull", "Path length in W, full"),
    "ppl_zend": _path_length("ppl_zend", "Path length in Z, ends"),
    "ppl_wend": _path_length("ppl_wend", "Path length in W, ends"),
    "separability": MetricFacts(
        values={
            "separability_w": ReportedValue("Separability in W", "lower"),
            "separability_z": ReportedValue("Separability in Z", "lower"),
        },
        roles=("attributes",),
        settings=("separability_samples",),
        meter="stylegan.evaluation.meters:SeparabilityMeter",
        gate=("separability",),  # the gate compares separability_w
        shared_images=lambda evaluation: evaluation.separability_samples,
    ),
    "truncation": MetricFacts(
        values={"truncation": ReportedValue("Truncation curve", None)},
        roles=("pooled", "manifold"),
        settings=("num_images", "num_reals", "psi", "truncated_layers"),
        meter="stylegan.evaluation.meters:TruncationMeter",
        # The row of psi = 1 takes the images of the shared pass.
        shared_images=lambda evaluation: evaluation.num_images if 1 in evaluation.psi else 0,
        own_images=lambda evaluation: len(set(evaluation.psi) - {1}) * evaluation.num_images,
    ),
}


def split_key(key: str) -> tuple[str, str]:
    """Split a key of a report into value and network: fid_inception -> fid, inception.

    The longest known value wins: fid_mixing_inception -> fid_mixing, inception. The key of an unknown value is returned
    whole, with an empty network.
    """
    matching = [name for name in _values() if key == name or key.startswith(f"{name}_")]
    name = max(matching, key=len, default=key)
    return name, key[len(name) + 1 :]


def describe(key: str) -> ReportedValue:
    """Return title, direction and bound of a key of a report; an unknown key keeps its name and has no direction."""
    name, _ = split_key(key)
    return _values().get(name, ReportedValue(name.replace("_", " "), None))


def better(key: str) -> Direction:
    """Return the direction in which a key improves; `lower` if neither is known, because most metrics are distances."""
    return describe(key).better or "lower"


def rank(key: str) -> int:
    """Return the position of a key in the order of pages; unknown keys come last."""
    names = list(_values())
    name, _ = split_key(key)
    return names.index(name) if name in names else len(names)


def _values() -> dict[str, ReportedValue]:
    """Return the values of all metrics by name, in the order of the table."""
    return {name: value for facts in METRICS.values() for name, value in facts.values.items()}
