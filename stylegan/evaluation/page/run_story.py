"""What the pages of a run tell beside its report: the verdict, what it differs in from other runs, and how it was made.

Here are the records alone; `pipeline/story.py` fills them.
"""

from __future__ import annotations

from typing import Literal

from stylegan.records import Record

Outcome = Literal["better", "worse", "equal", "incomparable"]


class Setting(Record):
    """A setting that differs: its dotted key, its value in the other run and in this one; None where it has none."""

    key: str
    old: str | None
    new: str | None

    @property
    def text(self) -> str:
        """The change in a line: `training.r1_gamma: 0.4 -> 0.1`."""
        return f"{self.key}: {self.old or 'none'} -> {self.new or 'none'}"


class ComparedMetric(Record):
    """A metric of this run beside that of another.

    Attributes:
        key: in the report of this run.
        value, other: the two values.
        interval, other_interval: their 95 % intervals.
        outcome: `better` or `worse` is this run; they may be equal or, for a reason, not comparable.
        words: what it amounts to, in a few words: by how much, and whether chance explains it; or why it does not compare.
    """

    key: str
    value: float
    other: float
    interval: tuple[float, float] | None
    other_interval: tuple[float, float] | None
    outcome: Outcome
    words: str


class Against(Record):
    """Another run that this one is compared with.

    Attributes:
        name: for people: `the champion, version 3`.
        run_id: of the other run.
        metrics: those that both have, in the order of the table of metrics.
        settings: those that differ; None if the other ones are not known.
    """

    name: str
    run_id: str
    metrics: tuple[ComparedMetric, ...]
    settings: tuple[Setting, ...] | None


class Story(Record):
    """What the pages of a run tell beside its report.

    Attributes:
        key: identifies the verdict that it tells of; empty before the gate. A page of the same key need not be written
            again.
        headline: the outcome in a sentence; empty before the gate.
        promoted: whether the gate promoted the model; None before the gate.
        reasons: those of the gate, as sentences.
        champion: the difference to the model that it was judged against; None if there was none.
        previous: the difference to the run before this one; None if there was none.
        command: the shell command that repeats the run.
        facts: how it was made, by name: time, hardware, versions.
        changed: the config as YAML, without what is as by default.
        config: the whole config as YAML.
        links: addresses by what is there.
    """

    key: str = ""
    headline: str = ""
    promoted: bool | None = None
    reasons: tuple[str, ...] = ()
    champion: Against | None = None
    previous: Against | None = None
    command: str
    facts: dict[str, str] = {}
    changed: str
    config: str
    links: dict[str, str] = {}
