"""The gate: decide whether a challenger becomes champion, as a pure function of two reports and the gate's settings."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal

from stylegan.config.sections import GateConfig
from stylegan.evaluation.metric_table import METRICS, better, describe
from stylegan.evaluation.report import Report
from stylegan.records import Record
from stylegan.training.identity import identity

# Why the values of a metric in two reports do not compare: both are of one checkpoint, or it was measured by another
# network, under other settings, against other real images, or one of the two has no interval although the test needs it.
Obstacle = Literal["checkpoint", "features", "protocol", "images", "interval"]


# The same in few words.
WHY_NOT: dict[Obstacle, str] = {
    "checkpoint": "it is the same model",
    "features": "measured by another network",
    "protocol": "measured under other settings",
    "images": "measured against other images",
    "interval": "one of the two has no interval, so chance cannot be excluded",
}


class Difference(Record):
    """How the value of one metric differs between two reports.

    Attributes:
        key: of the metric in the report.
        value, other: the two values.
        obstacles: why they do not compare; empty if they do.
        gain: by how much `value` is better, negative if it is worse; None if neither direction is better, or if one of
            the two is not a finite number.
        chance: the 95 % bound on the difference of two measurements of one model; None without two intervals.
    """

    key: str
    value: float
    other: float
    obstacles: tuple[Obstacle, ...] = ()
    gain: float | None = None
    chance: float | None = None

    @property
    def better(self) -> bool | None:
        """Whether `value` is the better one; None if they are equal or cannot be compared."""
        if self.obstacles or better(self.key) is None:
            return None
        if self.gain is None:  # a finite number beats one that is not
            mine, others = math.isfinite(self.value), math.isfinite(self.other)
            return mine if mine != others else None
        return self.gain > 0 if self.gain else None

    @property
    def beyond_chance(self) -> bool | None:
        """Whether they differ by more than chance explains at 95 %; None where that cannot be tested."""
        if self.obstacles or self.gain is None or self.chance is None:
            return None
        return abs(self.gain) > self.chance


class Verdict(Record):
    """The decision on version `challenger` against version `champion` (None: there was no champion), with its reasons."""

    promote: bool
    reasons: tuple[str, ...]
    champion: str | None
    challenger: str


class StoredVerdict(Record):
    """A verdict in storage. Whether it was applied is asked of the registry.

    Attributes:
        key: of the gate that gave it.
        verdict: the verdict; its numbers of versions are those of the registry at that time.
        models: which models the challenger's and the champion's number meant there; None if an earlier release wrote it.
        against: the report of the champion as it was judged, which may have been measured again for that; None if there
            was none, or it is not known.
    """

    key: str
    verdict: Verdict
    models: tuple[str, str] | None = None
    against: Report | None = None


def describe_verdict(verdict: Verdict, aliases: Collection[str]) -> str:
    """Return the verdict with its reasons, and what has become of the version since.

    Args:
        verdict: what was decided when the version was judged.
        aliases: those that the version has in the registry now. People move them too.
    """
    decision = f"{'promoted' if verdict.promote else 'not promoted'}: {' '.join(verdict.reasons)}"
    if verdict.promote == ("champion" in aliases):
        return decision
    if verdict.promote:
        return f"not champion now (alias {', '.join(sorted(aliases)) or 'none'}); when it was judged it was {decision}"
    return f"champion now, by another decision; when it was judged it was {decision}"


def judge(
    challenger: Report,
    champion: Report | None,
    gate: GateConfig,
    *,
    challenger_version: str,
    champion_version: str | None,
) -> Verdict:
    """Compare two reports by the metric that decides.

    A first model needs only finite metrics. Afterwards the challenger must be another checkpoint, measured under the
    same protocol of that metric and against the same reference images. It is promoted if two conditions hold:

    - Its value is strictly better, by at least gate.min_improvement of the champion's value. Lower is better for
      distances, path lengths and separability; higher for the Inception score, precision, recall, density and coverage.
    - With gate.use_intervals, the difference exceeds sqrt(a^2 + b^2), with a and b half the widths of the 95 %
      intervals. Two independent measurements of equal models exceed that bound in the better direction once in 40
      times. Both intervals are over generated images, with the same reals, which is what differs between the two. Half
      widths are used and not the ends, because an end may be cut off at a bound. Where only one of the two has an
      interval, nobody is promoted. Where neither has one, as for separability, the value decides alone and the reason
      says so.

    A champion whose value is not finite, and so cannot be better, loses to any challenger. Its other metrics do not
    matter.

    Args:
        challenger, champion: what was measured; no champion means a first model.
        gate: the metric that decides (without the name of its feature space) and how much better it must be.
        challenger_version, champion_version: registry versions, for the verdict and its reasons.
    """
    obstacles = _defects(challenger, gate.metric, f"version {challenger_version}")
    if not obstacles and champion is not None:
        if challenger_version == champion_version:
            obstacles = [f"Version {challenger_version} is the champion already."]
        obstacles = obstacles or _differences(challenger, champion, gate, f"version {champion_version}")
        if challenger_version != champion_version and lacks_interval(challenger, champion, gate):
            obstacles.append(_untested(challenger, gate, f"version {challenger_version}"))
        obstacles = obstacles or _absences(champion, gate.metric, f"the champion, version {champion_version}")
    promote, reasons = not obstacles, obstacles
    if not obstacles:
        key = metric_key(challenger, gate.metric) or gate.metric
        if champion is None:
            value = challenger.metrics[key]
            reasons = [
                f"There is no champion yet, and all {len(challenger.metrics)} metrics are finite ({key} {value:.6g})."
            ]
        else:
            promote, reason = _compare(key, challenger, champion, gate)
            reasons = [f"{reason} (champion is version {champion_version})."]
    return Verdict(promote=promote, reasons=tuple(reasons), champion=champion_version, challenger=challenger_version)


def difference(report: Report, other: Report, key: str, *, use_intervals: bool = True) -> Difference | None:
    """Compare one value of two reports as the gate does; None if one of them does not have it.

    `judge` decides by this function, so whatever else compares runs by it never contradicts the gate.

    Args:
        report, other: what was measured.
        key: the metric, with its feature space or without (`fid_classifier`, `fid`).
        use_intervals: as in the gate's settings. Without it a missing interval is no obstacle.
    """
    mine, others = metric_key(report, key), metric_key(other, key)
    if mine is None or others is None:
        return None
    value, old, direction = report.metrics[mine], other.metrics[others], better(mine)
    finite = math.isfinite(value) and math.isfinite(old)
    sign = 1 if direction == "higher" else -1
    obstacles = _obstacles(report, mine, other, others, use_intervals=use_intervals)
    return Difference(
        key=mine,
        value=value,
        other=old,
        obstacles=("checkpoint",) if _same_model(report, other) else tuple(obstacles),
        gain=sign * (value - old) if finite and direction else None,
        chance=_chance(mine, report, other) if use_intervals and mine == others else None,
    )


def comparable(challenger: Report, champion: Report, gate: GateConfig) -> bool:
    """Return whether the gate's metric can decide between two reports.

    It can if it has the same key, the same protocol and the same reference images, and if the champion has an interval
    where the gate needs one. A champion that has not can be measured again.
    """
    return not _other_measurements(challenger, champion, gate, "")


def describe_old_reals(challenger: Report, champion: Report, gate: GateConfig) -> str:
    """Return in a sentence how two models measure on the images of the champion, which does not decide.

    A model that was trained on new images may have forgotten old ones.

    Args:
        challenger, champion: measured against the same images, those that the champion was judged on.
        gate: names the metric.
    """
    key, other = metric_key(challenger, gate.metric), metric_key(champion, gate.metric)
    if key is None or key != other or _other_measurements(challenger, champion, gate, "the champion"):
        return f"On the champion's own images {gate.metric} cannot be compared."
    value, old = challenger.metrics[key], champion.metrics[key]
    sign = 1 if better(key) == "higher" else -1
    chance = _chance(key, challenger, champion)
    change = _change(value, old)
    if chance is not None and abs(value - old) <= chance:
        change += ", within what chance explains"
    elif sign * (value - old) < 0:
        change += ": it has forgotten some of them"
    return (
        f"On the champion's own images {key} is {_shown(key, challenger)} against the champion's "
        f"{_shown(key, champion)}{change}; this does not decide."
    )


def metric_key(report: Report, metric: str) -> str | None:
    """Return the key of a metric in a report, with its feature space: fid -> fid_classifier, not fid_mixing_classifier."""
    if metric in report.metrics:
        return metric
    keys = [key for key in report.metrics if key.startswith(f"{metric}_")]
    return min(keys, key=lambda key: (key.count("_"), key), default=None)


def _defects(report: Report, metric: str, whose: str) -> list[str]:
    """Return what keeps a report by itself from being judged: values that are not finite, or no value of the metric."""
    found = [
        f"{key} of {whose} is {value:g}, not a finite number."
        for key, value in report.metrics.items()
        if not math.isfinite(value)
    ]
    return found + _absences(report, metric, whose)


def _absences(report: Report, metric: str, whose: str) -> list[str]:
    """Return why a report has no value of the metric; empty if it has one."""
    if metric_key(report, metric) is not None:
        return []
    skipped = next(
        (why for key, why in sorted(report.skipped.items()) if key == metric or key.startswith(f"{metric}_")), None
    )
    have = ", ".join(f"{key} {value:.6g}" for key, value in sorted(report.metrics.items())) or "none"
    why = f"was skipped: {skipped.rstrip('.')}" if skipped else f"is missing; measured: {have}"
    return [f"The gate's metric {metric} of {whose} {why}."]


def lacks_interval(report: Report, other: Report, gate: GateConfig) -> bool:
    """Return whether the gate's test is impossible because a report has no interval, while the other one has.

    Two values that are not both finite are not tested.
    """
    key, others = metric_key(report, gate.metric), metric_key(other, gate.metric)
    if not gate.use_intervals or key is None or others is None:
        return False
    return _lacks_interval(report, key, other, others)


def _lacks_interval(report: Report, key: str, other: Report, others: str) -> bool:
    finite = math.isfinite(report.metrics[key]) and math.isfinite(other.metrics[others])
    return finite and key not in report.intervals and others in other.intervals


def _untested(report: Report, gate: GateConfig, whose: str) -> str:
    """Return the reason for `lacks_interval`, with the settings that decide whether there is an interval."""
    settings = next((facts.interval_settings for facts in METRICS.values() if gate.metric in facts.gate), ())
    cure = f"mend {' and '.join(f'evaluation.{name}' for name in settings)}, or " if settings else ""
    return (
        f"{metric_key(report, gate.metric)} of {whose} has no 95 % interval, the value that it is compared with has one: "
        f"chance cannot be excluded; {cure}set registry.gate.use_intervals=false or promote by hand."
    )


def _differences(challenger: Report, champion: Report, gate: GateConfig, whose: str) -> list[str]:
    """Return why two reports cannot be compared; empty if they can."""
    if _same_model(challenger, champion):
        return [f"It is the same checkpoint as the champion, {whose}: {champion.checkpoint_uri}."]
    return _other_measurements(challenger, champion, gate, whose)


def _same_model(report: Report, other: Report) -> bool:
    return identity(report.checkpoint_uri) == identity(other.checkpoint_uri)


def _other_measurements(challenger: Report, champion: Report, gate: GateConfig, whose: str) -> list[str]:
    """Return why the gate's metric does not compare; the challenger's own lack of an interval is left out."""
    key, other = metric_key(challenger, gate.metric), metric_key(champion, gate.metric)
    obstacles = _obstacles(challenger, key, champion, other, use_intervals=gate.use_intervals)
    sentences = {
        "features": f"Measured as {key}, the champion, {whose}, as {other}: "
        "the numbers do not compare; evaluate the champion with the same features or promote by hand.",
        "protocol": f"Evaluated under protocol {_protocol(challenger, key)}, the champion, {whose}, under "
        f"{_protocol(champion, key)}: "
        "the numbers do not compare; evaluate the champion under the new protocol or promote by hand.",
        "images": f"Measured against the images {challenger.dataset_fingerprint}, the champion, {whose}, against "
        f"{champion.dataset_fingerprint}: the numbers do not compare; evaluate the champion on the new images or promote by hand.",
    }
    if lacks_interval(champion, challenger, gate):
        sentences["interval"] = _untested(champion, gate, f"the champion, {whose},")
    return [sentences[obstacle] for obstacle in obstacles if obstacle in sentences]


def _obstacles(
    report: Report, key: str | None, other: Report, others: str | None, *, use_intervals: bool
) -> list[Obstacle]:
    """Return why a metric of two reports does not compare; `key` and `others` are None where it is missing."""
    found: list[Obstacle] = []
    untested = (
        key and others and (_lacks_interval(report, key, other, others) or _lacks_interval(other, others, report, key))
    )
    if use_intervals and untested:
        found.append("interval")
    if key and others and key != others:
        found.append("features")
    elif _protocol(report, key) != _protocol(other, key):
        found.append("protocol")
    if report.dataset_fingerprint != other.dataset_fingerprint:
        found.append("images")
    return found


def _protocol(report: Report, key: str | None) -> str:
    """Return the protocol of a metric, that of the whole report if it does not hold one for each."""
    return report.protocols.get(key or "", report.protocol)


def _compare(key: str, challenger: Report, champion: Report, gate: GateConfig) -> tuple[bool, str]:
    """Return the decision and its reason, without a full stop."""
    found = difference(challenger, champion, key, use_intervals=gate.use_intervals)
    assert found is not None  # both have the metric
    value, old, gain, chance = found.value, found.other, found.gain, found.chance
    if gain is None:
        return True, f"{key} is {_shown(key, challenger)}, and the champion's is {old:g}, not a finite number"
    sign = 1 if better(key) == "higher" else -1
    limit = old + sign * gate.min_improvement * abs(old)
    enough = sign * (value - limit) >= 0 and gain > 0
    reason = (
        f"{key} is {_shown(key, challenger)} against {_shown(key, champion)}{_change(value, old)}; asked for "
        f"{_asked(key, old, limit, gate.min_improvement)}"
    )
    if chance is None and gate.use_intervals and enough:
        reason += "; neither value has a 95 % interval, so chance is not excluded"
    if chance is None or gain <= 0:
        return enough, reason
    if found.beyond_chance:
        return enough, f"{reason}; the difference of {gain:.6g} exceeds {chance:.6g}, what chance explains at 95 %"
    return False, f"{reason}; the difference of {gain:.6g} is within {chance:.6g}, what chance explains at 95 %"


def _chance(key: str, challenger: Report, champion: Report) -> float | None:
    """Return the 95 % bound on the difference of two measurements of one model; None if one of them has no interval."""
    intervals = [report.intervals.get(key) for report in (challenger, champion)]
    widths = [high - low for low, high in (interval for interval in intervals if interval is not None)]
    return math.hypot(*widths) / 2 if len(widths) == 2 else None


def _shown(key: str, report: Report) -> str:
    interval = report.intervals.get(key)
    return f"{report.metrics[key]:.6g}" + (f" [{interval[0]:.6g}, {interval[1]:.6g}]" if interval else "")


def _change(value: float, old: float) -> str:
    if not old or value == old:
        return ""
    return f", {abs((value - old) / old):.2%} {'lower' if value < old else 'higher'}"


def _asked(key: str, old: float, limit: float, min_improvement: float) -> str:
    higher = better(key) == "higher"
    if not min_improvement:
        return f"{'more' if higher else 'less'} than {old:.6g}"
    largest = describe(key).largest
    beyond = (
        f", more than the {largest:g} that is possible: lower registry.gate.min_improvement" if limit > largest else ""
    )
    return f"{'at least' if higher else 'at most'} {limit:.6g} ({min_improvement:.2%} {'above' if higher else 'below'}{beyond})"
