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
Role = Literal["pooled", "manifold", "distance", "attributes", "style"]
Direction = Literal["lower", "higher"]
# Counts images from an EvaluationConfig, whose type this file cannot import.
ImageCount = Callable[[Any], int]
NO_W = "no w beside z (model.architecture: resnet)"  # what a generator lacks
ACCURACY = "_accuracy"  # end of a key that describes a network, such as classifier_accuracy


@dataclass(frozen=True)
class Trouble:
    """A warning about a value.

    Attributes:
        due: whether the value under a key of a Report, whose type this file cannot import, means trouble.
        words: the rest of a sentence that begins with the value, as in `Recall is 0.032: ...`.
    """

    due: Callable[[str, Any], bool]
    words: str


@dataclass(frozen=True)
class ReportedValue:
    """One value that a metric reports.

    Attributes:
        title: the name for people.
        better: the direction of improvement; None if neither direction is better, as for a spread or a curve.
        meaning: what it measures, in one sentence that needs no other knowledge. The part before the first semicolon
            can stand alone and is short enough for a line of a terminal.
        largest: the upper bound that no model can exceed.
        troubles: the warnings that the value may deserve; the first that is due is shown.
    """

    title: str
    better: Direction | None
    meaning: str
    largest: float = math.inf
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True)
class MetricFacts:
    """The facts about one entry of `evaluation.metrics`.

    Attributes:
        values: the reported values by name, the first part of their keys. A curve is one value here: its key has no
            number in a report, but a protocol, or a reason if the curve is skipped.
        roles: the networks that the metric needs; its keys end with the name of the first one.
        settings: the settings of the `evaluation` section that decide its values. Networks, seed, chunk size and
            resolution decide every metric and are not listed. Path lengths are always drawn in single precision.
        interval_settings: the settings that decide its intervals only. Values compare whatever these are.
        meter: `module:class` of its `Meter`, imported when the metric is measured; empty if it measures no generator.
        intervals: the version of the way in which its intervals are computed. Raised, it keeps the gate from comparing
            a new interval with an old one, but finished evaluations are still found: the values are the same.
        gate: the names under which `registry.gate.metric` may ask for it; empty for a curve.
        quick: True if it may be measured beside training, on few images.
        of_images: True if images can be measured without their generator.
        needs_styles: True if the generator must have a style in each layer.
        needs_w: True if the generator must have a w beside z.
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
    needs_w: bool = False
    shared_images: ImageCount = lambda evaluation: 0
    own_images: ImageCount = lambda evaluation: 0


# --- when a value means trouble ---------------------------------------------------------------------------------------
#
# A limit follows from what the value means, and leaves room below the models that the papers call good.

# Half the width of an interval, as a share of the value. Two models that are measured so must differ by more than
# sqrt(2) times as much, a third, before the gate's test can tell them apart.
WIDE_INTERVAL = 0.25
# Recall is the share of the real images inside the manifold of the generated ones (Kynkaanniemi et al. 2019, section
# 2). The official StyleGAN2 of FFHQ at 1024x1024 has 0.49, that of LSUN Car 0.48 (mmagic's README of styleganv2).
LOW_RECALL = 0.05
# Precision is the same the other way round: three of four generated images would be unlike any real one. Those two
# models have 0.63 and 0.66.
LOW_PRECISION = 0.25
# Coverage as a share of that of a perfect model (Naeem et al. 2020, section 3.2): seven of ten real images would have
# no generated one near them.
LOW_COVERAGE = 0.3
COVERAGE_NEIGHBOURS = 5
# A path length over a whole path bounds the mean squared distance of its two ends: no path between two points is
# shorter than the straight one (Cauchy and Schwarz). Below this, two images of the model are the same to the eye; the
# rows of Karras et al. 2019, table 3, are between 160 and 902.
SHORT_PATH = 0.05
# The score is the exponential of a mean divergence, so 1 is its least value (Salimans et al. 2016). Here the classes
# share 0.05 nats with the images.
LEAST_SCORE = 1.05
# Of the largest separability that the attributes allow: a hyperplane that says nothing leaves their whole entropy.
NEARLY_ALL = 0.99


def _below(limit: float) -> Callable[[str, Any], bool]:
    return lambda key, report: report.metrics[key] < limit


def _wide_interval(key: str, report: Any) -> bool:
    low, high = report.intervals.get(key, (0.0, 0.0))
    return bool(high - low > 2 * WIDE_INTERVAL * report.metrics[key])


def _low_coverage(key: str, report: Any) -> bool:
    """Return whether coverage is low beside that of a perfect model with as many images.

    Of N reals and M images of one distribution, a real image has none of the M nearer than its k-th neighbour among the
    N if its k nearest neighbours among all are reals: about (N / (N + M))^k.
    """
    reals, images = report.settings.get("num_reals", 1), report.settings.get("num_images", 1)
    perfect = 1 - (reals / (reals + images)) ** COVERAGE_NEIGHBOURS
    return bool(report.metrics[key] < LOW_COVERAGE * perfect)


def _least_score(key: str, report: Any) -> bool:
    """Return whether the Inception score is at its least value.

    To the network that tells rotations apart all upright images are of one class, so there it always is.
    """
    return bool(report.metrics[key] < LEAST_SCORE and split_key(key)[1] != "rotation")


def _inseparable(key: str, report: Any) -> bool:
    """Return whether separability is that of latents which say nothing: exp(sum of the attributes' entropies)."""
    shares = [row["share"] for row in report.attributes.values() if row.get("share") is not None]
    entropies = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in shares if 0 < p < 1]
    largest = math.exp(sum(entropies))
    return bool(entropies and report.metrics[key] >= NEARLY_ALL * largest)


# --- the table --------------------------------------------------------------------------------------------------------


def _path_length(name: str, title: str, meaning: str) -> MetricFacts:
    """Return the row of one of the four perceptual path lengths."""
    space = name[4]
    ignored = Trouble(
        _below(SHORT_PATH), f"the images hardly change with {space}, so the latent is ignored and all look the same"
    )
    return MetricFacts(
        values={name: ReportedValue(title, "lower", meaning, troubles=(ignored,))},
        roles=("distance",),
        settings=("ppl_samples", "ppl_epsilon", "ppl_crop"),
        meter="stylegan.evaluation.meters:PathMeter",
        intervals=2,
        gate=(name,),
        needs_w=space == "w",
        own_images=lambda evaluation: 2 * evaluation.ppl_samples,  # both ends of each path
    )


METRICS: dict[str, MetricFacts] = {  # in the order of pages
    "fid": MetricFacts(
        values={
            "fid": ReportedValue(
                "Fréchet distance (FID)",
                "lower",
                "How far the generated images are from the real ones; 0 if the two sets are alike.",
                troubles=(
                    Trouble(
                        _wide_interval,
                        "its 95 % interval is wide, so only large differences between models show; raise "
                        "evaluation.num_images",
                    ),
                ),
            )
        },
        roles=("pooled",),
        settings=("num_images", "num_reals", "precision"),
        meter="stylegan.evaluation.meters:FrechetMeter",
        interval_settings=("bootstrap",),
        intervals=2,
        gate=("fid",),
        quick=True,
        of_images=True,
        shared_images=lambda evaluation: evaluation.num_images,
    ),
    "fid_mixing": MetricFacts(
        values={
            "fid_mixing": ReportedValue(
                "Fréchet distance with mixed styles", "lower", "FID of images that mix the styles of several latents."
            )
        },
        roles=("pooled",),
        settings=("num_images", "num_reals", "precision"),
        meter="stylegan.evaluation.meters:MixingMeter",
        needs_styles=True,
        shared_images=lambda evaluation: evaluation.num_images,
        own_images=lambda evaluation: 3 * evaluation.num_images,  # with 2, 3 and 4 latents
    ),
    "kid": MetricFacts(
        values={
            "kid": ReportedValue(
                "Kernel distance (KID)",
                "lower",
                "Like FID, fair to small sets, by chance a bit below 0; near 0 is best.",
            )
        },
        roles=("pooled",),
        settings=("num_images", "num_reals", "precision", "kid_subsets", "kid_subset_size"),
        meter="stylegan.evaluation.meters:KernelMeter",
        intervals=2,
        gate=("kid",),
        quick=True,
        of_images=True,
        shared_images=lambda evaluation: evaluation.num_images,
    ),
    "is": MetricFacts(
        values={
            "is": ReportedValue(
                "Inception score",
                "higher",
                "How clear and how many the classes in the images are; 1 is the least.",
                troubles=(Trouble(_least_score, "the network sees one class in all images, or none clearly"),),
            ),
            "is_std": ReportedValue(
                "Inception score, spread", None, "How much the score differs between parts of the images."
            ),
        },
        roles=("pooled",),
        settings=("num_images", "is_splits", "precision"),
        meter="stylegan.evaluation.meters:InceptionScoreMeter",
        intervals=2,
        gate=("is",),
        quick=True,
        of_images=True,
        shared_images=lambda evaluation: evaluation.num_images,
    ),
    "pr": MetricFacts(
        values={
            "precision": ReportedValue(
                "Precision",
                "higher",
                "Share of the generated images that look real; their features are among those of real ones.",
                largest=1.0,
                troubles=(
                    Trouble(
                        _below(LOW_PRECISION),
                        "most generated images are unlike any real one; the model needs more training, or has diverged",
                    ),
                ),
            ),
            "recall": ReportedValue(
                "Recall",
                "higher",
                "Share of the real images that the model can draw; their features are among those of generated ones.",
                largest=1.0,
                troubles=(
                    Trouble(
                        _below(LOW_RECALL),
                        "the images have few varieties, the same few again and again (mode collapse)",
                    ),
                ),
            ),
            "density": ReportedValue(
                "Density", "higher", "How closely real images surround the generated ones; a perfect model has about 1."
            ),
            "coverage": ReportedValue(
                "Coverage",
                "higher",
                "Share of the real images with a generated one close by; low if whole kinds are missing.",
                largest=1.0,
                troubles=(
                    Trouble(_low_coverage, "most real images have no generated one near them; kinds are missing"),
                ),
            ),
        },
        roles=("manifold",),
        settings=("num_images", "num_reals", "precision"),
        meter="stylegan.evaluation.meters:ManifoldMeter",
        intervals=2,
        gate=("precision", "recall", "density", "coverage"),
        quick=True,
        of_images=True,
        shared_images=lambda evaluation: evaluation.num_images,
    ),
    "ppl_zfull": _path_length(
        "ppl_zfull",
        "Path length in Z, full",
        "How much an image changes between one z and another; low is smooth.",
    ),
    "ppl_wfull": _path_length(
        "ppl_wfull",
        "Path length in W, full",
        "How much an image changes between one w and another; low is smooth.",
    ),
    "ppl_zend": _path_length(
        "ppl_zend", "Path length in Z, ends", "How much an image changes with a small step in z; low is smooth."
    ),
    "ppl_wend": _path_length(
        "ppl_wend", "Path length in W, ends", "How much an image changes with a small step in w; low is smooth."
    ),
    "separability": MetricFacts(
        values={
            "separability_w": ReportedValue(
                "Separability in W",
                "lower",
                "How badly a flat cut through W tells attributes apart; 1 is perfect, usual with class labels.",
                troubles=(Trouble(_inseparable, "w says nothing about any attribute"),),
            ),
            "separability_z": ReportedValue(
                "Separability in Z",
                "lower",
                "How badly a flat cut through Z tells attributes apart; high with class labels, because z then has no "
                "part in the class.",
            ),
        },
        roles=("attributes",),
        settings=("separability_samples", "precision"),
        meter="stylegan.evaluation.meters:SeparabilityMeter",
        gate=("separability",),  # the gate compares separability_w
        shared_images=lambda evaluation: evaluation.separability_samples,
    ),
    "truncation": MetricFacts(
        values={
            "truncation": ReportedValue(
                "Truncation curve",
                None,
                "FID, precision and recall over ψ; from typical images (small ψ) to varied ones.",
            )
        },
        roles=("pooled", "manifold"),
        settings=("num_images", "num_reals", "precision", "psi", "truncated_layers"),
        meter="stylegan.evaluation.meters:TruncationMeter",
        needs_w=True,
        # The row of psi = 1 takes the images of the shared pass.
        shared_images=lambda evaluation: evaluation.num_images if 1 in evaluation.psi else 0,
        own_images=lambda evaluation: len(set(evaluation.psi) - {1}) * evaluation.num_images,
    ),
    "transfer": MetricFacts(
        values={
            "transfer_loss": ReportedValue(
                "Loss of the transfer",
                "lower",
                "Content and style loss together; of held-out pairs, with the weights of the training.",
            ),
            "content_loss": ReportedValue(
                "Content loss", "lower", "How far features are from those of the wanted picture."
            ),
            "style_loss": ReportedValue("Style loss", "lower", "How far their statistics are from those of the style."),
        },
        roles=("style",),
        settings=("num_images",),
        meter="",
        gate=("transfer_loss", "content_loss", "style_loss"),
        shared_images=lambda evaluation: evaluation.num_images,
    ),
}


def lacking(metric: str, model: Any) -> str:
    """Return what a metric needs and a generator of this ModelConfig lacks, and by which setting; empty if nothing."""
    facts = METRICS[metric]
    if facts.needs_styles and not model.has_styles:
        return f"no styles to mix ({model.lacking('styles')})"
    if facts.needs_w and not model.has_w:
        return NO_W
    return ""


def split_key(key: str) -> tuple[str, str]:
    """Split a key of a report into value and network: fid_inception -> fid, inception.

    The longest known value wins: fid_mixing_inception -> fid_mixing, inception. The key of an unknown value is returned
    whole, with an empty network.
    """
    matching = [name for name in _values() if key == name or key.startswith(f"{name}_")]
    name = max(matching, key=len, default=key)
    return name, key[len(name) + 1 :]


def describe(key: str) -> ReportedValue:
    """Return the facts about a key of a report; an unknown key keeps its name and has no direction."""
    name, _ = split_key(key)
    meaning = (
        "Share of real images that the network classifies right; of images held out of its training."
        if key.endswith(ACCURACY)
        else ""
    )
    return _values().get(name, ReportedValue(name.replace("_", " "), None, meaning))


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
