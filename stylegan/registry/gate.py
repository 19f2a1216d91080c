"""Whether a challenger becomes champion: a pure function of two reports and the gate's settings."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from stylegan.config import GateConfig
from stylegan.evaluation.report import Report


class Verdict(BaseModel):
    """The gate's decision on `challenger` against `champion` (versions; None: there was no champion), with its reasons."""

    model_config = ConfigDict(frozen=True)

    promote: bool
    reasons: tuple[str, ...]
    champion: str | None
    challenger: str


def judge(
    challenger: Report, champion: Report | None, gate: GateConfig, *, challenger_version: str, champion_version: str | None
) -> Verdict:
    """Compare two reports; lower is better.

    A first model needs only finite metrics. Afterwards the same protocol and the same reference images are required, another
    checkpoint, and a value that is strictly lower and at most (1 - gate.min_improvement) times the champion's.

    Args:
        challenger, champion: what was measured; no champion means a first model.
        gate: the metric that decides, without the name of its feature space, and the improvement asked for.
        challenger_version, champion_version: registry versions, kept in the verdict and named in reasons.
    """
    obstacles = _defects(challenger, gate.metric, f"version {challenger_version}")
    if not obstacles and champion is not None:
        if challenger_version == champion_version:
            obstacles = [f"Version {challenger_version} is the champion already."]
        obstacles = obstacles or _differences(challenger, champion, f"version {champion_version}")
        obstacles = obstacles or _defects(champion, gate.metric, f"the champion, version {champion_version}")
    promote, reasons = not obstacles, obstacles
    if not obstacles:
        key = metric_key(challenger, gate.metric) or gate.metric
        value = challenger.metrics[key]
        if champion is None:
            reasons = [f"There is no champion yet, and all {len(challenger.metrics)} metrics are finite ({key} {value:.6g})."]
        else:
            promote, reason = _compare(key, value, champion.metrics[key], gate.min_improvement)
            reasons = [f"{reason} (champion is version {champion_version})."]
    return Verdict(promote=promote, reasons=tuple(reasons), champion=champion_version, challenger=challenger_version)


def metric_key(report: Report, metric: str) -> str | None:
    """The key of a metric in a report, which carries the name of its feature space: fid -> fid_classifier."""
    return next((key for key in sorted(report.metrics) if key.startswith(f"{metric}_")), None)


def _defects(report: Report, metric: str, whose: str) -> list[str]:
    """What is wrong with a report on its own."""
    found = [f"{key} of {whose} is {value:g}, not a finite number." for key, value in report.metrics.items() if not math.isfinite(value)]
    if metric_key(report, metric) is None:
        skipped = next((why for key, why in sorted(report.skipped.items()) if key == metric or key.startswith(f"{metric}_")), None)
        have = ", ".join(f"{key} {value:.6g}" for key, value in sorted(report.metrics.items())) or "none"
        why = f"was skipped: {skipped.rstrip('.')}" if skipped else f"is missing; measured: {have}"
        found.append(f"The gate's metric {metric} of {whose} {why}.")
    return found


def _differences(challenger: Report, champion: Report, whose: str) -> list[str]:
    """Why two reports cannot be compared."""
    if challenger.checkpoint_uri == champion.checkpoint_uri:
        return [f"It is the same checkpoint as the champion, {whose}: {champion.checkpoint_uri}."]
    found = []
    if challenger.protocol != champion.protocol:
        found.append(
            f"Evaluated under protocol {challenger.protocol}, the champion, {whose}, under {champion.protocol}: "
            "the numbers do not compare; evaluate the champion under the new protocol or promote by hand."
        )
    if challenger.dataset_fingerprint != champion.dataset_fingerprint:
        found.append(
            f"Measured against the images {challenger.dataset_fingerprint}, the champion, {whose}, against "
            f"{champion.dataset_fingerprint}: the numbers do not compare; evaluate the champion on the new images or promote by hand."
        )
    return found


def _compare(key: str, value: float, champion: float, min_improvement: float) -> tuple[bool, str]:
    limit = champion * (1 - min_improvement)
    promote = value <= limit and value < champion
    asked = f"at most {limit:.6g} ({min_improvement:.2%} below)" if min_improvement else f"less than {champion:.6g}"
    change = f", {abs(value / champion - 1):.2%} {'lower' if value < champion else 'higher'}" if champion and value != champion else ""
    return promote, f"{key} is {value:.6g} against {champion:.6g}{change}; asked for {asked}"
