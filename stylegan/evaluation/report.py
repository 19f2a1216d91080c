"""The record of an evaluation: what was measured, how sure it is, under which protocol, and what could not be measured."""

from __future__ import annotations

import math
from typing import Any

from pydantic import field_serializer

from stylegan.evaluation.features.embedded import VERSION as FEATURES_VERSION
from stylegan.evaluation.protocol import VERSION
from stylegan.records import Record

EVALUATION_VERSION = (VERSION, FEATURES_VERSION)  # a report made under another one is out of date


class Report(Record):
    """Numbers with all that is needed to compare them.

    - `metrics`: values by key, the name of a metric and of the network it was measured with (`fid_inception`, see `names.py`);
      `intervals`: 95 % intervals of some of them.
    - `protocols`: by key, the digest of all that decides the value besides the generator and the images; `protocol`: of all of
      them. Two values compare only if their protocols and the `dataset_fingerprint` of the reals are equal.
    - `settings`: the same in words: settings, counts, networks with the SHA-256 of their files.
    - `attributes`: by attribute of the separability, its `entropy_w` and `entropy_z` in nats, the `share` of the kept images that
      have it, or the `error` that keeps it from being scored.
    - `curves`: rows of `mixing` {latents, fid} and of `truncation` {psi, fid, precision, recall}.
    - `figures`: URIs of PNG files: grid (reals left, fakes right), best and worst (by realism), truncation (a row for each psi).
    - `skipped`: the reason of each key that was asked for and could not be measured.

    In JSON a number that is not finite is "NaN", "Infinity" or "-Infinity", and is read back as that number.
    """

    protocol: str
    dataset_fingerprint: str
    checkpoint_uri: str  # or the URI of the images that were measured instead
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    protocols: dict[str, str] = {}
    settings: dict[str, Any] = {}
    attributes: dict[str, dict[str, float | str | None]] = {}
    curves: dict[str, list[dict[str, float]]] = {}
    figures: dict[str, str] = {}
    skipped: dict[str, str] = {}

    def shown(self, key: str, digits: int = 4) -> str:
        """A value for people, with its 95 % interval if it has one: `4.41 [4.38, 4.45]`."""
        numbers = [f"{number:.{digits}g}" for number in (self.metrics[key], *self.intervals.get(key, ()))]
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if len(numbers) > 1 else numbers[0]

    # Pydantic's own ser_json_inf_nan is for model_dump_json only: model_dump(mode="json") would keep what JSON does not have.
    @field_serializer("metrics", "intervals", "curves", when_used="json")
    def _to_json(self, value: Any) -> Any:
        return plain(value)


def plain(value: Any) -> Any:
    """A number, or a tree of them, as JSON can hold it: one that is not finite by its name."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None:
        return None
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
