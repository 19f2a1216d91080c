"""What the key of a metric in a report says: which metric it is, which direction is better, and in which feature space it was taken.

A key is the metric's name and the name of the network, joined by an underscore: `fid_inception`, `separability_w_classifier`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricName:
    """A metric in words.

    `better` is None where neither direction is (a spread, a fact about the feature network); `largest` is what no model can exceed.
    """

    title: str
    better: Literal["lower", "higher"] | None
    largest: float = math.inf


METRICS: dict[str, MetricName] = {
    "fid": MetricName("Fréchet distance (FID)", "lower"),
    "fid_mixing": MetricName("Fréchet distance with mixed styles", "lower"),
    "kid": MetricName("Kernel distance (KID)", "lower"),
    "is": MetricName("Inception score", "higher"),
    "is_std": MetricName("Inception score, spread over splits", None),
    "precision": MetricName("Precision", "higher", 1.0),
    "recall": MetricName("Recall", "higher", 1.0),
    "density": MetricName("Density", "higher"),
    "coverage": MetricName("Coverage", "higher", 1.0),
    "ppl_zfull": MetricName("Path length in Z, full", "lower"),
    "ppl_wfull": MetricName("Path length in W, full", "lower"),
    "ppl_zend": MetricName("Path length in Z, ends", "lower"),
    "ppl_wend": MetricName("Path length in W, ends", "lower"),
    "separability": MetricName("Separability", "lower"),
    "separability_w": MetricName("Separability in W", "lower"),
    "separability_z": MetricName("Separability in Z", "lower"),
    "truncation": MetricName("Truncation curve", None),
}


def split_key(key: str) -> tuple[str, str]:
    """Metric and network of a key: fid_inception -> fid, inception. A key of no known metric is a metric without a network."""
    known = [name for name in METRICS if key == name or key.startswith(f"{name}_")]
    name = max(known, key=len, default=key)
    return name, key[len(name) + 1 :]


def describe(key: str) -> MetricName:
    """The metric of a key or of a config, in words; one that is not known keeps its name and has no better direction."""
    name, _ = split_key(key)
    return METRICS.get(name, MetricName(name.replace("_", " "), None))


def better(metric: str) -> Literal["lower", "higher"]:
    """The direction in which a metric or key improves; `lower` where neither does, as of every distance."""
    return describe(metric).better or "lower"
