"""The record of an evaluation: values, their intervals and protocols, and the reasons for skipped metrics."""

from __future__ import annotations

import math
from typing import Any

from pydantic import field_serializer

from stylegan.evaluation.features.embedded import FEATURES_VERSION
from stylegan.evaluation.protocol import PROTOCOL_VERSION
from stylegan.records import Record

EVALUATION_VERSION = (PROTOCOL_VERSION, FEATURES_VERSION)  # a report of another version is out of date


class Report(Record):
    """Values with everything that is needed to compare them.

    In JSON a number that is not finite is "NaN", "Infinity" or "-Infinity", and is read back as that number.

    Attributes:
        protocol: the digest of the protocols of all metrics.
        dataset_fingerprint: the fingerprint of the reals. Two values compare only if it is equal, and so are their
            protocols.
        checkpoint_uri: the checkpoint; or the URI of the images that were measured instead of a generator.
        metrics: values by key, which names the value and the network (`fid_inception`, see `metric_table.py`).
        intervals: 95 % intervals of some values, by key.
        protocols: by key, the digest of everything that decides the value besides the generator and the images.
        settings: the content of the protocols in words: settings, counts, and networks with the SHA-256 of their files.
        attributes: by attribute of the separability: `entropy_w` and `entropy_z` in nats, the `share` of the kept
            images that have it, or the `error` that keeps it from being scored.
        curves: rows of `mixing` {latents, fid} and of `truncation` {psi, fid, precision, recall}.
        figures: URIs of PNG files: grid (reals left, fakes right), best and worst (by realism), truncation (a row for
            each psi), neighbours (images with their nearest reals), and those of `drawing/figures.py`.
        skipped: the reason for each key that was wanted and could not be measured.
    """

    protocol: str
    dataset_fingerprint: str
    checkpoint_uri: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    protocols: dict[str, str] = {}
    settings: dict[str, Any] = {}
    attributes: dict[str, dict[str, float | str | None]] = {}
    curves: dict[str, list[dict[str, float]]] = {}
    figures: dict[str, str] = {}
    skipped: dict[str, str] = {}

    # Pydantic's own ser_json_inf_nan works for model_dump_json only: model_dump(mode="json") would keep numbers that
    # JSON does not have.
    @field_serializer("metrics", "intervals", "curves", when_used="json")
    def _to_json(self, value: Any) -> Any:
        return plain(value)


def plain(value: Any) -> Any:
    """Replace every number of a tree that is not finite by its name, because JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
